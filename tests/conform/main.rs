//! `lb conform` against lb, against nginx-rtmp, and against a server whose faults are put in by hand.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)] // helpers of tests may panic

#[path = "../common/mod.rs"]
mod common;

mod faults;
mod faulty;
mod servers;
mod usage;
mod wire;
