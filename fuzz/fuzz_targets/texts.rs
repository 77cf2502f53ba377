#![no_main]

use lb::api::{Change, Heartbeat, HeartbeatReply, PublisherLookup, WatcherLookup};

// What reactors and nodes tell each other, and what configurations hold.
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let (steer, data) = data.split_first().unwrap_or((&0, data));
    let text = String::from_utf8_lossy(data);
    match steer % 8 {
        0 => drop(serde_json::from_slice::<PublisherLookup>(data)),
        1 => drop(serde_json::from_slice::<WatcherLookup>(data)),
        2 => drop(serde_json::from_slice::<Heartbeat>(data)),
        3 => drop(serde_json::from_slice::<HeartbeatReply>(data)),
        4 => drop(serde_json::from_slice::<Change>(data)),
        5 => {
            if let Ok(location) = lb::net::location::Location::parse(&text) {
                assert!(!location.to_string().contains('?'), "a query is never shown");
            }
        }
        6 => drop(lb::steps::definition::parse("f", &text, &Default::default())),
        _ => drop(lb::web::Template::parse(&text)),
    }
});
