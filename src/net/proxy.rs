//! The PROXY protocol, versions 1 and 2: a proxy in front says whose connection it hands on
//! (<https://www.haproxy.org/download/2.8/doc/proxy-protocol.txt>). Only listed senders are asked for it, and they must send it.

use std::io;
use std::net::SocketAddr;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// What version 2 begins with (section 2.2).
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// The longest line of version 1 (section 2.1).
const LINE_MAX: usize = 107;

/// The longest header of version 2 that is taken: proxies add a certificate's names or a connection's id, some hundred bytes.
const HEADER_MAX: usize = 2048;

/// Reads the header at the start of a connection, and nothing behind it. Nothing: the proxy speaks for itself, as health checks
/// do.
///
/// Errors: it is no header, it is too long, or the connection ends before it does.
pub async fn read_header(socket: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<SocketAddr>> {
    let mut header = vec![0; SIGNATURE.len()];
    socket.read_exact(&mut header).await?;
    if header == SIGNATURE {
        header.resize(SIGNATURE.len() + 4, 0);
        socket.read_exact(header.get_mut(SIGNATURE.len()..).unwrap_or_default()).await?;
        let length = header
            .get(14..16)
            .map_or(0, |length| length.iter().fold(0, |all, byte| all << 8 | usize::from(*byte)));
        if length > HEADER_MAX {
            return Err(invalid("its header is too long"));
        }
        let begun = header.len();
        header.resize(begun + length, 0);
        socket.read_exact(header.get_mut(begun..).unwrap_or_default()).await?;
        return version_2(&header);
    }
    // The line ends with the first line break, and a byte more would be the connection's own.
    while !header.ends_with(b"\n") {
        if header.len() >= LINE_MAX {
            return Err(invalid("it sends no header of the PROXY protocol"));
        }
        header.push(socket.read_u8().await?);
    }
    version_1(&header)
}

/// Closes a connection whose header cannot be read.
pub(super) async fn refuse(mut socket: TcpStream) {
    // Whatever it is, it gets nothing.
    drop(socket.shutdown().await);
}

fn version_1(line: &[u8]) -> io::Result<Option<SocketAddr>> {
    let header = ppp::v1::Header::try_from(line).map_err(|error| invalid(&error.to_string()))?;
    Ok(match header.addresses {
        ppp::v1::Addresses::Tcp4(tcp) => Some((tcp.source_address, tcp.source_port).into()),
        ppp::v1::Addresses::Tcp6(tcp) => Some((tcp.source_address, tcp.source_port).into()),
        ppp::v1::Addresses::Unknown => None,
    })
}

fn version_2(header: &[u8]) -> io::Result<Option<SocketAddr>> {
    let header = ppp::v2::Header::try_from(header).map_err(|error| invalid(&error.to_string()))?;
    if header.command == ppp::v2::Command::Local {
        return Ok(None);
    }
    Ok(match header.addresses {
        ppp::v2::Addresses::IPv4(ip) => Some((ip.source_address, ip.source_port).into()),
        ppp::v2::Addresses::IPv6(ip) => Some((ip.source_address, ip.source_port).into()),
        ppp::v2::Addresses::Unix(_) | ppp::v2::Addresses::Unspecified => None,
    })
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tokio::net::TcpListener;

    /// What is made of a connection that sends this and then `after`; and what was left of it.
    async fn read(bytes: Vec<u8>) -> (io::Result<Option<SocketAddr>>, Vec<u8>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut proxy = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut socket, _) = listener.accept().await.unwrap();
        proxy.write_all(&bytes).await.unwrap();
        proxy.shutdown().await.unwrap();
        let header = read_header(&mut socket).await;
        let mut rest = Vec::new();
        socket.read_to_end(&mut rest).await.unwrap();
        (header, rest)
    }

    #[tokio::test]
    async fn both_versions_are_read_and_nothing_behind_them() {
        let v2 = |command: u8, family: u8, body: &[u8]| {
            [&SIGNATURE[..], &[command, family], &(body.len() as u16).to_be_bytes(), body, b"rtmp"].concat()
        };
        let ipv4 = [192, 0, 2, 7, 127, 0, 0, 1, 0x12, 0x34, 0, 80];
        for (bytes, address) in [
            (b"PROXY TCP4 192.0.2.7 127.0.0.1 4660 80\r\nrtmp".to_vec(), Some("192.0.2.7:4660")),
            (b"PROXY TCP6 2001:db8::7 ::1 4660 80\r\nrtmp".to_vec(), Some("[2001:db8::7]:4660")),
            (b"PROXY UNKNOWN\r\nrtmp".to_vec(), None),
            (v2(0x21, 0x11, &ipv4), Some("192.0.2.7:4660")),
            (v2(0x20, 0x00, &[]), None),
        ] {
            let (header, rest) = read(bytes).await;
            assert_eq!(header.unwrap(), address.map(|address| address.parse().unwrap()));
            assert_eq!(rest, b"rtmp");
        }
        for bad in [&[3; 1537][..], b"PROXY TCP4 nonsense\r\n....", b"GET / HTTP/1.1\r\n\r\n", b"PROXY"] {
            assert!(read(bad.to_vec()).await.0.is_err());
        }
    }

    proptest! {
        #[test]
        fn any_header_is_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            drop(version_1(&bytes));
            drop(version_2(&[&SIGNATURE[..], &bytes].concat()));
        }
    }
}
