//! A cheap publisher of H.264-like and AAC-like messages whose order can be checked.

use super::endpoint::{self, Mark};
use super::{SOON, poll};
use lb::rtmp::session::{Client, ClientEvent};
use lb::rtmp::{Limits, Message};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

/// What is published.
#[derive(Clone, Copy, Debug)]
pub struct Media {
    /// Stands in every message, and in the sequence headers.
    pub session: u16,
    /// Frames a second.
    pub rate: u32,
    /// A keyframe every so many frames.
    pub gop: u32,
    /// The bytes of a frame.
    pub frame_bytes: usize,
    /// An audio message with each frame.
    pub audio: bool,
    /// Frames of video. Without, the audio messages are sent at their pace.
    pub video: bool,
    /// The timestamp of the first message.
    pub first_timestamp: u32,
    /// Comes back so long after its connection ended, as encoders do.
    pub comes_back: Option<Duration>,
}

impl Default for Media {
    fn default() -> Self {
        Media {
            session: 1,
            rate: 25,
            gop: 25,
            frame_bytes: 1000,
            audio: true,
            video: true,
            first_timestamp: 0,
            comes_back: None,
        }
    }
}

/// What became of a publisher so far.
#[derive(Clone, Debug, Default)]
pub struct Sent {
    /// Each time that it was let in.
    pub accepted: Vec<Instant>,
    /// When the first keyframe of the last publish left.
    pub first_keyframe: Option<Instant>,
    pub frames: u64,
    pub statuses: Vec<String>,
    /// The last connection's end, and what ended it.
    pub ended: Option<(Instant, String)>,
}

/// A publisher on the shared runtime. Dropping it closes its connection without a word.
pub struct Publisher {
    sent: Arc<Mutex<Sent>>,
    mode: Arc<AtomicU8>,
    task: JoinHandle<()>,
}

const PUBLISH: u8 = 0;
const LEAVE: u8 = 1;
const HANG: u8 = 2;

impl Publisher {
    /// Connects and publishes.
    pub fn start(server: SocketAddr, app: &str, key: &str, media: Media) -> Publisher {
        let sent = Arc::new(Mutex::new(Sent::default()));
        let mode = Arc::new(AtomicU8::new(PUBLISH));
        let (record, wish) = (sent.clone(), mode.clone());
        let (app, key) = (app.to_owned(), key.to_owned());
        let task = endpoint::runtime().spawn(async move {
            loop {
                let end = publish(server, &app, &key, media, &record, &wish).await;
                let how = end.map_or_else(|error| error.to_string(), |()| "closed".to_owned());
                record.lock().unwrap().ended = Some((Instant::now(), how));
                match media.comes_back {
                    Some(pause) if wish.load(Ordering::Relaxed) == PUBLISH => tokio::time::sleep(pause).await,
                    _ => return,
                }
            }
        });
        Publisher { sent, mode, task }
    }

    /// What became of it so far.
    pub fn sent(&self) -> MutexGuard<'_, Sent> {
        self.sent.lock().unwrap()
    }

    /// Waits until its first keyframe has left, and says when that was.
    #[track_caller]
    pub fn wait_for_keyframe(&self) -> Instant {
        let sent = poll(SOON, || self.sent().first_keyframe);
        sent.unwrap_or_else(|| panic!("nothing was published: {:?}", self.sent()))
    }

    /// Waits until its connection has ended, and says when, and what it was told before.
    #[track_caller]
    pub fn wait_for_end(&self, deadline: Duration) -> (Instant, Vec<String>) {
        let ended = poll(deadline, || self.sent().ended.clone());
        let (at, _) =
            ended.unwrap_or_else(|| panic!("still publishing after {deadline:?}: {:?}", self.sent()));
        (at, self.sent().statuses.clone())
    }

    /// Takes leave as encoders do, and waits for the end.
    #[track_caller]
    pub fn leave(self) {
        self.mode.store(LEAVE, Ordering::Relaxed);
        self.wait_for_end(SOON);
    }

    /// Sends and reads nothing any more, and stays connected.
    pub fn hang(&self) {
        self.mode.store(HANG, Ordering::Relaxed);
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn publish(
    server: SocketAddr,
    app: &str,
    key: &str,
    media: Media,
    sent: &Mutex<Sent>,
    mode: &AtomicU8,
) -> io::Result<()> {
    let socket = TcpStream::connect(server).await?;
    socket.set_nodelay(true)?;
    let mut client =
        Client::publish(&endpoint::target(server, app, key), Limits::default(), endpoint::nonce());
    let mut scratch = vec![0; 4096];
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / media.rate);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut number = None;
    loop {
        endpoint::flush(&socket, &mut client).await?;
        tokio::select! {
            n = endpoint::receive(&socket, &mut client, &mut scratch) => {
                while let Some(event) = client.event() {
                    match event {
                        ClientEvent::Publishing => {
                            let mut sent = sent.lock().unwrap();
                            sent.accepted.push(Instant::now());
                            sent.first_keyframe = None;
                            number = Some(0);
                            ticks.reset_immediately();
                        }
                        ClientEvent::Status { code, description, .. } => {
                            sent.lock().unwrap().statuses.push(format!("{code}: {description}"));
                        }
                        _ => {}
                    }
                }
                if n? == 0 {
                    return Ok(());
                }
            }
            _ = ticks.tick() => match (mode.load(Ordering::Relaxed), number) {
                (HANG, _) => std::future::pending::<()>().await,
                (LEAVE, _) => {
                    client.close();
                    return endpoint::flush(&socket, &mut client).await;
                }
                (_, Some(frame)) => {
                    send(&mut client, media, frame);
                    endpoint::flush(&socket, &mut client).await?;
                    let mut sent = sent.lock().unwrap();
                    sent.frames += 1;
                    sent.first_keyframe.get_or_insert_with(Instant::now);
                    number = Some(frame + 1);
                }
                _ => {}
            },
        }
    }
}

/// One frame with its audio; before the first one the sequence headers.
fn send(client: &mut Client, media: Media, number: u32) {
    let timestamp = media.first_timestamp.wrapping_add(number * 1000 / media.rate);
    let mark = Mark { session: media.session, number };
    let mut message = |type_id: u8, head: &[u8], bytes: usize| {
        let mut body = head.to_vec();
        mark.write(&mut body);
        body.resize(body.len().max(bytes), number as u8);
        client.send_media(&Message {
            type_id,
            stream_id: 1,
            chunk_stream_id: 0,
            timestamp,
            body: body.into(),
        });
    };
    if number == 0 {
        if media.video {
            message(9, &[0x17, 0, 0, 0, 0], 0);
        }
        if media.audio {
            message(8, &[0xaf, 0], 0);
        }
    }
    let head = if number.is_multiple_of(media.gop) { 0x17 } else { 0x27 };
    if media.video {
        message(9, &[head, 1, 0, 0, 0], media.frame_bytes);
    }
    if media.audio {
        message(8, &[0xaf, 1], 200);
    }
}
