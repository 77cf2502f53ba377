//! The checks, a file a group or two. Each is a small function of its lab; what is the same for many is a table.

mod amf;
mod chunks;
mod commands;
mod connect;
mod control;
mod enhanced;
mod handshake;
mod join;
mod limits;
mod media;
mod play;
mod publish;
mod timestamps;

use super::check::Check;

/// All checks, in the order in which they are printed. The last one is run when all others are done.
pub fn all() -> Vec<Check> {
    [
        handshake::CHECKS,
        chunks::CHECKS,
        timestamps::CHECKS,
        control::CHECKS,
        connect::CHECKS,
        commands::CHECKS,
        amf::CHECKS,
        publish::CHECKS,
        play::CHECKS,
        join::CHECKS,
        media::CHECKS,
        enhanced::CHECKS,
        limits::CHECKS,
    ]
    .concat()
}
