//! What a peer may call, and what each call does.

use super::{BAD_NAME, ConnectCall, Doing, Effect, Server, State};
use crate::rtmp::amf0::{self, Value};
use crate::rtmp::message::{Command, Message};
use crate::rtmp::session::event::{Connect, Event, Play, Publish, PublishKind, Receives};
use crate::rtmp::session::link::info;
use crate::rtmp::session::{CAN_FORWARD, CAPS_EX, CAPS_RECONNECT, names};
use crate::rtmp::{CODECS, Error};

impl Server {
    /// Takes one call. An error ends the connection.
    pub(super) fn command(&mut self, message: Message, command: &Command) -> Result<(), Error> {
        let greeted = matches!(self.state, State::Greeted);
        match command.name.as_str() {
            "connect" if greeted => self.connect(command)?,
            _ if greeted => self.link.ignored += 1,
            "publish" | "play" | "play2" | "pause" | "pauseRaw" | "seek" | "receiveAudio"
            | "receiveVideo" | "closeStream" => self.stream_command(message, command)?,
            "createStream" => {
                let max = self.link.limits.message_streams;
                match self.streams.create(max) {
                    Some(id) => self.link.result(command, Value::Number(id.into())),
                    None => self.link.error(command, &format!("At most {max} message streams a connection.")),
                }
            }
            "deleteStream" => {
                // The cast saturates, so any number is safe.
                let named = command.argument(0).and_then(Value::as_number).map(|id| id as u32);
                let stream_id = self.streams.meant_by(named.unwrap_or(message.stream_id));
                self.stop_all(stream_id);
                self.streams.remove(stream_id);
            }
            "FCPublish" | "FCSubscribe" | "FCUnpublish" => self.flash(message.stream_id, command),
            "releaseStream" | "_checkbw" => self.link.result(command, Value::Undefined),
            "getStreamLength" => self.link.result(command, Value::Number(0.0)),
            // Answers to what was never asked: an answer to them could go on for ever.
            "_result" | "_error" | "onStatus" => self.link.ignored += 1,
            _ => {
                self.link.ignored += 1;
                self.link.error(command, "Unknown call.");
            }
        }
        Ok(())
    }

    /// A call of a message stream (§7.2.2), which waits for its turn there.
    fn stream_command(&mut self, message: Message, command: &Command) -> Result<(), Error> {
        let stream_id = self.streams.meant_by(message.stream_id);
        let stops = command.name == "play" && command.argument(0) == Some(&Value::Boolean(false));
        let effect = if stops { Effect::Ends } else { Effect::of(&command.name) };
        // What was held back behind one request may be another one, to which the same applies.
        while self.streams.get(stream_id).is_some_and(|stream| stream.is_withdrawn_by(effect)) {
            self.stop(stream_id);
            self.resume(stream_id);
        }
        if self.streams.get(stream_id).is_some_and(|stream| stream.is_waiting()) {
            return self.defer(stream_id, message, effect);
        }
        match command.name.as_str() {
            "publish" => self.publish(stream_id, command),
            "play" if stops => {
                self.stop(stream_id);
                Ok(())
            }
            "play" => self.play(stream_id, command),
            "play2" => self.play2(stream_id, command),
            name => {
                self.control_play(stream_id, name, command);
                Ok(())
            }
        }
    }

    /// The calls of a viewer around its play.
    fn control_play(&mut self, stream_id: u32, name: &str, command: &Command) {
        let doing = self.streams.get(stream_id).map_or(Doing::Nothing, |stream| stream.doing);
        match name {
            "pause" | "pauseRaw" if doing == Doing::Playing => self.pause(stream_id, command),
            "pause" | "pauseRaw" => self.link.ignored += 1,
            // A warning, as players take an error for the end.
            "seek" => {
                let description = "A live stream has one place only.";
                self.link.status(stream_id, "warning", "NetStream.Seek.Failed", description);
            }
            "receiveAudio" | "receiveVideo" => self.receive(stream_id, name, command),
            _ => self.close_stream(stream_id, doing),
        }
    }

    fn connect(&mut self, command: &Command) -> Result<(), Error> {
        let text = |name| command.object.get(name).and_then(Value::as_str).unwrap_or_default();
        let (app, tc_url) = (text("app"), text("tcUrl"));
        self.check_length("app", app)?;
        self.check_length("tcUrl", tc_url)?;
        let names::App { app, instance, query } = names::split_app(app);
        let (tc_url, tc_query) = names::split_query(tc_url);
        self.instance = instance;
        self.query = query.or(tc_query);
        self.reconnects = caps(&command.object).is_some_and(|caps| caps & CAPS_RECONNECT != 0);
        let connect = Connect {
            app,
            query: self.query.clone(),
            tc_url: tc_url.to_owned(),
            flash_ver: text("flashVer").to_owned(),
        };
        self.state = State::ConnectAsked(Box::new(ConnectCall {
            transaction: command.transaction,
            enhanced: enhanced_answer(&command.object),
        }));
        self.events.push_back(Event::Connect(connect));
        Ok(())
    }

    fn publish(&mut self, stream_id: u32, command: &Command) -> Result<(), Error> {
        let (stream_key, query) = self.stream_key(command.argument(0))?;
        let kind = command.argument(1).and_then(Value::as_str).unwrap_or_default();
        let kind = match kind.to_ascii_lowercase().as_str() {
            "record" => PublishKind::Record,
            "append" => PublishKind::Append,
            _ => PublishKind::Live,
        };
        let max = self.link.limits.message_streams;
        let refused = match self.streams.get_or_create(stream_id, max) {
            Some(stream) if stream.doing == Doing::Nothing => {
                stream.doing = Doing::PublishAsked;
                None
            }
            Some(_) => Some("This message stream is in use already."),
            None => Some("Too many message streams."),
        };
        match refused {
            Some(why) => self.link.status(stream_id, "error", BAD_NAME, why),
            None => {
                self.link.set_publishing(true);
                self.events.push_back(Event::Publish(Publish { stream_id, stream_key, query, kind }));
            }
        }
        Ok(())
    }

    fn play(&mut self, stream_id: u32, command: &Command) -> Result<(), Error> {
        let number = |index, default| command.argument(index).and_then(Value::as_number).unwrap_or(default);
        let reset = command.argument(3).and_then(Value::as_bool).unwrap_or(true);
        self.start_play(stream_id, command.argument(0), number(1, -2.0), number(2, -1.0), reset)
    }

    fn play2(&mut self, stream_id: u32, command: &Command) -> Result<(), Error> {
        let options = command.argument(0);
        let number =
            |name, default| options.and_then(|options| options.get(name)?.as_number()).unwrap_or(default);
        let key = options.and_then(|options| options.get("streamName"));
        self.start_play(stream_id, key, number("start", -2.0), number("len", -1.0), true)
    }

    fn start_play(
        &mut self,
        stream_id: u32,
        key: Option<&Value>,
        start: f64,
        duration: f64,
        reset: bool,
    ) -> Result<(), Error> {
        if self.streams.get(stream_id).is_some_and(|stream| stream.doing == Doing::Playing) {
            // Another play replaces the one that runs.
            self.stop(stream_id);
        }
        let (stream_key, query) = self.stream_key(key)?;
        let max = self.link.limits.message_streams;
        let refused = match self.streams.get_or_create(stream_id, max) {
            Some(stream) if stream.doing == Doing::Nothing => {
                stream.doing = Doing::PlayAsked { reset };
                let receives = stream.receives;
                let play = Play { stream_id, stream_key, query, start, duration, reset, receives };
                self.events.push_back(Event::Play(play));
                return Ok(());
            }
            Some(_) => "This message stream publishes.",
            None => "Too many message streams.",
        };
        self.link.status(stream_id, "error", "NetStream.Play.Failed", refused);
        Ok(())
    }

    fn pause(&mut self, stream_id: u32, command: &Command) {
        let paused = command.argument(0).and_then(Value::as_bool).unwrap_or(true);
        let millis = command.argument(1).and_then(Value::as_number).unwrap_or(0.0);
        let (code, description) = match paused {
            true => ("NetStream.Pause.Notify", "Paused."),
            false => ("NetStream.Unpause.Notify", "Playing again."),
        };
        self.link.status(stream_id, "status", code, description);
        self.events.push_back(Event::Pause { stream_id, paused, millis });
    }

    /// Holds a kind of media back, or sends it again; answered only then (§7.2.2.4, §7.2.2.5).
    fn receive(&mut self, stream_id: u32, name: &str, command: &Command) {
        let wants = command.argument(0).and_then(Value::as_bool).unwrap_or(true);
        let max = self.link.limits.message_streams;
        let Some(stream) = self.streams.get_or_create(stream_id, max) else {
            self.link.ignored += 1;
            return;
        };
        let before = stream.receives;
        stream.receives = match name {
            "receiveAudio" => Receives { audio: wants, ..before },
            _ => Receives { video: wants, ..before },
        };
        let wanted = stream.receives;
        if wanted == before || stream.doing != Doing::Playing {
            return;
        }
        if wants {
            self.link.status(stream_id, "status", "NetStream.Seek.Notify", "Sending it again.");
            self.link.status(stream_id, "status", "NetStream.Play.Start", "Started playing.");
        }
        self.events.push_back(Event::Receive { stream_id, wanted });
    }

    fn close_stream(&mut self, stream_id: u32, doing: Doing) {
        let ended = match doing {
            Doing::Publishing => Some(("NetStream.Unpublish.Success", "Stopped publishing.")),
            Doing::Playing => Some(("NetStream.Play.Stop", "Stopped playing.")),
            _ => None,
        };
        if let Some((code, description)) = ended {
            self.link.status(stream_id, "status", code, description);
        }
        self.stop(stream_id);
    }

    /// The calls of Flash Media encoders and edges around publish and play. They come on the connection and name a key, which
    /// encoders write in different ways: what ends is the publish of the connection.
    fn flash(&mut self, stream_id: u32, command: &Command) {
        let (name, code) = match command.name.as_str() {
            "FCPublish" => ("onFCPublish", "NetStream.Publish.Start"),
            "FCSubscribe" => ("onFCSubscribe", "NetStream.Play.Start"),
            _ => ("onFCUnpublish", "NetStream.Unpublish.Success"),
        };
        self.link.result(command, Value::Undefined);
        let info = [info("status", code, &format!("{} to stream.", command.name))];
        self.link.command(0, Command::new(name, 0.0, Value::Null, info));
        if command.name == "FCUnpublish" {
            let own = self.streams.get(stream_id).filter(|stream| stream.publishes());
            let publish = own.or_else(|| self.streams.iter().find(|stream| stream.publishes()));
            if let Some(stream_id) = publish.map(|stream| stream.id) {
                self.stop_all(stream_id);
            }
        }
    }

    fn stream_key(&self, value: Option<&Value>) -> Result<(String, Option<String>), Error> {
        let key = value.and_then(Value::as_str).unwrap_or_default();
        self.check_length("stream key", key)?;
        let (name, query) = names::stream_key(&self.instance, key);
        Ok((name, query.or_else(|| self.query.clone())))
    }

    fn check_length(&self, what: &'static str, text: &str) -> Result<(), Error> {
        let (length, max) = (text.len(), self.link.limits.name_bytes);
        if length > max { Err(Error::NameTooLong { what, length, max }) } else { Ok(()) }
    }
}

/// The `capsEx` of a connect's object. The cast saturates, so any number is safe.
fn caps(object: &Value) -> Option<u32> {
    object.get("capsEx").and_then(Value::as_number).map(|caps| caps as u32)
}

/// Answers in kind to the fields of Enhanced RTMP in a connect's object: every codec can be forwarded, as bodies are
/// passed on verbatim.
fn enhanced_answer(object: &Value) -> amf0::Properties {
    let mut answer = Vec::new();
    if let Some(Value::StrictArray(codecs)) = object.get("fourCcList") {
        let short = |codec: &&Value| codec.as_str().is_some_and(|text| text.len() <= 4);
        let codecs = codecs.iter().filter(short).take(CODECS).cloned().collect();
        answer.push(("fourCcList".to_owned(), Value::StrictArray(codecs)));
    }
    for name in ["videoFourCcInfoMap", "audioFourCcInfoMap"] {
        if object.get(name).is_some() {
            let any_codec = Value::object([("*", Value::Number(CAN_FORWARD))]);
            answer.push((name.to_owned(), any_codec));
        }
    }
    if let Some(caps) = caps(object) {
        answer.push(("capsEx".to_owned(), Value::Number((caps & (CAPS_EX | CAPS_RECONNECT)).into())));
    }
    answer
}
