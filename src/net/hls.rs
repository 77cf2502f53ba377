//! The HLS outputs of this node: which playlist belongs to which stream. Steps add them, players over HTTP find them.

use crate::ids::StreamName;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What the paths of a playlist's segments begin with; a number in digits and `.ts` follow. The dash tells the segments of a stream `x` from
/// the playlist of one that is called `x1`.
pub fn segment_prefix(playlist: &Path) -> PathBuf {
    let stem = playlist.file_stem().unwrap_or_default().to_string_lossy();
    playlist.with_file_name(format!("{stem}-"))
}

/// Where a segment lies. `number` is digits.
pub fn segment(playlist: &Path, number: &str) -> PathBuf {
    let mut path = segment_prefix(playlist).into_os_string();
    path.push(format!("{number}.ts"));
    path.into()
}

/// All of them, by the names under which they are played.
#[derive(Debug, Default)]
pub struct HlsOutputs {
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    /// Steps that make HLS.
    steps: usize,
    next: u64,
    playlists: HashMap<StreamName, (u64, PathBuf)>,
}

/// An output that is there. Dropping it takes it away, unless another one has its name by now.
#[derive(Debug)]
pub struct HlsOutput {
    outputs: Arc<HlsOutputs>,
    name: StreamName,
    number: u64,
}

/// A step that makes HLS of its streams, for as long as this is there.
#[derive(Debug)]
pub struct HlsStep(Arc<HlsOutputs>);

impl Drop for HlsStep {
    fn drop(&mut self) {
        self.0.table().steps -= 1;
    }
}

impl HlsOutputs {
    /// None.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// There is one step more.
    pub fn step(self: &Arc<Self>) -> HlsStep {
        self.table().steps += 1;
        HlsStep(self.clone())
    }

    /// Whether nothing here makes HLS.
    pub fn is_idle(&self) -> bool {
        let table = self.table();
        table.steps == 0 && table.playlists.is_empty()
    }

    /// A playlist is being written. One that had the name before has it no more.
    pub fn add(self: &Arc<Self>, name: StreamName, playlist: PathBuf) -> HlsOutput {
        let mut table = self.table();
        table.next += 1;
        let number = table.next;
        table.playlists.insert(name.clone(), (number, playlist));
        drop(table);
        HlsOutput { outputs: self.clone(), name, number }
    }

    /// The playlist of a stream.
    pub fn playlist(&self, name: &StreamName) -> Option<PathBuf> {
        self.table().playlists.get(name).map(|(_, playlist)| playlist.clone())
    }

    /// Whether a file is written by an output that is there.
    pub fn is_written(&self, playlist: &Path) -> bool {
        self.table().playlists.values().any(|(_, written)| written == playlist)
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for HlsOutput {
    fn drop(&mut self) {
        let mut table = self.outputs.table();
        if table.playlists.get(&self.name).is_some_and(|(number, _)| *number == self.number) {
            table.playlists.remove(&self.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_stands_beside_its_playlist() {
        let playlist = Path::new("/run/hls/team/x.m3u8");
        assert_eq!(segment(playlist, "17"), Path::new("/run/hls/team/x-17.ts"));
    }

    #[test]
    fn the_newest_output_has_the_name() {
        let (outputs, name) = (HlsOutputs::new(), "x".parse::<StreamName>().unwrap());
        let old = outputs.add(name.clone(), "a.m3u8".into());
        let new = outputs.add(name.clone(), "b.m3u8".into());
        drop(old);
        assert_eq!(outputs.playlist(&name), Some("b.m3u8".into()));
        assert!(outputs.is_written(Path::new("b.m3u8")) && !outputs.is_written(Path::new("a.m3u8")));
        drop(new);
        assert_eq!(outputs.playlist(&name), None);
    }
}
