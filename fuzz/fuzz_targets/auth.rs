#![no_main]

use lb::auth::PullKey;
use lb::auth::callback::{Verdict, judge};
use lb::auth::jwt::Keys;
use lb::auth::key_file::KeyFile;
use std::sync::LazyLock;

static KEYS: LazyLock<Keys> = LazyLock::new(|| Keys::parse("0123456789abcdef0123456789abcdef").unwrap());
static PULL_KEY: LazyLock<PullKey> = LazyLock::new(|| PullKey::of("token"));

// Keys, tokens, answers and signatures: whatever they hold, nobody is let in by it.
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let (steer, data) = data.split_first().unwrap_or((&0, data));
    let text = String::from_utf8_lossy(data);
    match steer % 5 {
        0 => drop(KeyFile::parse(&text)),
        1 => drop(Keys::parse(&text)),
        2 => assert!(KEYS.claims(&text).is_err()),
        3 => {
            if let Verdict::Refused(reason) = judge(401, data) {
                assert!(!reason.is_empty() && !reason.chars().any(char::is_control));
            }
            drop(judge(200, data));
        }
        _ => assert!(PULL_KEY.check(&"x".parse().unwrap(), Some(&text), 1_800_000_000).is_err()),
    }
});
