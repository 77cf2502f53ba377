//! The handshake (§5.2): version and 1536 bytes from each side, then an echo.
//!
//! Flash players and their relatives check a digest in it, which is not in the specification: C1 carries an
//! HMAC-SHA256 of itself at one of two places (the two schemas), and S1 and S2 answer in kind. A server takes both forms;
//! a client speaks the simple one, which every server takes.

use super::Error;
use bytes::{BufMut, BytesMut};
use hmac::{Hmac, Mac};
use sha2::{Digest as _, Sha256};

/// The length of C1, S1, C2 and S2.
pub const PART: usize = 1536;

/// Random bytes for one handshake, which its owner passes in: nothing here draws randomness.
pub type Nonce = [u8; 32];

const VERSION: u8 = 3;
const DIGEST: usize = 32;

/// "Genuine Adobe Flash Player 001" and what follows it; the name alone signs C1.
const PLAYER_NAME: &[u8] = b"Genuine Adobe Flash Player 001";
/// "Genuine Adobe Flash Media Server 001"; the name alone signs S1, name and secret sign S2.
const SERVER_NAME: &[u8] = b"Genuine Adobe Flash Media Server 001";
const SECRET: [u8; 32] = [
    0xF0, 0xEE, 0xC2, 0x4A, 0x80, 0x68, 0xBE, 0xE8, 0x2E, 0x00, 0xD0, 0xD1, 0x02, 0x9E, 0x7E, 0x57, 0x6E,
    0xEC, 0x5D, 0x2D, 0x29, 0x80, 0x6F, 0xAB, 0x93, 0xB8, 0xE6, 0x36, 0xCF, 0xEB, 0x31, 0xAE,
];

/// The version that a server writes into a digest S1; any above 0 says that there is a digest.
const SERVER_VERSION: [u8; 4] = [4, 5, 0, 1];

/// A server's side. It holds 1.5 KiB until C1 is complete, and should be dropped when done.
pub struct Server {
    nonce: Nonce,
    state: ServerState,
}

enum ServerState {
    Version,
    C1(Vec<u8>),
    /// Bytes of C2 to come.
    C2(usize),
}

impl Server {
    /// Waits for C0.
    pub fn new(nonce: Nonce) -> Self {
        Server { nonce, state: ServerState::Version }
    }

    /// Takes bytes from the front of `input`, and appends S0, S1 and S2 to `out` as soon as C1 is there. True once C2 is
    /// complete; what is left in `input` then are chunks. C2 is not looked at: many clients do not echo S1.
    pub fn read(&mut self, input: &mut &[u8], out: &mut BytesMut) -> Result<bool, Error> {
        loop {
            match &mut self.state {
                ServerState::Version => {
                    if !take_version(input)? {
                        return Ok(false);
                    }
                    self.state = ServerState::C1(Vec::with_capacity(PART));
                }
                ServerState::C1(c1) => {
                    let Some(c1) = take_part(c1, input) else {
                        return Ok(false);
                    };
                    out.reserve(1 + 2 * PART);
                    out.put_u8(VERSION);
                    answer(&c1, &self.nonce, out);
                    self.state = ServerState::C2(PART);
                }
                ServerState::C2(missing) => return Ok(skip(missing, input)),
            }
        }
    }
}

/// A client's side.
pub struct Client {
    state: ClientState,
}

enum ClientState {
    Version,
    S1(Vec<u8>),
    /// Bytes of S2 to come.
    S2(usize),
}

/// How far a client's handshake is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// S1 is not complete.
    Waiting,
    /// S1 is there and C2 is written: the client may send commands.
    MaySend,
    /// S2 is there too: what is left in the input are chunks.
    Done,
}

impl Client {
    /// Appends C0 and C1 to `out`.
    pub fn new(nonce: Nonce, out: &mut BytesMut) -> Self {
        out.reserve(1 + PART);
        out.put_u8(VERSION);
        // Time and the four bytes that must be zero in the simple form.
        out.put_slice(&[0; 8]);
        put_random(out, &nonce, PART - 8);
        Client { state: ClientState::Version }
    }

    /// Takes bytes from the front of `input`, and appends C2 to `out` as soon as S1 is there. S2 is not looked at.
    pub fn read(&mut self, input: &mut &[u8], out: &mut BytesMut) -> Result<Progress, Error> {
        loop {
            match &mut self.state {
                ClientState::Version => {
                    if !take_version(input)? {
                        return Ok(Progress::Waiting);
                    }
                    self.state = ClientState::S1(Vec::with_capacity(PART));
                }
                ClientState::S1(s1) => {
                    let Some(s1) = take_part(s1, input) else {
                        return Ok(Progress::Waiting);
                    };
                    out.put_slice(&s1);
                    self.state = ClientState::S2(PART);
                }
                ClientState::S2(missing) => {
                    return Ok(if skip(missing, input) { Progress::Done } else { Progress::MaySend });
                }
            }
        }
    }
}

fn take_version(input: &mut &[u8]) -> Result<bool, Error> {
    match input.split_off_first() {
        Some(&VERSION) => Ok(true),
        Some(&other) => Err(Error::Version(other)),
        None => Ok(false),
    }
}

/// Fills `part` from `input`; gives it away when it is complete.
fn take_part(part: &mut Vec<u8>, input: &mut &[u8]) -> Option<Vec<u8>> {
    let count = (PART - part.len()).min(input.len());
    part.extend_from_slice(input.split_off(..count)?);
    (part.len() == PART).then(|| std::mem::take(part))
}

fn skip(missing: &mut usize, input: &mut &[u8]) -> bool {
    let count = (*missing).min(input.len());
    *input = input.get(count..).unwrap_or_default();
    *missing -= count;
    *missing == 0
}

/// Appends S1 and S2.
fn answer(c1: &[u8], nonce: &Nonce, out: &mut BytesMut) {
    let schema = SCHEMAS.into_iter().find_map(|base| {
        let (signed, digest) = split_digest(c1, base)?;
        (sign(PLAYER_NAME, &signed) == digest).then_some((base, digest))
    });
    let Some((base, client_digest)) = schema else {
        out.put_slice(&[0; 8]);
        put_random(out, nonce, PART - 8);
        out.put_slice(c1);
        return;
    };
    let mut s1 = BytesMut::with_capacity(PART);
    s1.put_slice(&[0; 4]);
    s1.put_slice(&SERVER_VERSION);
    put_random(&mut s1, nonce, PART - 8);
    put_digest(&mut s1, base, SERVER_NAME);
    out.put_slice(&s1);
    let start = out.len();
    let other: Nonce = Sha256::digest(nonce).into();
    put_random(out, &other, PART - DIGEST);
    let key = sign(&[SERVER_NAME, &SECRET].concat(), &client_digest);
    let digest = sign(&key, out.get(start..).unwrap_or_default());
    out.put_slice(&digest);
}

/// Where the digest of a C1 or S1 lies: the four bytes at `base` (8 or 772) add up to an offset behind them.
fn digest_offset(part: &[u8], base: usize) -> usize {
    let sum: usize = part.iter().skip(base).take(4).map(|byte| usize::from(*byte)).sum();
    base + 4 + sum % 728
}

/// What a digest signs, and the digest.
fn split_digest(part: &[u8], base: usize) -> Option<(Vec<u8>, [u8; DIGEST])> {
    let (before, rest) = part.split_at_checked(digest_offset(part, base))?;
    let (digest, after) = rest.split_first_chunk()?;
    Some(([before, after].concat(), *digest))
}

/// Where the two schemas of the digest form have the four bytes that say where the digest lies.
pub(crate) const SCHEMAS: [usize; 2] = [8, 772];

/// A C1 with a digest, as Flash players send it: for those who look at servers.
pub(crate) fn digest_c1(schema: usize, nonce: &Nonce) -> Vec<u8> {
    let mut c1 = BytesMut::with_capacity(PART);
    // The version of a player; any above 0 says that there is a digest.
    c1.put_slice(&[0, 0, 0, 1, 128, 0, 7, 2]);
    put_random(&mut c1, nonce, PART - 8);
    put_digest(&mut c1, schema, PLAYER_NAME);
    c1.into()
}

/// Whether an S1 carries a server's digest in this schema.
pub(crate) fn is_signed(s1: &[u8], schema: usize) -> bool {
    split_digest(s1, schema).is_some_and(|(signed, digest)| sign(SERVER_NAME, &signed) == digest)
}

/// Whether an S2 is signed for the digest of this C1.
pub(crate) fn is_signed_for(s2: &[u8], c1: &[u8], schema: usize) -> bool {
    let digests = split_digest(c1, schema).zip(s2.split_last_chunk::<DIGEST>());
    digests.is_some_and(|((_, of_c1), (signed, of_s2))| {
        sign(&sign(&[SERVER_NAME, &SECRET].concat(), &of_c1), signed) == *of_s2
    })
}

fn put_digest(part: &mut [u8], schema: usize, name: &[u8]) {
    if let Some((signed, _)) = split_digest(part, schema) {
        let at = digest_offset(part, schema);
        if let Some(place) = part.get_mut(at..at + DIGEST) {
            place.copy_from_slice(&sign(name, &signed));
        }
    }
}

fn sign(key: &[u8], data: &[u8]) -> [u8; DIGEST] {
    // HMAC takes keys of any length, so there is no error to pass on.
    Hmac::<Sha256>::new_from_slice(key)
        .map(|mac| mac.chain_update(data).finalize().into_bytes().into())
        .unwrap_or([0; DIGEST])
}

/// Appends `count` bytes that look random and differ for each nonce. Nothing secret rests on them.
fn put_random(out: &mut BytesMut, nonce: &Nonce, count: usize) {
    let mut missing = count;
    for block in 0u32.. {
        if missing == 0 {
            break;
        }
        let bytes = Sha256::new().chain_update(nonce).chain_update(block.to_be_bytes()).finalize();
        let bytes = bytes.get(..missing.min(bytes.len())).unwrap_or_default();
        out.put_slice(bytes);
        missing -= bytes.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONCE: Nonce = [7; 32];

    /// C0 and C1 with a digest at `base`.
    fn digest_hello(base: usize) -> Vec<u8> {
        [&[VERSION], &digest_c1(base, &[9; 32])[..]].concat()
    }

    fn serve(hello: &[u8], piece: usize) -> (BytesMut, Vec<bool>) {
        let (mut server, mut out) = (Server::new(NONCE), BytesMut::new());
        let done = hello.chunks(piece).map(|mut piece| server.read(&mut piece, &mut out).unwrap()).collect();
        (out, done)
    }

    #[test]
    fn the_simple_form_echoes_c1() {
        let hello: Vec<u8> = [&[3, 0, 0, 0, 9, 0, 0, 0, 0][..], &[5; PART - 8]].concat();
        let (out, _) = serve(&hello, hello.len());
        assert_eq!(out.len(), 1 + 2 * PART);
        assert_eq!(out[..9], [3, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(out[1 + PART..], hello[1..]);
    }

    #[test]
    fn the_digest_form_is_answered_in_the_clients_schema() {
        for base in SCHEMAS {
            let hello = digest_hello(base);
            let (out, _) = serve(&hello, hello.len());
            let (s1, s2) = out[1..].split_at(PART);
            let (signed, digest) = split_digest(s1, base).unwrap();
            assert_eq!(sign(SERVER_NAME, &signed), digest, "S1, schema at {base}");
            let (_, client_digest) = split_digest(&hello[1..], base).unwrap();
            let key = sign(&[SERVER_NAME, &SECRET].concat(), &client_digest);
            assert_eq!(sign(&key, &s2[..PART - DIGEST]), s2[PART - DIGEST..], "S2, schema at {base}");
            assert_eq!(serve(&hello, 1).0, out, "byte by byte");
        }
    }

    #[test]
    fn any_c2_ends_it_in_pieces_of_any_size_and_leaves_what_follows() {
        let wire = [digest_hello(8), vec![0xAB; PART]].concat();
        for piece in [1, 2, 7, 1535, 1536, 1537, 3072] {
            let (_, done) = serve(&wire, piece);
            assert_eq!(done.iter().position(|done| *done), Some(done.len() - 1), "pieces of {piece}");
        }
        let wire = [&wire[..], b"chunk"].concat();
        let mut input = &wire[..];
        assert_eq!(Server::new(NONCE).read(&mut input, &mut BytesMut::new()), Ok(true));
        assert_eq!(input, b"chunk");
    }

    #[test]
    fn other_versions_are_refused_by_both_sides() {
        for version in [0, 6, 31, b'G'] {
            let mut out = BytesMut::new();
            let error = Err(Error::Version(version));
            assert_eq!(Server::new(NONCE).read(&mut &[version][..], &mut out), error);
            let error = Err(Error::Version(version));
            assert_eq!(Client::new(NONCE, &mut out).read(&mut &[version][..], &mut out), error);
        }
    }

    #[test]
    fn a_client_may_send_as_soon_as_s1_is_there_and_takes_any_s2() {
        let mut out = BytesMut::new();
        let mut client = Client::new(NONCE, &mut out);
        assert_eq!(out.len(), 1 + PART);
        let reply = [&[3][..], &[1; PART], &[2; PART]].concat();
        out.clear();
        let mut seen = Vec::new();
        for byte in &reply {
            seen.push(client.read(&mut std::slice::from_ref(byte), &mut out).unwrap());
        }
        assert_eq!(seen.iter().filter(|progress| **progress == Progress::Waiting).count(), PART);
        assert_eq!(seen.iter().filter(|progress| **progress == Progress::Done).count(), 1);
        assert_eq!(out[..], [1; PART], "C2 is S1");
    }

    #[test]
    fn each_nonce_gives_other_bytes() {
        let hello = [&[3, 0, 0, 0, 9, 0, 0, 0, 0][..], &[5; PART - 8]].concat();
        let mut other = BytesMut::new();
        Server::new([8; 32]).read(&mut &hello[..], &mut other).unwrap();
        assert_ne!(serve(&hello, hello.len()).0[9..1 + PART], other[9..1 + PART]);
    }
}
