//! What a viewer should have got, when it got it, and whether it is the same.

use super::clip::hash;
use lb::rtmp::Message;
use std::time::{Duration, Instant};

/// How far back or ahead a message is looked for: less than a round of any clip, so that it is found once.
const REACH: usize = 650;

/// A message that was published.
pub struct Sent {
    pub type_id: u8,
    pub timestamp: u32,
    pub hash: u64,
    pub keyframe: bool,
    pub at: Instant,
}

/// What sampled viewers found, together.
#[derive(Default)]
pub struct Findings {
    pub seen: u64,
    pub lost: u64,
    pub reordered: u64,
    pub altered: u64,
    /// The body is right, the time is not the publisher's.
    pub retimed: u64,
    pub video: Vec<Duration>,
    pub audio: Vec<Duration>,
}

/// One viewer's place in what was published.
#[derive(Default)]
pub struct Check {
    next: Option<usize>,
}

impl Check {
    /// Compares a message with what was published. Latency is noted once `measuring`.
    pub fn take(
        &mut self,
        message: &Message,
        sent: &[Sent],
        now: Instant,
        measuring: bool,
        findings: &mut Findings,
    ) {
        if !matches!(message.type_id, 8 | 9) || is_header(message) {
            return;
        }
        let hash = hash(&message.body);
        let same = |sent: &Sent| sent.type_id == message.type_id && sent.hash == hash;
        let index = match self.next {
            None => {
                let from = sent.len().saturating_sub(REACH);
                match sent[from..].iter().rposition(|sent| sent.keyframe && same(sent)) {
                    Some(position) => from + position,
                    None => return,
                }
            }
            Some(next) => {
                let ahead = sent.iter().skip(next).take(REACH).position(same);
                let from = next.saturating_sub(REACH).min(sent.len());
                match ahead {
                    Some(skipped) => {
                        findings.lost += skipped as u64;
                        next + skipped
                    }
                    None => {
                        let before = sent[from..next.min(sent.len())].iter().any(same);
                        findings.reordered += u64::from(before);
                        findings.altered += u64::from(!before);
                        return;
                    }
                }
            }
        };
        self.next = Some(index + 1);
        findings.seen += 1;
        findings.retimed += u64::from(sent[index].timestamp != message.timestamp);
        if measuring {
            let latency = now.saturating_duration_since(sent[index].at);
            match message.type_id {
                9 => findings.video.push(latency),
                _ => findings.audio.push(latency),
            }
        }
    }
}

fn is_header(message: &Message) -> bool {
    message.body.get(1) == Some(&0)
        && (message.type_id == 9 || message.body.first().is_some_and(|b| b >> 4 == 10))
}

/// The value below which this part of them lies, in milliseconds.
pub fn quantile(values: &mut [Duration], part: f64) -> Option<f64> {
    values.sort_unstable();
    let index = (values.len() as f64 * part).ceil() as usize;
    values.get(index.max(1) - 1).map(|value| value.as_secs_f64() * 1e3)
}
