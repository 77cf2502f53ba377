//! HLS for browsers that take nothing else: playlists and segments that `ffmpeg_hls` writes, over the same port and by the same rules.
//!
//! A stream that is played is wanted until nobody has asked for its playlist for a while (`net/audience.rs`): then its pull ends, and with it
//! ffmpeg.

use super::request::{self, File, HlsWanted, Status};
use super::{Connection, Error};
use crate::ids::StreamName;
use crate::net::hls::segment;
use crate::net::viewing::{self, Admitted, NotAdmitted};
use crate::relay::stream::End;
use bytes::{Bytes, BytesMut};
use std::io;
use std::path::Path;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::time::{sleep, timeout};

/// How long the first playlist may take: a pull, ffmpeg, and a segment of a few seconds.
const FIRST: Duration = Duration::from_secs(20);

/// How often it is looked for.
const LOOK: Duration = Duration::from_millis(100);

/// The largest playlist, bytes: one of a day in segments of 2 s.
const PLAYLIST_MAX: u64 = 4 << 20;

/// What is read of a segment at a time.
const PIECE: usize = 64 << 10;

/// A player that takes nothing for so long is given up.
const STALL: Duration = Duration::from_secs(10);

impl Connection<'_> {
    /// Answers with a file. `true`: the connection may be used again.
    pub(super) async fn hls(&mut self, wanted: &HlsWanted) -> Result<bool, Error> {
        let HlsWanted { app, key, query, file, keep_alive } = wanted;
        let grant = self.ask(app, key, query.as_ref()).await?;
        let public = self.server.gate.is_open(crate::auth::Action::Play);
        if self.server.hls.is_idle() {
            return Err(self.refuse(Status::NotFound, app, "hls", "this node makes no HLS").await);
        }
        let sent = match file {
            File::Playlist => {
                let playlist = match self.playlist(app, &grant.name).await? {
                    Ok(playlist) => playlist,
                    Err(no) => {
                        let status = super::status(no.prospect);
                        return Err(self.refuse(status, app, no.reason, &no.text).await);
                    }
                };
                let playlist = as_served(&playlist, query.as_deref());
                let head = request::playlist_head(playlist.len(), *keep_alive);
                self.pass_on(head.into()).await && self.pass_on(playlist.into()).await
            }
            File::Segment(number) => match self.segment(&grant.name, number).await {
                Some((segment, length)) => {
                    let head = request::segment_head(length, *keep_alive, public);
                    self.pass_on(head.into()).await && self.pass_on_file(segment, length).await
                }
                None => {
                    let text = "no such segment; it may be too old";
                    return Err(self.refuse(Status::NotFound, app, "hls", text).await);
                }
            },
        };
        if sent && !keep_alive {
            self.transport.linger().await;
        }
        Ok(sent && *keep_alive)
    }

    /// The playlist of a stream, which is pulled and cut for this if it is not yet.
    async fn playlist(&mut self, app: &str, name: &StreamName) -> Result<Result<String, NotAdmitted>, Error> {
        let (server, place) = (self.server, (self.port, app.to_owned(), name.clone()));
        let admit = || {
            let admitted = viewing::admit(server, self.port, app, name, self.peer, false)?;
            let Admitted { interest, _counted, .. } = admitted;
            Ok((interest, _counted))
        };
        let seat = match server.audience.want(place, &server.drain, admit) {
            Ok(seat) => seat,
            Err(no) => return Ok(Err(no)),
        };
        let written = async {
            seat.ready().await.map_err(|end| viewing::refusal(&end))?;
            loop {
                let path = self.server.hls.playlist(name);
                if let Some(path) = path
                    && let Some(text) = read_playlist(&path).await
                {
                    return Ok(text);
                }
                sleep(LOOK).await;
            }
        };
        let closed = self.server.drain.closed().clone();
        tokio::select! {
            written = timeout(FIRST, written) => Ok(written.unwrap_or_else(|_| Err(NotAdmitted::late()))),
            () = closed.cancelled() => Ok(Err(viewing::refusal(&End::Closed))),
        }
    }

    async fn segment(&self, name: &StreamName, number: &str) -> Option<(tokio::fs::File, u64)> {
        let playlist = self.server.hls.playlist(name)?;
        let file = tokio::fs::File::open(segment(&playlist, number)).await.ok()?;
        let length = file.metadata().await.ok()?.len();
        Some((file, length))
    }

    /// Sends a piece of an answer. `false`: the player does not take it.
    async fn pass_on(&self, bytes: Bytes) -> bool {
        let sent = |bytes| self.server.metrics.sent_bytes_total.inc_by(bytes as u64);
        matches!(timeout(STALL, self.transport.send(bytes, sent)).await, Ok(Ok(())))
    }

    async fn pass_on_file(&self, mut file: tokio::fs::File, length: u64) -> bool {
        let mut left = length;
        while left > 0 {
            let mut piece = BytesMut::with_capacity(PIECE);
            match file.read_buf(&mut piece).await {
                Ok(n) if n > 0 => {}
                // ffmpeg writes a segment under another name until it is whole, so it does not get shorter.
                _ => return false,
            }
            piece.truncate(usize::try_from(left).unwrap_or(usize::MAX));
            left -= piece.len() as u64;
            if !self.pass_on(piece.freeze()).await {
                return false;
            }
        }
        true
    }
}

/// Nothing: it is not there yet.
async fn read_playlist(path: &Path) -> Option<String> {
    let mut text = String::new();
    let file = tokio::fs::File::open(path).await.ok()?;
    let read: io::Result<usize> = file.take(PLAYLIST_MAX).read_to_string(&mut text).await;
    read.ok().filter(|length| *length > 0)?;
    Some(text)
}

/// A playlist as it is served: its segments are URLs, and are asked for with the query that it was asked for with, as that may hold what
/// lets the player watch.
fn as_served(playlist: &str, query: Option<&str>) -> String {
    let query = query.filter(|query| !query.is_empty()).map(|query| format!("?{query}")).unwrap_or_default();
    let line = |line: &str| match line.is_empty() || line.starts_with('#') {
        true => format!("{line}\n"),
        // The only character of a stream name that means something else in a URL's path.
        false => format!("{}{query}\n", line.replace('%', "%25")),
    };
    playlist.lines().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_are_asked_for_as_their_playlist_was() {
        let playlist = "#EXTM3U\n#EXTINF:1.0,\nx-1.ts\n";
        assert_eq!(as_served(playlist, None), playlist);
        assert_eq!(as_served(playlist, Some("token=a")), "#EXTM3U\n#EXTINF:1.0,\nx-1.ts?token=a\n");
        assert_eq!(as_served("a%41+b-1.ts", None), "a%2541+b-1.ts\n");
    }
}
