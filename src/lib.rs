//! Dynamic RTMP load balancing: the library behind the `lb` binary.
//!
//! The modules stand on floors, and imports point down only (`tests/floors.rs` fails on an upward arrow):
//!
//! | floor | modules | what they know |
//! |---|---|---|
//! | 4 | `cli`, `config`, `node`, `demo`, `conform` | how the parts are put together |
//! | 3 | `steps`, `web` | the workflow engine; HTTP servers |
//! | 2 | `net`, `ffmpeg`, `client` | sockets, processes, the reactor's API from a node's side |
//! | 1 | `relay`, `registry`, `published`, `observed`, `auth` | one publisher and many viewers; who owns a stream name; what is published here; what nodes said of streams; who may publish and play |
//! | 0 | `rtmp`, `media` | bytes in, events and bytes out: no sockets, no clocks, no tokio |
//!
//! `ids`, `api`, `budget`, `drain`, `health`, `journal`, `reread`, `retry` and `telemetry` are pillars: usable from floor 1 up.

pub mod api;
pub mod auth;
pub mod budget;
pub mod cli;
pub mod client;
pub mod config;
pub mod conform;
pub mod demo;
pub mod drain;
pub mod ffmpeg;
pub mod health;
pub mod ids;
pub mod journal;
pub mod media;
pub mod net;
pub mod node;
pub mod observed;
pub mod published;
pub mod registry;
pub mod relay;
pub mod reread;
pub mod retry;
pub mod rtmp;
pub mod steps;
pub mod telemetry;
pub mod web;
