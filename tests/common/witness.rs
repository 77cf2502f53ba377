//! A viewer that keeps every message it gets: what a stream's viewers were sent, and when, whatever the codec.

use super::endpoint;
use super::{SOON, poll};
use lb::media::Packet;
use lb::rtmp::Limits;
use lb::rtmp::session::{Client, ClientEvent};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio_util::task::AbortOnDropHandle;

/// One message of media.
#[derive(Clone, Debug)]
pub struct Received {
    pub at: Instant,
    pub packet: Packet,
}

/// What came so far.
#[derive(Debug, Default)]
pub struct Kept {
    pub media: Vec<Received>,
    pub statuses: Vec<String>,
    /// What ended the connection.
    pub ended: Option<String>,
}

/// What viewers were sent from one set of headers to the next: one publish, as far as viewers saw it.
#[derive(Debug, Default)]
pub struct Publish {
    /// What came before the first frame, and what describes the media, which ffmpeg sends with the first frame.
    pub headers: Vec<Received>,
    /// Frames of video, in order; of all tracks.
    pub video: Vec<Received>,
    /// Frames of audio, in order; of all tracks.
    pub audio: Vec<Received>,
}

impl Kept {
    /// The publishes, in order. Metadata or a sequence header of video behind frames begins one.
    pub fn publishes(&self) -> Vec<Publish> {
        let mut all = vec![Publish::default()];
        for received in &self.media {
            let kind = received.packet.kind;
            let current = all.last_mut().unwrap();
            let begun = !current.video.is_empty() || !current.audio.is_empty();
            if kind.is_video_frame() {
                current.video.push(received.clone());
            } else if kind.is_audio_frame() {
                current.audio.push(received.clone());
            } else if begun
                && (received.packet.type_id() == 18 && kind.is_header()
                    || kind.is_sequence_header() && received.packet.type_id() == 9)
            {
                let headers = vec![received.clone()];
                all.push(Publish { headers, ..Publish::default() });
            } else if kind.is_header() {
                current.headers.push(received.clone());
            }
        }
        all
    }

    /// Checks that time never goes back on a track, not even where one publish follows another.
    #[track_caller]
    pub fn assert_time_rises(&self) {
        let mut last = std::collections::BTreeMap::new();
        for Received { packet, .. } in &self.media {
            if !packet.kind.is_video_frame() && !packet.kind.is_audio_frame() {
                continue;
            }
            let before = last.insert((packet.type_id(), packet.track_id), packet.timestamp);
            if let Some(before) = before {
                assert!(packet.timestamp >= before, "{} after {before}: {:?}", packet.timestamp, packet.kind);
            }
        }
    }
}

/// The viewer. Dropping it closes its connection.
pub struct Witness {
    kept: Arc<Mutex<Kept>>,
    _task: AbortOnDropHandle<()>,
}

impl Witness {
    /// Connects and plays, on the shared runtime.
    pub fn start(server: SocketAddr, app: &str, key: &str) -> Witness {
        let kept = Arc::new(Mutex::new(Kept::default()));
        let (record, target) = (kept.clone(), endpoint::target(server, app, key));
        let task = endpoint::runtime().spawn(async move {
            let client = Client::play(&target, Limits::default(), endpoint::nonce());
            let end = play(server, client, &record).await;
            let how = end.map_or_else(|error| error.to_string(), |()| "closed".to_owned());
            record.lock().unwrap().ended = Some(how);
        });
        Witness { kept, _task: AbortOnDropHandle::new(task) }
    }

    /// What came so far.
    pub fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap()
    }

    /// Waits until something is found in what came.
    #[track_caller]
    pub fn wait_for<T>(&self, what: &str, deadline: Duration, probe: impl Fn(&Kept) -> Option<T>) -> T {
        poll(deadline, || probe(&self.kept())).unwrap_or_else(|| {
            let kept = self.kept();
            let publishes: Vec<_> =
                kept.publishes().iter().map(|p| (p.headers.len(), p.video.len())).collect();
            panic!("waited in vain for {what}; {publishes:?}, {:?}, {:?}", kept.statuses, kept.ended)
        })
    }

    /// Waits until so many frames of video of a publish came; publishes count from 0. Says when the first one came.
    #[track_caller]
    pub fn wait_for_frames(&self, publish: usize, frames: usize) -> Instant {
        self.wait_for(&format!("{frames} frames of publish {publish}"), 2 * SOON, |kept| {
            let publishes = kept.publishes();
            let publish = publishes.get(publish)?;
            (publish.video.len() >= frames).then(|| publish.video[0].at)
        })
    }
}

async fn play(server: SocketAddr, mut client: Client, kept: &Mutex<Kept>) -> io::Result<()> {
    let socket = TcpStream::connect(server).await?;
    let mut scratch = vec![0; 16 << 10];
    loop {
        endpoint::flush(&socket, &mut client).await?;
        let n = endpoint::receive(&socket, &mut client, &mut scratch).await?;
        while let Some(event) = client.event() {
            let mut kept = kept.lock().unwrap();
            match event {
                ClientEvent::Media(message) => {
                    let packet = Packet::from_message(message.type_id, message.timestamp, message.body);
                    kept.media.extend(packet.map(|packet| Received { at: Instant::now(), packet }));
                }
                ClientEvent::Status { code, description, .. } => {
                    kept.statuses.push(format!("{code}: {description}"));
                }
                ClientEvent::StreamEof => kept.statuses.push("StreamEOF".to_owned()),
                _ => {}
            }
        }
        if n == 0 {
            return Ok(());
        }
    }
}
