//! What flows: media packets and the FLV tag bodies they carry. Pure: no sockets, no clocks.
//!
//! - [`packet`]: one media message, classified once when it is made.
//! - [`tag`]: what stands in an FLV tag body, legacy and enhanced.
//! - [`codec`]: the names of codecs.
//! - [`flv`]: the FLV container, as ffmpeg writes it to a pipe.

pub mod codec;
pub mod flv;
pub mod packet;
pub mod tag;

pub use codec::Codec;
pub use packet::{Packet, PacketKind};
pub use tag::Content;
