//! The workflow engine and the steps it runs: the only place that names `mmids_core`.
//!
//! | module | what it is |
//! |---|---|
//! | [`definition`] | the configuration text, read as the contract writes it |
//! | [`engine`] | the engine's parts put together, and its step types |
//! | [`reactors`] | follows the names that steps ask for, and runs the workflows that come back |
//! | `runs` | which workflows run for a followed name, and on whose account |
//! | [`executor`] | how an mmids reactor asks its web service: `simple_http` |
//! | [`announce`] | feeds as the engine's streams: that one begins, and that it ends |
//! | [`rtmp_receive`], [`rtmp_watch`], [`pull`], [`forwarder`], [`outlet`], [`transcode`] | the steps |
//! | [`outputs`] | the parameters of those that bring streams elsewhere |

pub mod announce;
pub mod definition;
pub mod engine;
pub mod executor;
pub mod forwarder;
mod hls;
pub mod outlet;
pub mod outputs;
mod parameters;
pub mod pull;
pub mod reactors;
pub mod rtmp_receive;
pub mod rtmp_watch;
mod runs;
pub mod transcode;

pub use definition::{Config, ConfigError};
pub use engine::{Engine, Parts};
