//! `rml_rtmp`, the RTMP library of Rust programs and of mmids: a client that publishes and one that plays. As a server it is
//! in `tests/strict_origin.rs`.

use crate::common::cluster::Cluster;
use crate::common::endpoint;
use crate::common::ffmpeg::Clip;
use crate::flow;
use crate::run::{self, NAME, SECONDS};
use bytes::Bytes;
use lb::media::Packet;
use rml_rtmp::handshake::{Handshake, HandshakeProcessResult, PeerType};
use rml_rtmp::sessions::{
    ClientSession, ClientSessionConfig, ClientSessionEvent, ClientSessionResult, PublishRequestType,
};
use rml_rtmp::time::RtmpTimestamp;
use std::io;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::task::AbortOnDropHandle;

const DEADLINE: Duration = Duration::from_secs(20);

/// A client that is connected, and what it was sent.
struct Client {
    socket: TcpStream,
    session: ClientSession,
    connected: bool,
    ready: bool,
    media: Vec<Packet>,
}

impl Client {
    /// Connects to `rtmp://host:port/app/…`.
    async fn connect(url: &str) -> io::Result<Client> {
        let (host, path) = url.trim_start_matches("rtmp://").split_once('/').unwrap();
        let app = path.split('/').next().unwrap();
        let mut socket = TcpStream::connect(host).await?;
        let rest = shake_hands(&mut socket).await?;
        let (session, first) = ClientSession::new(ClientSessionConfig::new()).map_err(io::Error::other)?;
        let mut client = Client { socket, session, connected: false, ready: false, media: Vec::new() };
        client.take(first).await?;
        client.input(&rest).await?;
        let request = client.session.request_connection(app.to_owned()).map_err(io::Error::other)?;
        client.take(vec![request]).await?;
        while !client.connected {
            client.receive().await?;
        }
        Ok(client)
    }

    async fn receive(&mut self) -> io::Result<()> {
        let mut buffer = [0; 16 << 10];
        match self.socket.read(&mut buffer).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            n => self.input(&buffer[..n]).await,
        }
    }

    async fn input(&mut self, bytes: &[u8]) -> io::Result<()> {
        let results = self.session.handle_input(bytes).map_err(io::Error::other)?;
        self.take(results).await
    }

    async fn take(&mut self, results: Vec<ClientSessionResult>) -> io::Result<()> {
        for result in results {
            match result {
                ClientSessionResult::OutboundResponse(packet) => self.socket.write_all(&packet.bytes).await?,
                ClientSessionResult::RaisedEvent(event) => self.event(event),
                ClientSessionResult::UnhandleableMessageReceived(_) => {}
            }
        }
        Ok(())
    }

    fn event(&mut self, event: ClientSessionEvent) {
        match event {
            ClientSessionEvent::ConnectionRequestAccepted => self.connected = true,
            ClientSessionEvent::PublishRequestAccepted | ClientSessionEvent::PlaybackRequestAccepted => {
                self.ready = true;
            }
            ClientSessionEvent::VideoDataReceived { data, timestamp } => {
                self.media.push(Packet::video(timestamp.value, Bytes::from(data.to_vec())));
            }
            ClientSessionEvent::AudioDataReceived { data, timestamp } => {
                self.media.push(Packet::audio(timestamp.value, Bytes::from(data.to_vec())));
            }
            _ => {}
        }
    }

    /// Sends a clip in real time, until it has ended or the server closes.
    async fn publish(mut self, packets: &[Packet]) -> io::Result<()> {
        let request = self.session.request_publishing(NAME.to_owned(), PublishRequestType::Live);
        self.take(vec![request.map_err(io::Error::other)?]).await?;
        while !self.ready {
            self.receive().await?;
        }
        let begin = Instant::now();
        for packet in packets {
            sleep_until(begin + Duration::from_millis(packet.timestamp.into())).await;
            let (time, body) = (RtmpTimestamp::new(packet.timestamp), packet.body.to_vec().into());
            let sent = match packet.type_id() {
                8 => self.session.publish_audio_data(body, time, false),
                9 => self.session.publish_video_data(body, time, false),
                _ => continue,
            };
            self.take(vec![sent.map_err(io::Error::other)?]).await?;
        }
        Ok(())
    }
}

/// The handshake; gives back what came behind it.
async fn shake_hands(socket: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut handshake = Handshake::new(PeerType::Client);
    let first = handshake.generate_outbound_p0_and_p1().map_err(io::Error::other)?;
    socket.write_all(&first).await?;
    let mut buffer = [0; 4096];
    loop {
        let n = socket.read(&mut buffer).await?;
        match handshake.process_bytes(&buffer[..n]).map_err(io::Error::other)? {
            HandshakeProcessResult::InProgress { response_bytes } => {
                socket.write_all(&response_bytes).await?
            }
            HandshakeProcessResult::Completed { response_bytes, remaining_bytes } => {
                socket.write_all(&response_bytes).await?;
                return Ok(remaining_bytes);
            }
        }
    }
}

pub fn publishes() {
    let cluster = Cluster::start(1);
    let url = cluster.ingest_url(0, NAME);
    let publisher = AbortOnDropHandle::new(endpoint::runtime().spawn(async move {
        let packets = flow::packets(Clip::Alpha.file());
        Client::connect(&url).await?.publish(&packets).await
    }));
    cluster.wait_published(NAME);
    run::serves(&cluster.live_url(NAME));
    drop(publisher);
}

pub fn plays() {
    let clip = flow::packets(Clip::Alpha.file());
    run::plays(|url| {
        let frames = |media: &[Packet]| media.iter().filter(|packet| packet.kind.is_video_frame()).count();
        let playing = async {
            let mut client = Client::connect(url).await?;
            let request = client.session.request_playback(NAME.to_owned()).map_err(io::Error::other)?;
            client.take(vec![request]).await?;
            while frames(&client.media) < SECONDS as usize * 30 {
                client.receive().await?;
            }
            io::Result::Ok(client.media)
        };
        let played = endpoint::runtime().block_on(async { timeout(DEADLINE, playing).await });
        let played = played.expect("it gets its frames in time").unwrap();
        flow::assert_shown(&played, &clip);
    });
}
