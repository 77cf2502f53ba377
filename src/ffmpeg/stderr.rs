//! What ffmpeg writes to its standard error, made fit for a log: whole lines of bounded length, without secrets, at a
//! bounded rate.

use std::time::{Duration, Instant};

/// The longest line that is logged, in bytes; the rest of it is left out. ffmpeg's own are far shorter.
const LINE_MAX: usize = 1024;

/// How many lines each [`WINDOW`] may log. A damaged stream makes ffmpeg complain at every packet.
const LINES_PER_WINDOW: u32 = 20;
const WINDOW: Duration = Duration::from_secs(10);

/// Takes pieces of output and gives the lines to log.
#[derive(Debug, Default)]
pub(super) struct Lines {
    partial: Vec<u8>,
    window: Option<Instant>,
    logged: u32,
    left_out: u64,
}

/// One thing to log.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// A line, without secrets.
    Line(String),
    /// This many lines came too fast and were left out.
    LeftOut(u64),
}

impl Lines {
    /// Takes the next piece of output.
    pub(super) fn push(&mut self, piece: &[u8], now: Instant, mut log: impl FnMut(Entry)) {
        for part in piece.split_inclusive(|byte| matches!(byte, b'\n' | b'\r')) {
            let text = part.strip_suffix(b"\n").or(part.strip_suffix(b"\r"));
            let room = LINE_MAX.saturating_sub(self.partial.len());
            self.partial.extend(text.unwrap_or(part).iter().take(room));
            if text.is_some() {
                self.end_line(now, &mut log);
            }
        }
    }

    /// The output has ended: what is held back comes out.
    pub(super) fn finish(&mut self, now: Instant, mut log: impl FnMut(Entry)) {
        self.end_line(now, &mut log);
        self.end_window(&mut log);
    }

    fn end_line(&mut self, now: Instant, log: &mut impl FnMut(Entry)) {
        let line = String::from_utf8_lossy(&self.partial).trim().to_owned();
        self.partial.clear();
        if line.is_empty() {
            return;
        }
        if self.window.is_none_or(|start| now.duration_since(start) >= WINDOW) {
            self.end_window(log);
            self.window = Some(now);
        }
        if self.logged < LINES_PER_WINDOW {
            self.logged += 1;
            log(Entry::Line(redact(&line)));
        } else {
            self.left_out += 1;
        }
    }

    fn end_window(&mut self, log: &mut impl FnMut(Entry)) {
        if self.left_out > 0 {
            log(Entry::LeftOut(self.left_out));
        }
        (self.window, self.logged, self.left_out) = (None, 0, 0);
    }
}

/// Takes user, password and query out of every URL in a text, and the query out of everything that looks like one: an
/// RTMP server's answer may name a stream key without its URL. Control characters are escaped.
pub(super) fn redact(text: &str) -> String {
    let delimiter = |c: char| c.is_whitespace() || matches!(c, '\'' | '"' | '<' | '>');
    let mut out = String::with_capacity(text.len());
    for word in text.split_inclusive(delimiter) {
        let (word, end) = match word.char_indices().next_back() {
            Some((at, last)) if delimiter(last) => word.split_at(at),
            _ => (word, ""),
        };
        let (path, query) = word.split_once('?').unwrap_or((word, ""));
        match path.split_once("://") {
            Some((scheme, rest)) => {
                // The last '@' anywhere: a password may hold a slash that nobody escaped.
                let rest = rest.rsplit_once('@').map_or(rest, |(_, rest)| rest);
                out.extend([scheme, "://", rest]);
            }
            None => out.push_str(path),
        }
        if !query.is_empty() {
            out.push_str("?…");
        } else if word.len() > path.len() {
            out.push('?');
        }
        out.push_str(end);
    }
    out.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn push(lines: &mut Lines, piece: &[u8], now: Instant) -> Vec<Entry> {
        let mut entries = Vec::new();
        lines.push(piece, now, |entry| entries.push(entry));
        entries
    }

    fn line(text: &str) -> Entry {
        Entry::Line(text.to_owned())
    }

    #[test]
    fn lines_are_put_together_and_kept_short() {
        let (now, mut lines) = (Instant::now(), Lines::default());
        assert_eq!(push(&mut lines, b"one\r\ntw", now), [line("one")]);
        assert_eq!(push(&mut lines, b"o\n\n", now), [line("two")]);
        assert_eq!(push(&mut lines, &[b'x'; 5000], now), []);
        assert_eq!(push(&mut lines, b"yyy\n", now), [line(&"x".repeat(LINE_MAX))]);
        push(&mut lines, b"last", now);
        let mut entries = Vec::new();
        lines.finish(now, |entry| entries.push(entry));
        assert_eq!(entries, [line("last")]);
    }

    #[test]
    fn a_flood_is_counted_instead_of_logged() {
        let (now, mut lines) = (Instant::now(), Lines::default());
        let entries = push(&mut lines, &b"bad packet\n".repeat(100), now);
        assert_eq!(entries.len(), 20);
        let later = push(&mut lines, b"later\n", now + WINDOW);
        assert_eq!(later, [Entry::LeftOut(80), line("later")]);
        assert_eq!(push(&mut lines, b"again\n", now + WINDOW), [line("again")]);
    }

    #[test]
    fn secrets_are_taken_out() {
        for (text, shown) in [
            ("rtmp://u:p@h:1/a/x?token=t: Connection refused", "rtmp://h:1/a/x?… Connection refused"),
            ("opening 'https://h/x.m3u8?sig=t' now", "opening 'https://h/x.m3u8?…' now"),
            ("rtmp://u:p/w@h/x", "rtmp://h/x"),
            ("Server error: no stream x?token=t", "Server error: no stream x?…"),
            ("[rtmp @ 0x5] is this it? yes", "[rtmp @ 0x5] is this it? yes"),
            ("a\u{1b}[31mb", "a\\u{1b}[31mb"),
        ] {
            assert_eq!(redact(text), shown);
        }
    }
}
