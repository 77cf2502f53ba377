//! Feeds as the engine's streams: that one begins, and that it ends. Its media never comes this way.

use crate::relay::{FeedRef, Feeds};
use mmids_core::StreamId;
use mmids_core::workflows::{MediaNotification, MediaNotificationContent};
use std::sync::Arc;

/// A feed that the engine knows of. Held for as long as the stream is announced, so that whoever is told of it finds it.
#[derive(Debug)]
pub struct Announced {
    stream_id: StreamId,
    _feed: FeedRef,
}

impl Announced {
    /// A feed, and the notification that its stream begins.
    pub fn begin(feed: FeedRef, stream_name: &str) -> (Self, MediaNotification) {
        let stream_id = StreamId(Arc::new(feed.id().to_string()));
        let stream_name = Arc::new(stream_name.to_owned());
        let content = MediaNotificationContent::NewIncomingStream { stream_name };
        (Announced { stream_id: stream_id.clone(), _feed: feed }, MediaNotification { stream_id, content })
    }

    /// The notification that the stream is over.
    pub fn end(self) -> MediaNotification {
        MediaNotification { stream_id: self.stream_id, content: MediaNotificationContent::StreamDisconnected }
    }
}

/// The feed of a stream; nothing if it has ended, or the stream is somebody else's.
pub fn feed(feeds: &Feeds, stream_id: &StreamId) -> Option<FeedRef> {
    feeds.get(stream_id.0.parse().ok()?)
}
