//! What flows: media packets and the FLV tag bodies they carry. Pure: no sockets, no clocks.

pub mod packet;

pub use packet::{Packet, PacketKind};
