//! A stream that runs: a publisher, a viewer who has started, and what is compared between them.

use super::bodies::{self, Media};
use super::lab::Lab;
use super::peer::{Peer, Trouble};
use crate::rtmp::message::Message;
use std::collections::VecDeque;

/// Messages of media that a viewer may get before those that are expected: what it joined with. More is no answer.
const EARLIER: usize = 1000;

/// See the module's head.
pub(super) struct Scene {
    pub publisher: Peer,
    pub viewer: Peer,
}

/// What a stream of H.264 and AAC begins with.
pub(super) fn opening(time: u32) -> Vec<Media> {
    vec![
        bodies::sent_metadata(time, 320.0),
        Media::video(time, bodies::avc_header()),
        Media::audio(time, bodies::aac_header()),
        Media::video(time, bodies::avc_key(0)),
        Media::audio(time, bodies::aac_frame(0)),
    ]
}

impl Scene {
    /// A publisher of H.264 and AAC whose clock starts at `time`, and its viewer.
    pub async fn start(lab: &Lab, time: u32) -> Result<Scene, Trouble> {
        Scene::start_with(lab, &opening(time)).await
    }

    /// The same with other media to begin with.
    pub async fn start_with(lab: &Lab, opening: &[Media]) -> Result<Scene, Trouble> {
        let publisher = publishing(lab, opening).await?;
        let viewer = lab.viewer().await?;
        Ok(Scene { publisher, viewer })
    }

    /// Sends these the plain way, and expects them at the viewer.
    pub async fn relays(&mut self, media: &[Media]) -> Result<Vec<Message>, Trouble> {
        send(&mut self.publisher, media).await?;
        self.arrives(media).await
    }

    /// Expects these at the viewer. There is nothing to wait for if the publisher is closed.
    pub async fn arrives(&mut self, media: &[Media]) -> Result<Vec<Message>, Trouble> {
        tokio::select! {
            biased;
            arrived = arrive(&mut self.viewer, media) => arrived,
            closed = self.publisher.closed() => Err(closed),
        }
    }

    /// The same for what was sent by hand: bodies and the distances in time must be these.
    pub async fn on_time(&mut self, media: &[Media]) -> Result<(), Trouble> {
        let got = self.arrives(media).await?;
        let sent = media.iter().map(|media| media.time);
        let got = got.iter().map(|message| message.timestamp);
        let (sent, got) = (distances(sent), distances(got));
        match sent == got {
            true => Ok(()),
            false => {
                Err(Trouble::other(format!("distances in time {}, sent {}", listed(&got), listed(&sent))))
            }
        }
    }
}

/// What was sent, on each message's own clock.
fn distances(times: impl Iterator<Item = u32>) -> Vec<i32> {
    let times: Vec<u32> = times.collect();
    let pairs = times.iter().zip(times.iter().skip(1));
    pairs.map(|(one, next)| next.wrapping_sub(*one).cast_signed()).collect()
}

fn listed(distances: &[i32]) -> String {
    distances.iter().map(i32::to_string).collect::<Vec<_>>().join(", ")
}

/// A publisher of these: the server has read them all.
pub(super) async fn publishing(lab: &Lab, media: &[Media]) -> Result<Peer, Trouble> {
    let mut publisher = lab.publisher().await?;
    send(&mut publisher, media).await?;
    publisher.goes_on().await?;
    Ok(publisher)
}

/// Sends media the plain way, all in one write.
pub(super) async fn send(publisher: &mut Peer, media: &[Media]) -> Result<(), Trouble> {
    let wires = media.iter().map(|media| publisher.wire(media.type_id, media.time, &media.body));
    let wire: Vec<u8> = wires.flatten().collect();
    publisher.write(&wire).await
}

/// Waits until a viewer has got these, byte for byte, audio and video each in order; gives them in the order of `wanted`.
/// What came before the first of them is passed over.
pub(super) async fn arrive(viewer: &mut Peer, wanted: &[Media]) -> Result<Vec<Message>, Trouble> {
    let mut open: VecDeque<(usize, &Media)> = wanted.iter().enumerate().collect();
    let mut got: Vec<(usize, Message)> = Vec::new();
    let mut earlier = 0;
    while let Some((first, next)) = open.front().copied() {
        let message = viewer.media(&format!("{} {} of {}", next.kind(), first + 1, wanted.len())).await?;
        let same = open.iter().position(|(_, wanted)| wanted.type_id == message.type_id);
        let Some((index, media)) = same.and_then(|at| open.get(at)).copied() else {
            continue;
        };
        if media.body == message.body {
            open.retain(|(other, _)| *other != index);
            got.push((index, message));
        } else if got.iter().any(|(_, before)| before.type_id == message.type_id) || earlier == EARLIER {
            return Err(Trouble::other(format!(
                "{} {} of {} came otherwise: {} bytes, sent {}",
                media.kind(),
                index + 1,
                wanted.len(),
                message.body.len(),
                media.body.len()
            )));
        } else {
            earlier += 1;
        }
    }
    got.sort_by_key(|(index, _)| *index);
    Ok(got.into_iter().map(|(_, message)| message).collect())
}
