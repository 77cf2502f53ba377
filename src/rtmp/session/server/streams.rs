//! The message streams of a connection (§7.2.1.3), and what each of them does.
//!
//! A message stream is made by `createStream`, or by the first publish or play on an id that was not given out: some peers
//! guess theirs. It knows nothing of the others, and not what its requests mean.

use crate::rtmp::message::Message;
use crate::rtmp::session::{PLAY_STREAM_ID, event::Receives};
use smallvec::SmallVec;
use std::collections::VecDeque;

/// One message stream.
pub(super) struct Stream {
    pub id: u32,
    pub doing: Doing,
    /// What its viewer wants, also of what it will play next.
    pub receives: Receives,
    /// What came behind a request that has no answer yet.
    deferred: VecDeque<(Message, Effect)>,
}

/// What a message stream does.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Doing {
    Nothing,
    PublishAsked,
    Publishing,
    PlayAsked { reset: bool },
    Playing,
}

/// What a message does to a request of its message stream that has no answer yet.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    None,
    /// Ends it.
    Ends,
    /// Ends a play, and begins another.
    Plays,
    Publishes,
}

impl Effect {
    /// Of a call with this name.
    pub fn of(name: &str) -> Self {
        match name {
            "publish" => Effect::Publishes,
            "closeStream" | "deleteStream" | "FCUnpublish" => Effect::Ends,
            "play" | "play2" => Effect::Plays,
            _ => Effect::None,
        }
    }
}

impl Stream {
    fn new(id: u32) -> Self {
        Stream { id, doing: Doing::Nothing, receives: Receives::ALL, deferred: VecDeque::new() }
    }

    /// A request of it has no answer yet.
    pub fn is_waiting(&self) -> bool {
        matches!(self.doing, Doing::PublishAsked | Doing::PlayAsked { .. })
    }

    /// It publishes, or has asked to.
    pub fn publishes(&self) -> bool {
        matches!(self.doing, Doing::PublishAsked | Doing::Publishing)
    }

    /// It publishes, has asked to, or will ask when its request before that is answered: media may come.
    pub fn may_bring_media(&self) -> bool {
        self.publishes() || self.deferred.iter().any(|(_, effect)| *effect == Effect::Publishes)
    }

    /// Whether a message withdraws the request that waits.
    pub fn is_withdrawn_by(&self, effect: Effect) -> bool {
        match self.doing {
            Doing::PublishAsked => effect == Effect::Ends,
            Doing::PlayAsked { .. } => matches!(effect, Effect::Ends | Effect::Plays),
            _ => false,
        }
    }

    /// Whether something that came behind the request withdraws it.
    pub fn is_withdrawn(&self) -> bool {
        self.deferred.iter().any(|(_, effect)| self.is_withdrawn_by(*effect))
    }

    /// Keeps a message until the request is answered. The caller bounds it.
    pub fn defer(&mut self, message: Message, effect: Effect) {
        self.deferred.push_back((message, effect));
    }

    /// The first message that was kept. No memory is held for those that come.
    pub fn take_deferred(&mut self) -> Option<Message> {
        let message = self.deferred.pop_front().map(|(message, _)| message);
        if message.is_none() {
            self.deferred = VecDeque::new();
        }
        message
    }

    #[cfg(test)]
    pub fn owns_nothing(&self) -> bool {
        self.deferred.capacity() == 0
    }
}

/// All message streams of a connection. Next to every peer has one.
#[derive(Default)]
pub(super) struct Streams(SmallVec<[Stream; 1]>);

impl Streams {
    /// A new one, with the lowest id that is free; nothing if there are `max` of them.
    pub fn create(&mut self, max: u32) -> Option<u32> {
        let id = (PLAY_STREAM_ID..=max).find(|id| self.get(*id).is_none())?;
        self.0.push(Stream::new(id));
        Some(id)
    }

    /// The one with this id, made if it is not there; nothing if no more than `max` are given out.
    pub fn get_or_create(&mut self, id: u32, max: u32) -> Option<&mut Stream> {
        if self.get(id).is_none() && (PLAY_STREAM_ID..=max).contains(&id) {
            self.0.push(Stream::new(id));
        }
        self.get_mut(id)
    }

    /// The one with this id.
    pub fn get(&self, id: u32) -> Option<&Stream> {
        self.0.iter().find(|stream| stream.id == id)
    }

    /// The one with this id.
    pub fn get_mut(&mut self, id: u32) -> Option<&mut Stream> {
        self.0.iter_mut().find(|stream| stream.id == id)
    }

    /// Forgets one.
    pub fn remove(&mut self, id: u32) {
        self.0.retain(|stream| stream.id != id);
        if self.0.is_empty() {
            self.0.shrink_to_fit();
        }
    }

    /// All of them, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Stream> {
        self.0.iter()
    }

    /// The id that is meant by a call or by media with this one. Some peers send what belongs to their only stream on 0, which
    /// is the connection.
    pub fn meant_by(&self, id: u32) -> u32 {
        match id {
            0 => self.0.first().map_or(PLAY_STREAM_ID, |stream| stream.id),
            id => id,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_new_bounded_and_free_again() {
        let mut streams = Streams::default();
        assert_eq!([0; 4].map(|_| streams.create(3)), [Some(1), Some(2), Some(3), None]);
        assert!(streams.get_or_create(9, 3).is_none() && streams.get_or_create(0, 3).is_none());
        streams.remove(2);
        assert!(streams.get_or_create(2, 3).is_some(), "a peer may guess");
        streams.remove(1);
        assert_eq!((streams.create(3), streams.create(3)), (Some(1), None));
    }
}
