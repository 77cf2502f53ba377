//! The flags of who may publish and play.

use clap::Args;

/// See the module's head.
#[derive(Clone, Debug, Args)]
pub struct AuthArgs {}
