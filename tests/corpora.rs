//! The fuzz targets on their committed corpora: what was found once stays fixed. `scripts/fuzz` goes on from them.

// A test says what it expects by `unwrap` and indexing; a panic is its verdict.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use lb::rtmp;
use std::path::Path;

#[path = "../fuzz/bodies.rs"]
mod bodies;
#[path = "../fuzz/texts.rs"]
mod texts;

/// Runs a target on all its inputs.
fn all(target: &str, body: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut count = 0;
    for entry in std::fs::read_dir(&folder).expect("there is a corpus") {
        let file = entry.unwrap().path();
        println!("{}", file.display());
        body(&std::fs::read(&file).unwrap());
        count += 1;
    }
    assert!(count >= 2, "{}: {count} inputs", folder.display());
}

macro_rules! targets {
    ($($module:ident::$target:ident),*) => {
        $(#[test]
        fn $target() {
            all(stringify!($target), $module::$target);
        })*

        /// None of them was forgotten.
        #[test]
        fn every_target_is_here() {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/fuzz_targets");
            let mut there: Vec<String> = std::fs::read_dir(folder)
                .unwrap()
                .map(|entry| entry.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned())
                .collect();
            there.sort();
            let mut here = vec![$(stringify!($target)),*];
            here.sort();
            assert_eq!(here, there);
        }
    };
}

targets!(
    bodies::amf0,
    bodies::chunk,
    bodies::handshake,
    bodies::server_session,
    bodies::client_session,
    texts::auth,
    texts::texts,
    texts::flv,
    texts::proxied,
    texts::player
);
