//! Chunks into messages.

use super::{DEFAULT_CHUNK_SIZE, EXTENDED, MAX_MESSAGE_LENGTH};
use crate::rtmp::message::Message;
use crate::rtmp::{Error, Limits};
use bytes::Bytes;
use smallvec::SmallVec;

/// The longest header: three bytes basic, eleven of format 0, four of extended timestamp.
const HEADER_MAX: usize = 18;

/// What is allocated for an unfinished message before its bytes arrive. The announced length is not trusted beyond this;
/// it spares the common message of a few kilobytes a reallocation.
const FIRST_ALLOCATION: usize = 16 << 10;

/// Puts messages together.
///
/// It never keeps input: a payload byte is copied once, into the body it belongs to, and of a header cut in two the
/// first part is kept inline. A reader between messages owns no buffer, unless more than four chunk streams are in use.
///
/// Where peers and the specification are at odds:
/// - A format 3 header that starts a message repeats the previous delta. After a format 0 header the timestamp itself is
///   that delta (§5.3.1.2.4), as ffmpeg, librtmp and SRS read it; nginx-rtmp takes 0. An extended timestamp is never
///   repeated as a delta: two messages are not more than four hours apart, and a sender who does this means the same
///   time again.
/// - An extended timestamp should be repeated on format 3 headers (§5.3.1.3), but some senders don't. So the next bytes
///   are compared with it, and are payload as soon as they differ.
pub struct Reader {
    message_bytes: usize,
    partial_messages: usize,
    partial_bytes: usize,
    chunk_streams: usize,
    max_chunk_size: usize,
    chunk_size: usize,
    streams: SmallVec<[Stream; 4]>,
    partials: SmallVec<[Partial; 1]>,
    /// The stream whose chunk is being read and the payload that the chunk still lacks.
    chunk: Option<(usize, usize)>,
    /// What has arrived of the next header, and in one case of what follows it; see `kept_payload`.
    header: [u8; HEADER_MAX],
    header_len: usize,
}

/// What later headers of a chunk stream may leave out.
struct Stream {
    id: u32,
    timestamp: u32,
    /// The timestamp or delta of the last header that had one.
    field: u32,
    message_stream_id: u32,
    length: u32,
    type_id: u8,
    /// `field` came as an extended timestamp.
    extended: bool,
    /// `field` is a timestamp: the last header was of format 0.
    absolute: bool,
}

/// A message of which bytes are missing.
struct Partial {
    chunk_stream_id: u32,
    body: Vec<u8>,
}

/// One chunk's header as it stands in the bytes.
struct Header {
    format: u8,
    chunk_stream_id: u32,
    /// `None`: nothing beyond the basic header (format 3).
    field: Option<u32>,
    length: u32,
    type_id: u8,
    message_stream_id: u32,
    len: usize,
}

impl Reader {
    /// A reader at the start of a connection, just after the handshake.
    pub fn new(limits: &Limits) -> Self {
        Reader {
            message_bytes: limits.message_bytes,
            partial_messages: limits.partial_messages,
            partial_bytes: limits.partial_bytes,
            chunk_streams: limits.chunk_streams,
            max_chunk_size: limits.chunk_size.min(crate::rtmp::CHUNK_SIZE),
            chunk_size: DEFAULT_CHUNK_SIZE,
            streams: SmallVec::new(),
            partials: SmallVec::new(),
            chunk: None,
            header: [0; HEADER_MAX],
            header_len: 0,
        }
    }

    /// Limits the messages that begin from now on, and the memory of unfinished ones, in bytes.
    pub fn set_message_limits(&mut self, message_bytes: usize, partial_bytes: usize) {
        self.message_bytes = message_bytes;
        self.partial_bytes = partial_bytes;
    }

    /// Takes bytes from the front of `input` until a message is complete. `None` means that all of it was taken and more
    /// is needed. After an error the reader must not be used again.
    pub fn read(&mut self, input: &mut &[u8]) -> Result<Option<Message>, Error> {
        loop {
            let (index, missing) = match self.chunk {
                Some(chunk) => chunk,
                None => match self.next_header(input)? {
                    Some(header) => self.begin_chunk(&header)?,
                    None => return Ok(None),
                },
            };
            let message = match self.header_len {
                0 => self.payload(index, missing, input)?,
                _ => self.kept_payload(index, missing)?,
            };
            if message.is_some() {
                return Ok(message);
            }
            if self.chunk.is_some() && input.is_empty() {
                return Ok(None);
            }
        }
    }

    /// Applies a Set Chunk Size message (§5.4.1) to all chunks that follow.
    pub fn set_chunk_size(&mut self, size: u32) -> Result<(), Error> {
        match usize::try_from(size) {
            Ok(bytes @ 1..) if bytes <= self.max_chunk_size => {
                self.chunk_size = bytes.min(MAX_MESSAGE_LENGTH);
                Ok(())
            }
            _ => Err(Error::ChunkSize { size, max: self.max_chunk_size }),
        }
    }

    /// Applies an Abort message (§5.4.2): what has arrived of that chunk stream's message is dropped. Says whether there
    /// was any.
    pub fn abort(&mut self, chunk_stream_id: u32) -> bool {
        self.take_partial(chunk_stream_id).is_some()
    }

    /// The payload bytes that unfinished messages lack, and one for a header that was cut. Zero between messages.
    pub fn missing(&self) -> usize {
        let received = |id| self.partials.iter().find(|partial| partial.chunk_stream_id == id);
        let begun = self.streams.iter().enumerate().map(|(index, stream)| {
            let length = stream.length as usize;
            match (received(stream.id), self.chunk) {
                (Some(partial), _) => length.saturating_sub(partial.body.len()),
                (None, Some((current, _))) if current == index => length,
                (None, _) => 0,
            }
        });
        begun.sum::<usize>() + usize::from(self.header_len > 0)
    }

    /// Bytes allocated for unfinished messages.
    pub fn partial_bytes(&self) -> usize {
        self.partials.iter().map(|partial| partial.body.capacity()).sum()
    }

    #[cfg(test)]
    pub(super) fn owns_nothing(&self) -> bool {
        !self.partials.spilled() && !self.streams.spilled()
    }

    fn next_header(&mut self, input: &mut &[u8]) -> Result<Option<Header>, Error> {
        if self.header_len == 0
            && let Some(header) = self.parse_header(input)
        {
            *input = input.get(header.len..).unwrap_or_default();
            return Ok(Some(header));
        }
        let kept = self.header_len;
        let more = (HEADER_MAX - kept).min(input.len());
        if let (Some(to), Some(from)) = (self.header.get_mut(kept..kept + more), input.get(..more)) {
            to.copy_from_slice(from);
        }
        let buffer = self.header;
        match self.parse_header(buffer.get(..kept + more).unwrap_or_default()) {
            Some(header) => {
                *input = input.get(header.len.saturating_sub(kept)..).unwrap_or_default();
                self.drop_kept(header.len);
                Ok(Some(header))
            }
            None => {
                *input = &[];
                self.header_len = kept + more;
                Ok(None)
            }
        }
    }

    /// Drops the first of the kept bytes.
    fn drop_kept(&mut self, count: usize) {
        let count = count.min(self.header_len);
        self.header.copy_within(count..self.header_len, 0);
        self.header_len -= count;
    }

    /// Takes payload from the kept bytes. They hold some when the first bytes after a header were the same as those of
    /// an extended timestamp, and only the next ones showed that it is not repeated.
    fn kept_payload(&mut self, index: usize, missing: usize) -> Result<Option<Message>, Error> {
        let kept = self.header;
        let mut rest = kept.get(..self.header_len).unwrap_or_default();
        let message = self.payload(index, missing, &mut rest)?;
        self.drop_kept(self.header_len - rest.len());
        Ok(message)
    }

    /// The header at the start of `bytes`, if all of it is there. 18 bytes are always enough.
    fn parse_header(&self, bytes: &[u8]) -> Option<Header> {
        let (&first, rest) = bytes.split_first()?;
        let format = first >> 6;
        let (chunk_stream_id, rest) = match (first & 0x3F, rest) {
            (0, [low, rest @ ..]) => (64 + u32::from(*low), rest),
            (1, [low, high, rest @ ..]) => (64 + u32::from(*low) + 256 * u32::from(*high), rest),
            (0 | 1, _) => return None,
            (id, rest) => (u32::from(id), rest),
        };
        let known = self.streams.iter().find(|stream| stream.id == chunk_stream_id);
        let mut header = Header {
            format,
            chunk_stream_id,
            field: None,
            length: known.map_or(0, |known| known.length),
            type_id: known.map_or(0, |known| known.type_id),
            message_stream_id: known.map_or(0, |known| known.message_stream_id),
            len: 0,
        };
        let mut rest = rest;
        if format <= 2 {
            header.field = Some(uint24(&mut rest)?);
        }
        if format <= 1 {
            header.length = uint24(&mut rest)?;
            header.type_id = *rest.split_off_first()?;
        }
        if format == 0 {
            header.message_stream_id = u32::from_le_bytes(array(&mut rest)?);
        }
        if header.field == Some(EXTENDED) {
            header.field = Some(u32::from_be_bytes(array(&mut rest)?));
        } else if let (3, Some(known)) = (format, known.filter(|known| known.extended)) {
            let expected = known.field.to_be_bytes();
            let repeated = rest.iter().zip(&expected).all(|(byte, expected)| byte == expected);
            if repeated {
                array::<4>(&mut rest)?;
            }
        }
        header.len = bytes.len() - rest.len();
        Some(header)
    }

    /// Applies a header; gives the stream's index and the payload bytes of this chunk.
    fn begin_chunk(&mut self, header: &Header) -> Result<(usize, usize), Error> {
        let &Header { format, chunk_stream_id, type_id, message_stream_id, .. } = header;
        let partial = self.partials.iter().find(|partial| partial.chunk_stream_id == chunk_stream_id);
        let received = partial.map(|partial| partial.body.len());
        if received.is_some() && format != 3 {
            return Err(Error::HeaderInsideMessage { chunk_stream_id, format });
        }
        let index = match self.streams.iter().position(|stream| stream.id == chunk_stream_id) {
            Some(index) => index,
            None if format != 0 => {
                return Err(Error::NoHeader { chunk_stream_id, format });
            }
            None if self.streams.len() >= self.chunk_streams => {
                return Err(Error::TooManyChunkStreams { chunk_stream_id, max: self.chunk_streams });
            }
            None => {
                self.streams.push(Stream::new(chunk_stream_id));
                self.streams.len() - 1
            }
        };
        let length = header.length as usize;
        if length > self.message_bytes {
            let max = self.message_bytes;
            return Err(Error::MessageTooLong { chunk_stream_id, type_id, length, max });
        }
        if let (None, Some(stream)) = (received, self.streams.get_mut(index)) {
            if let Some(field) = header.field {
                stream.field = field;
                stream.extended = field >= EXTENDED;
                stream.absolute = format == 0;
            }
            let same_time = format == 3 && stream.absolute && stream.extended;
            stream.timestamp = match format {
                0 => stream.field,
                _ if same_time => stream.timestamp,
                _ => stream.timestamp.wrapping_add(stream.field),
            };
            stream.length = header.length;
            stream.type_id = type_id;
            stream.message_stream_id = message_stream_id;
        }
        Ok((index, self.chunk_size.min(length - received.unwrap_or(0))))
    }

    /// Moves payload of the current chunk, of which `missing` bytes have not arrived, from `input` to its message.
    fn payload(&mut self, index: usize, missing: usize, input: &mut &[u8]) -> Result<Option<Message>, Error> {
        let Some(stream) = self.streams.get(index) else {
            return Ok(None);
        };
        let (id, length) = (stream.id, stream.length as usize);
        let taken = input.split_off(..missing.min(input.len())).unwrap_or_default();
        let mut missing = missing - taken.len();
        self.chunk = (missing > 0).then_some((index, missing));

        if taken.is_empty() && length > 0 {
            return Ok(None);
        }
        if taken.len() == length {
            return Ok(self.finish(index, Bytes::copy_from_slice(taken)));
        }
        let at = match self.partials.iter().position(|partial| partial.chunk_stream_id == id) {
            Some(at) => at,
            None if self.partials.len() >= self.partial_messages => {
                let max = self.partial_messages;
                return Err(Error::TooManyPartialMessages { chunk_stream_id: id, max });
            }
            None => {
                self.partials.push(Partial { chunk_stream_id: id, body: Vec::new() });
                self.partials.len() - 1
            }
        };
        let others = self.partial_bytes();
        let Some(Partial { body, .. }) = self.partials.get_mut(at) else {
            return Ok(None);
        };
        let needed = body.len() + taken.len();
        if needed > body.capacity() {
            let wanted = needed.max(2 * body.capacity()).max(needed + input.len()).max(FIRST_ALLOCATION);
            let wanted = wanted.min(length);
            if others - body.capacity() + wanted > self.partial_bytes {
                let max = self.partial_bytes;
                return Err(Error::TooManyPartialBytes { chunk_stream_id: id, max });
            }
            body.reserve_exact(wanted - body.len());
        }
        body.extend_from_slice(taken);
        missing = length - body.len();
        if missing > 0 {
            return Ok(None);
        }
        let body = self.take_partial(id).unwrap_or_default();
        Ok(self.finish(index, body.into()))
    }

    fn take_partial(&mut self, chunk_stream_id: u32) -> Option<Vec<u8>> {
        let at = self.partials.iter().position(|partial| partial.chunk_stream_id == chunk_stream_id)?;
        let body = self.partials.swap_remove(at).body;
        if self.partials.is_empty() {
            self.partials.shrink_to_fit();
        }
        Some(body)
    }

    fn finish(&mut self, index: usize, body: Bytes) -> Option<Message> {
        let stream = self.streams.get(index)?;
        Some(Message {
            type_id: stream.type_id,
            timestamp: stream.timestamp,
            stream_id: stream.message_stream_id,
            chunk_stream_id: stream.id,
            body,
        })
    }
}

impl Stream {
    fn new(id: u32) -> Self {
        Stream {
            id,
            timestamp: 0,
            field: 0,
            message_stream_id: 0,
            length: 0,
            type_id: 0,
            extended: false,
            absolute: false,
        }
    }
}

fn array<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (head, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(*head)
}

fn uint24(bytes: &mut &[u8]) -> Option<u32> {
    let [a, b, c] = array(bytes)?;
    Some(u32::from_be_bytes([0, a, b, c]))
}
