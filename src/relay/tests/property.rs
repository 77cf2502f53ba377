//! Whatever happens: every viewer sees messages of the stream, whole, in order, none twice, and is told between which of them another
//! publish begins; who keeps up loses none.

use super::*;
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Act {
    /// So many messages of so many bytes at once.
    Push(u8, u16),
    Pass(u16),
    Join {
        room: u16,
        step: u16,
    },
    Room(u8, u16),
    Leave(u8),
    Reply(u8),
    Pause(u8, bool),
    /// The source is gone and another one comes, which resumes or not.
    Splice(bool),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        8 => (1..6u8, 1..2000u16).prop_map(|(count, size)| Act::Push(count, size)),
        6 => (1..400u16).prop_map(Act::Pass),
        3 => (any::<u16>(), 1..5000u16).prop_map(|(room, step)| Act::Join { room, step }),
        4 => (any::<u8>(), any::<u16>()).prop_map(|(who, room)| Act::Room(who, room)),
        1 => any::<u8>().prop_map(Act::Leave),
        1 => any::<u8>().prop_map(Act::Reply),
        1 => (any::<u8>(), any::<bool>()).prop_map(|(who, paused)| Act::Pause(who, paused)),
        1 => any::<bool>().prop_map(Act::Splice),
    ]
}

/// The number that a media message carries; nothing for headers and replies.
fn number(message: &Message) -> Option<u32> {
    let body = match (message.type_id, message.body.get(1)) {
        (8, Some(1)) => &message.body[2..],
        (9, Some(1)) => &message.body[5..],
        _ => return None,
    };
    let text = std::str::from_utf8(&body[..8]).unwrap();
    assert!(body[8..].iter().all(|byte| *byte == b'x'), "corrupt");
    Some(text.parse().unwrap())
}

struct Run {
    world: World,
    source: Source,
    /// With whether it always took everything at once, and whether it was ever paused.
    watchers: Vec<(Watcher, bool, bool)>,
    pushed: Vec<Packet>,
    /// Where in `pushed` the current encoder began.
    began: usize,
    /// Where each began.
    all_began: Vec<usize>,
}

impl Run {
    fn push(&mut self, count: u8, size: u16) {
        let from = self.pushed.len();
        for _ in 0..count {
            let n = self.pushed.len() as u32;
            let body = format!("{n:08}{}", "x".repeat(size.into()));
            // Every encoder begins with a keyframe.
            self.pushed.push(match (n - self.began as u32) % 12 {
                0 => key(n * 20, &body),
                since if since % 3 == 0 => video(n * 20, &body),
                _ => audio(n * 20, &body),
            });
        }
        self.source.push(&self.pushed[from..]);
    }

    fn splice(&mut self, resumes: bool) {
        let world = &self.world;
        self.source = world.attach();
        self.source.push(&opening());
        let newest = self.pushed[self.began..].iter().rposition(|packet| packet.body[0] == 0x17);
        match newest {
            Some(newest) if resumes => self.source.push(&self.pushed[self.began + newest..]),
            _ => {
                self.began = self.pushed.len();
                self.all_began.push(self.began);
            }
        }
    }

    /// Which encoder a message is from.
    fn encoder(&self, number: u32) -> usize {
        self.all_began.partition_point(|began| *began <= number as usize)
    }

    async fn act(&mut self, act: Act) {
        let count = self.watchers.len().max(1);
        match act {
            Act::Push(count, size) => self.push(count, size),
            Act::Pass(millis) => self.world.pass(millis.into()).await,
            Act::Join { room, step } => {
                let keeps_up = room % 2 == 0;
                let (room, step) =
                    if keeps_up { (usize::MAX, usize::MAX) } else { (room.into(), step.into()) };
                let watcher = self.world.watch(&Socket::with(room, step));
                self.watchers.push((watcher, keeps_up, false));
            }
            Act::Room(who, room) => {
                if let Some((watcher, false, _)) = self.watchers.get(usize::from(who) % count) {
                    watcher.socket.room(room.into());
                }
            }
            Act::Leave(who) => {
                let who = usize::from(who) % count;
                if who < self.watchers.len() {
                    self.watchers.swap_remove(who).0.leave().await;
                }
            }
            Act::Reply(who) => {
                if let Some((watcher, ..)) = self.watchers.get(usize::from(who) % count) {
                    // A full channel, or a viewer that was closed.
                    drop(watcher.ask.try_send(Ask::Reply(reply())));
                }
            }
            Act::Pause(who, paused) => {
                if let Some((watcher, false, ever)) = self.watchers.get_mut(usize::from(who) % count) {
                    *ever = true;
                    drop(watcher.ask.try_send(Ask::Pause(paused)));
                }
            }
            Act::Splice(resumes) => self.splice(resumes),
        }
    }

    fn check(&self) -> Result<(), TestCaseError> {
        for (watcher, keeps_up, paused) in &self.watchers {
            let (messages, whole) = watcher.socket.read();
            let numbers: Vec<u32> = messages.iter().filter_map(number).collect();
            prop_assert!(numbers.is_sorted_by(|one, two| one < two), "{:?}", numbers);
            let media = messages.iter().find(|message| number(message).is_some());
            prop_assert!(media.is_none_or(|first| first.body[0] == 0x17), "starts with a keyframe");
            let (mut told, mut before) = (false, None);
            for message in &messages {
                told |= message.type_id == message::COMMAND_AMF0;
                if let Some(n) = number(message) {
                    prop_assert_eq!(&message.body, &self.pushed[n as usize].body);
                    let begins = before.is_some_and(|before| self.encoder(before) != self.encoder(n));
                    // Who pauses is not told of what begins meanwhile.
                    prop_assert!(*paused || told == begins, "at {}, told: {}", n, told);
                    (told, before) = (false, Some(n));
                }
            }
            if *keeps_up && !numbers.is_empty() {
                prop_assert!(whole);
                let all = numbers[0]..self.pushed.len() as u32;
                prop_assert_eq!(numbers, all.collect::<Vec<_>>(), "who keeps up loses nothing");
            }
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]
    #[test]
    fn every_viewer_sees_the_stream_in_order(
        acts in prop::collection::vec(act(), 1..120),
        window in prop_oneof![Just(None), (0..120u64).prop_map(Some)],
        pump_viewers in 1..4usize,
        ring_bytes in 20_000..100_000usize,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let (world, source) = World::live(|settings| {
                settings.batching = window.map_or(Batching::AudioWithVideo, |w| Batching::Window(Duration::from_millis(w)));
                settings.pump_viewers = pump_viewers;
                settings.ring_bytes = ring_bytes;
                settings.lag = Duration::from_millis(500);
            });
            source.push(&opening());
            let mut run = Run { world, source, watchers: Vec::new(), pushed: Vec::new(), began: 0, all_began: vec![0] };
            let mut since = 0;
            for act in acts {
                // Who keeps up is never more than a small part of a ring behind.
                since = match &act {
                    Act::Push(count, size) => since + usize::from(*count) * (usize::from(*size) + 100),
                    _ => since,
                };
                if since > ring_bytes / 4 {
                    run.world.pass(200).await;
                    since = 0;
                }
                run.act(act).await;
            }
            run.world.pass(300).await;
            run.check()?;
            for (watcher, ..) in run.watchers.drain(..) {
                watcher.task.abort();
                drop(watcher.task.await);
            }
            drop(run.source);
            run.world.is_empty().await;
            Ok::<(), TestCaseError>(())
        })?;
    }
}
