//! The calls that a server runs as one step: reading a record with the time, and compare-and-set by value.
//!
//! The scripts know records as bytes. No rule about what is in them stands here.

use super::connect::Connection;
use bytes::Bytes;
use redis::{Cmd, ErrorKind, RedisResult, ServerErrorKind, Value};

/// What both scripts begin with: the record, the server's clock, whether the key held something that is no record, and
/// for a record that is missing the process that says so.
///
/// A key of another type was written by another program. It counts as missing, and the next write replaces it.
const LOOK: &str = "
local value, foreign = redis.pcall('GET', KEYS[1]), 0
if type(value) == 'table' then
    if not string.find(value.err, 'WRONGTYPE', 1, true) then return value end
    value, foreign = false, 1
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local process = false
if not value then process = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)') end
";

const READ: &str = "return {value, now, foreign, process}";

const WRITE: &str = "
if value ~= (ARGV[1] == '1' and ARGV[2]) then return {value, now, foreign, process} end
if ARGV[3] == '0' then
    redis.call('DEL', KEYS[1])
elseif ARGV[5] == '0' then
    redis.call('SET', KEYS[1], ARGV[4])
else
    redis.call('SET', KEYS[1], ARGV[4], 'PX', ARGV[5])
end
if ARGV[6] == '1' then redis.call('PUBLISH', ARGV[7], ARGV[8]) end
return 1
";

/// Notes when this generation of servers was first seen, unless that is known, and returns it with the time.
const FIRST_SEEN: &str = "
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('SET', KEYS[1], string.format('%.0f', now), 'NX')
redis.call('EXPIRE', KEYS[1], ARGV[1])
return {tonumber(redis.call('GET', KEYS[1])), now}
";

/// A script, called by its hash and sent in full to a server that does not have it: one that has restarted, another
/// master, one whose scripts were flushed.
#[derive(Debug)]
pub(super) struct Script {
    text: String,
    hash: String,
}

impl Script {
    fn new(text: String) -> Self {
        let hash = redis::Script::new(&text).get_hash().to_owned();
        Script { text, hash }
    }

    /// Calls it for one key.
    pub(super) async fn call(&self, on: &Connection, key: &str, args: &[&[u8]]) -> RedisResult<Value> {
        let command = |name: &str, script: &str| {
            let mut command: Cmd = redis::cmd(name);
            command.arg(script).arg(1).arg(key).arg(args);
            command
        };
        match on.call(command("EVALSHA", &self.hash)).await {
            Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                on.call(command("EVAL", &self.text)).await
            }
            other => other,
        }
    }
}

/// All scripts.
#[derive(Debug)]
pub(super) struct Scripts {
    /// Reads a record. Without arguments.
    pub(super) read: Script,
    /// Changes a record. The arguments: whether a record is expected, and which (`1` and its bytes, or `0`); whether one
    /// is set, and which; its time to live in milliseconds or `0`; whether something is announced, the channel, and what.
    pub(super) write: Script,
    /// When a generation was first seen. The argument: how long that is remembered, in seconds.
    pub(super) first_seen: Script,
}

impl Scripts {
    pub(super) fn new() -> Self {
        Scripts {
            read: Script::new(format!("{LOOK}{READ}")),
            write: Script::new(format!("{LOOK}{WRITE}")),
            first_seen: Script::new(FIRST_SEEN.to_owned()),
        }
    }
}

/// What [`Scripts::read`] and [`Scripts::write`] say.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reply {
    /// The record was changed.
    Done,
    /// The record as it stands, which a read asked for or a write did not expect.
    Record(Record),
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) value: Option<Bytes>,
    /// Milliseconds on the server's clock.
    pub(super) now: u64,
    /// The key held something of another type.
    pub(super) foreign: bool,
    /// The `run_id` of the server that has no such record.
    pub(super) process: Option<String>,
}

impl Reply {
    /// Nothing: the reply is not one of these scripts'.
    pub(super) fn decode(reply: Value) -> Option<Self> {
        let fields = match reply {
            Value::Int(1) => return Some(Reply::Done),
            Value::Array(fields) => fields,
            _ => return None,
        };
        let [value, Value::Int(now), Value::Int(foreign), process] = <[Value; 4]>::try_from(fields).ok()?
        else {
            return None;
        };
        Some(Reply::Record(Record {
            value: text(value)?.map(Bytes::from),
            now: u64::try_from(now).ok()?,
            foreign: foreign != 0,
            process: text(process)?.and_then(|process| String::from_utf8(process).ok()),
        }))
    }
}

fn text(value: Value) -> Option<Option<Vec<u8>>> {
    match value {
        Value::Nil => Some(None),
        Value::BulkString(bytes) => Some(Some(bytes)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_of_something_else_are_not_taken_for_ours() {
        let bulk = |text: &str| Value::BulkString(text.into());
        let record = Record { value: Some("r".into()), now: 7, foreign: false, process: None };
        let reply = Value::Array(vec![bulk("r"), Value::Int(7), Value::Int(0), Value::Nil]);
        assert_eq!(Reply::decode(reply), Some(Reply::Record(record)));
        assert_eq!(Reply::decode(Value::Int(1)), Some(Reply::Done));
        for other in [
            Value::Nil,
            Value::Okay,
            Value::Int(0),
            Value::Array(vec![]),
            Value::Array(vec![bulk("r"), Value::Int(-7), Value::Int(0), Value::Nil]),
            Value::Array(vec![Value::Okay, Value::Int(7), Value::Int(0), Value::Nil]),
        ] {
            assert_eq!(Reply::decode(other), None);
        }
    }
}
