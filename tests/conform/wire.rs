//! Chunks as the faulty server reads them.

use bytes::{Buf, Bytes, BytesMut};
use lb::rtmp::Message;
use std::collections::HashMap;
use std::io;
use tokio::io::AsyncReadExt;
use tokio::net::tcp::OwnedReadHalf;

/// What is read wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    NoId2,
    NoId3,
    OnePartial,
    ControlEndsPartial,
    Format1Delta,
    Format2Delta,
    Format3Delta,
    Format3After0,
    NoSmallSize,
    No65536,
    NoLargeSize,
    FirstSizeOnly,
    NoAbort,
    EmptyCloses,
    LiteralFfffff,
    ExtendedIsPayload,
    ExtendedAlwaysRepeated,
    DeltaForgetsExtended,
}

/// Why no more can be read.
pub enum ReadError {
    Io(#[allow(dead_code)] io::Error),
    /// A message of 16 MB was announced.
    Unfinished,
    /// A chunk refers to nothing.
    NoHeader,
    ManyChunkStreams,
    ChunkSize0,
    /// Nothing that makes sense.
    Noise,
}

impl From<io::Error> for ReadError {
    fn from(error: io::Error) -> Self {
        ReadError::Io(error)
    }
}

/// A message, as it was read.
#[derive(Clone, Debug)]
pub struct Chunk {
    pub type_id: u8,
    pub time: u32,
    pub stream_id: u32,
    pub body: Bytes,
}

impl Chunk {
    pub fn message(&self) -> Message {
        Message {
            type_id: self.type_id,
            timestamp: self.time,
            stream_id: self.stream_id,
            chunk_stream_id: 3,
            body: self.body.clone(),
        }
    }
}

#[derive(Default)]
struct State {
    time: u32,
    delta: u32,
    /// The last header was of format 0.
    absolute: bool,
    extended: Option<u32>,
    length: usize,
    type_id: u8,
    stream_id: u32,
    body: Option<BytesMut>,
}

/// A connection's incoming side. Reading can be given up at any point and taken up again.
pub struct Input {
    half: OwnedReadHalf,
    buffer: BytesMut,
    fault: Option<Wire>,
    states: HashMap<u32, State>,
    chunk_size: usize,
    sizes: u32,
    read: u64,
}

/// Chunk streams that one peer may use.
const CHUNK_STREAMS: usize = 1000;

/// The longest message.
const LENGTH: usize = 4 << 20;

impl Input {
    pub fn new(half: OwnedReadHalf, fault: Option<Wire>) -> Input {
        let (buffer, states) = (BytesMut::new(), HashMap::new());
        Input { half, buffer, fault, states, chunk_size: 128, sizes: 0, read: 0 }
    }

    /// Bytes since [`Input::begin`].
    pub fn received(&self) -> u64 {
        self.read - self.buffer.len() as u64
    }

    /// The handshake is over.
    pub fn begin(&mut self) {
        self.read = self.buffer.len() as u64;
    }

    pub fn buffered(&self) -> usize {
        self.buffer.len()
    }

    /// Drops what was read and not taken.
    pub fn clear(&mut self) {
        self.buffer.clear();
    }

    /// Drops what is on its way.
    pub async fn settle(&mut self) -> io::Result<()> {
        let mut bytes = [0; 4096];
        while let Ok(Ok(1..)) =
            tokio::time::timeout(std::time::Duration::ZERO, self.half.read(&mut bytes)).await
        {}
        self.clear();
        Ok(())
    }

    async fn fill(&mut self) -> io::Result<()> {
        self.buffer.reserve(16 << 10);
        match self.half.read_buf(&mut self.buffer).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            count => {
                self.read += count as u64;
                Ok(())
            }
        }
    }

    pub async fn peek(&mut self, count: usize) -> io::Result<&[u8]> {
        while self.buffer.len() < count {
            self.fill().await?;
        }
        Ok(&self.buffer[..count])
    }

    pub async fn take(&mut self, count: usize) -> io::Result<Bytes> {
        self.peek(count).await?;
        Ok(self.buffer.split_to(count).freeze())
    }

    fn has(&self, fault: Wire) -> bool {
        self.fault == Some(fault)
    }

    /// The next whole message. What sets the chunk size or aborts is applied here.
    pub async fn message(&mut self) -> Result<Chunk, ReadError> {
        loop {
            // A chunk is looked at until it is whole, and only then taken: so this can be given up while it waits.
            match self.chunk()? {
                None => self.fill().await?,
                Some(None) => {}
                Some(Some(message)) => match message.type_id {
                    1 if message.body.len() >= 4 => self.set_size((&message.body[..]).get_u32())?,
                    2 if message.body.len() >= 4 && !self.has(Wire::NoAbort) => {
                        let id = (&message.body[..]).get_u32();
                        self.states.entry(id).or_default().body = None;
                    }
                    _ if message.body.is_empty() && self.has(Wire::EmptyCloses) => {
                        return Err(ReadError::Noise);
                    }
                    _ => return Ok(message),
                },
            }
        }
    }

    fn set_size(&mut self, size: u32) -> Result<(), ReadError> {
        self.sizes += 1;
        match (size, self.fault) {
            (0, _) => return Err(ReadError::ChunkSize0),
            (..64, Some(Wire::NoSmallSize)) | (65_536, Some(Wire::No65536)) => return Err(ReadError::Noise),
            (0x100_0000.., Some(Wire::NoLargeSize)) => return Err(ReadError::Noise),
            (_, Some(Wire::FirstSizeOnly)) if self.sizes > 1 => {}
            _ => self.chunk_size = (size as usize).min(LENGTH),
        }
        Ok(())
    }

    /// Takes a chunk, if all of it is there; the message that it ends, if it ends one.
    fn chunk(&mut self) -> Result<Option<Option<Chunk>>, ReadError> {
        let fault = self.fault;
        let has = |wanted: Wire| fault == Some(wanted);
        let mut rest = &self.buffer[..];
        let Ok(first) = rest.try_get_u8() else { return Ok(None) };
        let format = first >> 6;
        let id = match first & 0x3F {
            0 if has(Wire::NoId2) => return Err(ReadError::Noise),
            1 if has(Wire::NoId3) => return Err(ReadError::Noise),
            0 => match rest.try_get_u8() {
                Ok(low) => 64 + u32::from(low),
                Err(_) => return Ok(None),
            },
            1 => match rest.try_get_u16_le() {
                Ok(both) => 64 + u32::from(both),
                Err(_) => return Ok(None),
            },
            id => id.into(),
        };
        if !self.states.contains_key(&id) {
            match format {
                // By the chunk stream it is told from noise.
                3 if id == 10 => return Err(ReadError::NoHeader),
                1..=3 => return Err(ReadError::Noise),
                _ if self.states.len() >= CHUNK_STREAMS => return Err(ReadError::ManyChunkStreams),
                _ => {}
            }
        }
        let header = [11, 7, 3, 0][usize::from(format)];
        if rest.len() < header {
            return Ok(None);
        }
        let known = self.states.get(&id);
        let partial = known.and_then(|state| state.body.as_ref()).map(BytesMut::len);
        if partial.is_some() && format != 3 {
            return Err(ReadError::Noise);
        }
        let mut field = (format < 3).then(|| rest.get_uint(3) as u32);
        let mut length = known.map_or(0, |state| state.length);
        let mut type_id = known.map_or(0, |state| state.type_id);
        let mut stream_id = known.map_or(0, |state| state.stream_id);
        if format < 2 {
            length = rest.get_uint(3) as usize;
            type_id = rest.get_u8();
        }
        if format == 0 {
            stream_id = rest.get_u32_le();
        }
        let mut extended = None;
        if field == Some(0xFF_FFFF) {
            let Some(time) = rest.first_chunk().map(|bytes| u32::from_be_bytes(*bytes)) else {
                return Ok(None);
            };
            if !(has(Wire::LiteralFfffff) && time == 0xFF_FFFF) {
                rest.advance(4);
            }
            (field, extended) = (Some(time), Some(time));
        } else if let (3, Some(time)) = (format, known.and_then(|state| state.extended)) {
            // Four bytes are needed to tell; there are more, as no message here is shorter.
            let Some(next) = rest.first_chunk().map(|bytes| u32::from_be_bytes(*bytes)) else {
                return Ok(None);
            };
            extended = Some(time);
            if has(Wire::ExtendedAlwaysRepeated) || (next == time && !has(Wire::ExtendedIsPayload)) {
                rest.advance(4);
            }
        }
        if length == 0xFF_FFFF {
            return Err(ReadError::Unfinished);
        }
        if length > LENGTH {
            return Err(ReadError::Noise);
        }
        let piece = (length - partial.unwrap_or(0)).min(self.chunk_size);
        if rest.len() < piece {
            return Ok(None);
        }
        let header = self.buffer.len() - rest.len();
        self.buffer.advance(header);
        let payload = self.buffer.split_to(piece);
        if has(Wire::OnePartial) && id != 2 {
            self.states
                .iter_mut()
                .filter(|(other, _)| **other != id)
                .for_each(|(_, state)| state.body = None);
        }
        if has(Wire::ControlEndsPartial) && id == 2 && type_id == 3 {
            self.states.values_mut().for_each(|state| state.body = None);
        }
        let state = self.states.entry(id).or_default();
        if partial.is_none() {
            state.begin(format, field, extended, fault);
            (state.length, state.type_id, state.stream_id) = (length, type_id, stream_id);
        }
        let body = state.body.get_or_insert_default();
        body.extend_from_slice(&payload);
        if body.len() < length {
            return Ok(Some(None));
        }
        let body = state.body.take().unwrap_or_default().freeze();
        Ok(Some(Some(Chunk { type_id, time: state.time, stream_id, body })))
    }
}

impl State {
    /// Applies the times of a header that begins a message.
    fn begin(&mut self, format: u8, field: Option<u32>, extended: Option<u32>, fault: Option<Wire>) {
        let spoilt = match (format, fault) {
            (1, Some(Wire::Format1Delta)) | (2, Some(Wire::Format2Delta)) => 1,
            (3, Some(Wire::Format3Delta)) if !self.absolute => 1,
            (3, Some(Wire::Format3After0)) if self.absolute => 7,
            _ => 0,
        };
        if format == 1 && self.extended.is_some() && fault == Some(Wire::DeltaForgetsExtended) {
            self.time &= 0xFFFF;
        }
        match (format, field) {
            (0, Some(time)) => (self.time, self.delta) = (time, time),
            (_, Some(delta)) => {
                self.delta = delta;
                self.time = self.time.wrapping_add(delta + spoilt);
            }
            (_, None) => self.time = self.time.wrapping_add(self.delta + spoilt),
        }
        self.absolute = format == 0 || (format == 3 && self.absolute);
        if format < 3 {
            self.extended = extended;
        }
    }
}
