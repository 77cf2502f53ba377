//! A viewer's bytes, by TLS where the run says so.

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;

/// What viewers believe by TLS.
pub fn believing(certificate: &Path) -> Arc<ClientConfig> {
    rustls::crypto::ring::default_provider().install_default().ok();
    let mut roots = RootCertStore::empty();
    let certificate = CertificateDer::from_pem_file(certificate).expect("a certificate");
    roots.add(certificate).expect("a certificate that can be believed");
    Arc::new(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth())
}

/// A connection that does not wait.
pub struct Link {
    pub socket: TcpStream,
    tls: Option<Box<ClientConnection>>,
}

impl Link {
    pub fn new(socket: TcpStream, address: SocketAddr, tls: Option<&Arc<ClientConfig>>) -> Self {
        let name = ServerName::from(address.ip());
        let begin = |config: &Arc<ClientConfig>| ClientConnection::new(config.clone(), name);
        let tls = tls.map(|config| Box::new(begin(config).expect("a client")));
        Link { socket, tls }
    }

    /// Reads once; by TLS all that one read of the socket gives.
    pub fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(tls) = &mut self.tls else { return (&self.socket).read(buffer) };
        let mut taken = 0;
        loop {
            match tls.reader().read(&mut buffer[taken..]) {
                Ok(0) if taken == 0 => return Ok(0),
                Ok(0) => return Ok(taken),
                Ok(n) => taken += n,
                Err(error) if error.kind() != ErrorKind::WouldBlock => return Err(error),
                Err(_) => match tls.read_tls(&mut &self.socket) {
                    Ok(0) => return Ok(taken),
                    Ok(_) => {
                        tls.process_new_packets().map_err(io::Error::other)?;
                        while tls.wants_write() {
                            tls.write_tls(&mut &self.socket)?;
                        }
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock && taken > 0 => return Ok(taken),
                    Err(error) => return Err(error),
                },
            }
        }
    }

    /// Writes all of a few hundred bytes: they fit, or the connection is of no use.
    pub fn write(&mut self, bytes: &[u8]) {
        let written = match &mut self.tls {
            None => (&self.socket).write(bytes).and_then(|n| match n == bytes.len() {
                true => Ok(()),
                false => Err(ErrorKind::WriteZero.into()),
            }),
            Some(tls) => tls.writer().write_all(bytes).and_then(|()| {
                while tls.wants_write() {
                    tls.write_tls(&mut &self.socket)?;
                }
                Ok(())
            }),
        };
        if written.is_err() {
            drop(self.socket.shutdown(std::net::Shutdown::Both));
        }
    }
}
