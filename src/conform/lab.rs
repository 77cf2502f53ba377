//! What a check has to work with: the server's addresses, names of its own, and connections up to where it begins.

use super::peer::{Peer, Status, Trouble};
use crate::net::location::Location;
use crate::rtmp::amf0::{Properties, Value};
use crate::rtmp::handshake::PART;
use crate::rtmp::message::Command;
use std::time::Duration;
use tokio::time::Instant;

/// Where to publish and play, and how.
#[derive(Clone, Debug)]
pub struct Site {
    /// Where to publish.
    pub publish: Location,
    /// Where to play what is published there.
    pub play: Location,
    /// How long a check may take.
    pub timeout: Duration,
    /// How long nothing may come before it counts as nothing. A viewer over a slow line needs more.
    pub quiet: Duration,
    /// Every check publishes under the key as it is given, and not under one of its own. Such checks cannot run side by side.
    pub exact_key: bool,
}

/// Which of the two addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Publish,
    Play,
}

/// See the module's head.
pub struct Lab {
    site: Site,
    suffix: String,
    deadline: Instant,
}

/// What connect says.
pub(super) struct Connect {
    /// Stands in front of the app, as some parsers stop at what they do not know.
    pub before: Properties,
    pub app: String,
    pub after: Properties,
    /// Further values behind the command object.
    pub arguments: Vec<Value>,
}

/// The transaction id of connect (§7.2.1.1).
pub(super) const CONNECT: f64 = 1.0;

impl Lab {
    /// For the check of this id, in this run of all, which ends after `time`.
    pub(super) fn new(site: &Site, id: &str, run: u32, time: Duration) -> Lab {
        let own = format!("-{run:08x}-{}", id.replace('/', "-"));
        let suffix = if site.exact_key { String::new() } else { own };
        Lab { site: site.clone(), suffix, deadline: Instant::now() + time }
    }

    /// How long nothing may come before it counts as nothing.
    pub(super) fn quiet(&self) -> Duration {
        self.site.quiet
    }

    fn location(&self, side: Side) -> &Location {
        match side {
            Side::Publish => &self.site.publish,
            Side::Play => &self.site.play,
        }
    }

    /// The app as it is given.
    pub(super) fn app(&self, side: Side) -> &str {
        &self.location(side).app
    }

    /// The stream's name of this check, without a query.
    pub(super) fn name(&self, side: Side) -> String {
        format!("{}{}", self.location(side).name, self.suffix)
    }

    /// The same with the query that was given.
    pub(super) fn key(&self, side: Side) -> String {
        self.with_query(side, self.name(side))
    }

    pub(super) fn with_query(&self, side: Side, name: String) -> String {
        match &self.location(side).query {
            Some(query) => format!("{name}?{query}"),
            None => name,
        }
    }

    /// Another name that nobody publishes.
    pub(super) fn unknown_key(&self) -> String {
        self.with_query(Side::Play, format!("{}-nobody", self.name(Side::Play)))
    }

    /// A connection, and nothing said.
    pub(super) async fn open(&self, side: Side) -> Result<Peer, Trouble> {
        let Location { host, port, .. } = self.location(side);
        Peer::open(host, *port, self.deadline).await
    }

    /// Past the simple handshake.
    pub(super) async fn greet(&self, side: Side) -> Result<Peer, Trouble> {
        let mut peer = self.open(side).await?;
        let c1: [u8; PART] = std::array::from_fn(|index| if index < 8 { 0 } else { index as u8 });
        peer.write(&[&[3], &c1[..]].concat()).await?;
        let answer = peer.bytes(1 + PART, "S0 and S1").await?;
        peer.write(answer.get(1..).unwrap_or_default()).await?;
        peer.bytes(PART, "S2").await?;
        Ok(peer)
    }

    /// What a plain encoder or player says.
    pub(super) fn plain_connect(&self, side: Side) -> Connect {
        let tc_url = self.location(side).tc_url();
        let after = [
            ("type", Value::string("nonprivate")),
            ("flashVer", Value::string("FMLE/3.0 (compatible; lb conform)")),
            ("tcUrl", Value::string(tc_url)),
        ];
        Connect {
            before: Properties::new(),
            app: self.app(side).to_owned(),
            after: after.map(|(name, value)| (name.to_owned(), value)).into(),
            arguments: Vec::new(),
        }
    }

    /// Past connect, which must succeed.
    pub(super) async fn connected(&self, side: Side) -> Result<Peer, Trouble> {
        self.connected_by(side, self.plain_connect(side)).await.map(|(peer, _)| peer)
    }

    /// The same with another connect; also its answer.
    pub(super) async fn connected_by(
        &self,
        side: Side,
        connect: Connect,
    ) -> Result<(Peer, Command), Trouble> {
        let mut peer = self.greet(side).await?;
        peer.command(0, &connect.command()).await?;
        let answer = peer.answer(CONNECT, "the answer to connect").await?;
        match Status::of(&answer) {
            Status { code, .. } if answer.name == "_result" && code == "NetConnection.Connect.Success" => {
                Ok((peer, answer))
            }
            Status { code, .. } => Err(Trouble::Refused { what: "connect".to_owned(), code }),
        }
    }

    /// Past createStream.
    pub(super) async fn ready(&self, side: Side) -> Result<Peer, Trouble> {
        let mut peer = self.connected(side).await?;
        create_stream(&mut peer).await?;
        Ok(peer)
    }

    /// Publishes under this check's name.
    pub(super) async fn publisher(&self) -> Result<Peer, Trouble> {
        self.publisher_of(&self.key(Side::Publish)).await
    }

    pub(super) async fn publisher_of(&self, key: &str) -> Result<Peer, Trouble> {
        let mut peer = self.ready(Side::Publish).await?;
        publish(&mut peer, [Value::string(key), Value::string("live")]).await?;
        Ok(peer)
    }

    /// Plays this check's stream, as [`Lab::watch`] does.
    pub(super) async fn viewer(&self) -> Result<Peer, Trouble> {
        let mut peer = self.ready(Side::Play).await?;
        self.watch(&mut peer).await?;
        Ok(peer)
    }

    /// Plays this check's stream, and waits until it begins. A server may say Play.Start while it still fetches the stream from another
    /// one: what is published before it has joined there is not for this viewer. Servers that have nothing for a viewer
    /// who joins are not waited for in vain for long.
    pub(super) async fn watch(&self, peer: &mut Peer) -> Result<(), Trouble> {
        play(peer, &self.key(Side::Play)).await?;
        peer.begins(self.quiet() * PATIENCE).await
    }

    /// A connection that does nothing: it is there to see whether the server lives on.
    pub(super) async fn witness(&self) -> Result<Witness, Trouble> {
        Ok(Witness { peer: self.connected(Side::Publish).await?, patience: self.quiet() * PATIENCE })
    }
}

/// See [`Lab::witness`].
pub(super) struct Witness {
    peer: Peer,
    patience: Duration,
}

/// How many quiet times a connection may take for what it is to bring: an answer where nothing was done to it, or the first media.
pub(super) const PATIENCE: u32 = 4;

impl Witness {
    /// The server has neither ended nor begun anew.
    pub async fn sees_it_alive(mut self) -> Result<(), Trouble> {
        // What was looked at before may have taken all the time there was.
        self.peer.grant(self.patience);
        let alive = self.peer.goes_on().await;
        alive.map_err(|trouble| Trouble::other(format!("another connection suffered: {trouble}")))
    }
}

impl Connect {
    pub fn command(self) -> Command {
        let app = [("app".to_owned(), Value::String(self.app))];
        let object = self.before.into_iter().chain(app).chain(self.after).collect();
        Command::new("connect", CONNECT, Value::Object(object), self.arguments)
    }

    pub fn with(mut self, name: &str, value: Value) -> Connect {
        self.after.push((name.to_owned(), value));
        self
    }
}

/// Asks for a message stream.
pub(super) async fn create_stream(peer: &mut Peer) -> Result<(), Trouble> {
    let transaction = peer.call(0, "createStream", []).await?;
    let answer = peer.answer(transaction, "the answer to createStream").await?;
    match answer.argument(0).and_then(Value::as_number) {
        Some(id) if answer.name == "_result" && id >= 1.0 => {
            peer.stream_id = id as u32;
            Ok(())
        }
        _ => Err(Trouble::Refused { what: "createStream".to_owned(), code: Status::of(&answer).code }),
    }
}

/// Publishes, with these arguments, and waits for the word that media may be sent.
pub(super) async fn publish(peer: &mut Peer, arguments: impl Into<Vec<Value>>) -> Result<Status, Trouble> {
    peer.call(peer.stream_id, "publish", arguments).await?;
    peer.status("the answer to publish", &[PUBLISH_START]).await
}

/// Plays, and waits for the word that it starts.
pub(super) async fn play(peer: &mut Peer, key: &str) -> Result<(), Trouble> {
    let arguments = [Value::string(key), Value::Number(-2000.0)];
    peer.call(peer.stream_id, "play", arguments).await?;
    peer.status("the answer to play", &[PLAY_START]).await.map(drop)
}

pub(super) const PUBLISH_START: &str = "NetStream.Publish.Start";
pub(super) const PLAY_START: &str = "NetStream.Play.Start";
