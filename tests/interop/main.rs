//! Real peers: encoders, players and servers that others wrote, each started as its users start it, with the media compared.
//!
//! `peers.rs` holds the peers by direction, `codecs.rs` the codecs; docs/INTEROP.md has the same rows, which `document.rs` compares.
//! With `UPDATE_INTEROP=1` its test writes them there instead, with the versions of this machine.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)] // helpers of tests may panic

#[path = "../common/mod.rs"]
mod common;

mod codecs;
mod document;
mod encoders;
mod flow;
mod nginx;
mod node_media_server;
mod peers;
mod players;
mod rml;
mod run;
