//! What a peer may call, and what each call does.

use super::{BAD_NAME, ConnectCall, Server, State};
use crate::rtmp::amf0::{self, Value};
use crate::rtmp::message::Command;
use crate::rtmp::session::event::{Connect, Event, Play, Publish, PublishKind};
use crate::rtmp::session::link::info;
use crate::rtmp::session::{CAN_FORWARD, CAPS_EX, PLAY_STREAM_ID, names};
use crate::rtmp::{CODECS, Error};

impl Server {
    /// Takes one call. An error ends the connection.
    pub(super) fn command(&mut self, command: &Command) -> Result<(), Error> {
        let greeted = matches!(self.state, State::Greeted);
        match command.name.as_str() {
            "connect" if greeted => self.connect(command)?,
            _ if greeted => self.link.ignored += 1,
            "publish" => self.publish(command)?,
            "play" => self.play(command)?,
            "play2" => self.play2(command)?,
            "pause" | "pauseRaw" if matches!(self.state, State::Playing) => self.pause(command),
            // A warning, as players take an error for the end.
            "seek" => {
                self.link.status("warning", "NetStream.Seek.Failed", "A live stream has one place only.");
            }
            // All viewers get the same bytes, audio and video.
            "receiveAudio" | "receiveVideo" => {}
            "createStream" => match self.state {
                State::Idle => self.link.result(command, Value::Number(PLAY_STREAM_ID.into())),
                _ => self.link.error(command, "One stream a connection."),
            },
            "closeStream" => self.close_stream(),
            "deleteStream" => self.stop(),
            "FCPublish" | "FCSubscribe" | "FCUnpublish" => self.flash(command),
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

    fn connect(&mut self, command: &Command) -> Result<(), Error> {
        let text = |name| command.object.get(name).and_then(Value::as_str).unwrap_or_default();
        let (app, tc_url) = (text("app"), text("tcUrl"));
        self.check_length("app", app)?;
        self.check_length("tcUrl", tc_url)?;
        let names::App { app, instance, query } = names::split_app(app);
        let (tc_url, tc_query) = names::split_query(tc_url);
        self.instance = instance;
        self.query = query.or(tc_query);
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

    fn publish(&mut self, command: &Command) -> Result<(), Error> {
        if !matches!(self.state, State::Idle) {
            self.link.status("error", BAD_NAME, "This connection has a stream already.");
            return Ok(());
        }
        let (stream_key, query) = self.stream_key(command.argument(0))?;
        let kind = command.argument(1).and_then(Value::as_str).unwrap_or_default();
        let kind = match kind.to_ascii_lowercase().as_str() {
            "record" => PublishKind::Record,
            "append" => PublishKind::Append,
            _ => PublishKind::Live,
        };
        self.link.set_publishing(true);
        self.state = State::PublishAsked;
        self.events.push_back(Event::Publish(Publish { stream_key, query, kind }));
        Ok(())
    }

    fn play(&mut self, command: &Command) -> Result<(), Error> {
        // `play(false)` is how ActionScript stops.
        if command.argument(0) == Some(&Value::Boolean(false)) {
            self.stop();
            return Ok(());
        }
        let number = |index, default| command.argument(index).and_then(Value::as_number).unwrap_or(default);
        let reset = command.argument(3).and_then(Value::as_bool).unwrap_or(true);
        self.start_play(command.argument(0), number(1, -2.0), number(2, -1.0), reset)
    }

    fn play2(&mut self, command: &Command) -> Result<(), Error> {
        let options = command.argument(0);
        let number =
            |name, default| options.and_then(|options| options.get(name)?.as_number()).unwrap_or(default);
        let key = options.and_then(|options| options.get("streamName"));
        self.start_play(key, number("start", -2.0), number("len", -1.0), true)
    }

    fn start_play(
        &mut self,
        key: Option<&Value>,
        start: f64,
        duration: f64,
        reset: bool,
    ) -> Result<(), Error> {
        match self.state {
            State::Idle => {}
            // Another play replaces the one that runs.
            State::Playing => self.stop(),
            _ => {
                self.link.status("error", "NetStream.Play.Failed", "This connection publishes.");
                return Ok(());
            }
        }
        let (stream_key, query) = self.stream_key(key)?;
        self.state = State::PlayAsked { reset };
        self.events.push_back(Event::Play(Play { stream_key, query, start, duration, reset }));
        Ok(())
    }

    fn pause(&mut self, command: &Command) {
        let paused = command.argument(0).and_then(Value::as_bool).unwrap_or(true);
        let millis = command.argument(1).and_then(Value::as_number).unwrap_or(0.0);
        match paused {
            true => self.link.status("status", "NetStream.Pause.Notify", "Paused."),
            false => self.link.status("status", "NetStream.Unpause.Notify", "Playing again."),
        }
        self.events.push_back(Event::Pause { paused, millis });
    }

    fn close_stream(&mut self) {
        match self.state {
            State::Publishing => {
                self.link.status("status", "NetStream.Unpublish.Success", "Stopped publishing.");
            }
            State::Playing => self.link.status("status", "NetStream.Play.Stop", "Stopped playing."),
            _ => {}
        }
        self.stop();
    }

    /// The calls of Flash Media encoders and edges around publish and play.
    fn flash(&mut self, command: &Command) {
        let (name, code) = match command.name.as_str() {
            "FCPublish" => ("onFCPublish", "NetStream.Publish.Start"),
            "FCSubscribe" => ("onFCSubscribe", "NetStream.Play.Start"),
            _ => ("onFCUnpublish", "NetStream.Unpublish.Success"),
        };
        self.link.result(command, Value::Undefined);
        let info = [info("status", code, &format!("{} to stream.", command.name))];
        self.link.command(0, Command::new(name, 0.0, Value::Null, info));
        if command.name == "FCUnpublish" {
            self.stop();
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
    if let Some(caps) = object.get("capsEx").and_then(Value::as_number) {
        // The cast saturates, so any number is safe.
        answer.push(("capsEx".to_owned(), Value::Number((caps as u32 & CAPS_EX).into())));
    }
    answer
}
