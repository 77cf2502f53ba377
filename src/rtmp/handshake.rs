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
        Server {
            nonce,
            state: ServerState::Version,
        }
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
        Client {
            state: ClientState::Version,
        }
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
                    return Ok(if skip(missing, input) {
                        Progress::Done
                    } else {
                        Progress::MaySend
                    });
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
    let schema = [8, 772].into_iter().find_map(|base| {
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
    if let Some((signed, _)) = split_digest(&s1, base) {
        let digest = sign(SERVER_NAME, &signed);
        let at = digest_offset(&s1, base);
        if let Some(place) = s1.get_mut(at..at + DIGEST) {
            place.copy_from_slice(&digest);
        }
    }
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
    let sum: usize = part
        .iter()
        .skip(base)
        .take(4)
        .map(|byte| usize::from(*byte))
        .sum();
    base + 4 + sum % 728
}

/// What a digest signs, and the digest.
fn split_digest(part: &[u8], base: usize) -> Option<(Vec<u8>, [u8; DIGEST])> {
    let (before, rest) = part.split_at_checked(digest_offset(part, base))?;
    let (digest, after) = rest.split_first_chunk()?;
    Some(([before, after].concat(), *digest))
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
        let bytes = Sha256::new()
            .chain_update(nonce)
            .chain_update(block.to_be_bytes())
            .finalize();
        let bytes = bytes.get(..missing.min(bytes.len())).unwrap_or_default();
        out.put_slice(bytes);
        missing -= bytes.len();
    }
}
