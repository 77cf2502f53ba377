//! Certificates of this node, and whom it believes.

use crate::reread::Reread;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use std::path::Path;
use std::sync::Arc;

/// The newest certificate of a node, for each new connection. Those that run keep theirs.
#[derive(Debug)]
struct Newest(Reread<Arc<CertifiedKey>>);

impl ResolvesServerCert for Newest {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some((*self.0.get()).clone())
    }
}

/// TLS for accepted connections, with a certificate chain and its key in PEM, which are read again when they change.
///
/// Errors: what is wrong with the files, in one line.
pub fn server(certificate: &Path, key: &Path) -> Result<Arc<ServerConfig>, String> {
    let newest = Newest(Reread::start(&[certificate, key], |texts| match texts {
        [certificate, key] => certified(certificate, key).map(Arc::new),
        _ => Err("a certificate and a key are needed".to_owned()),
    })?);
    Ok(Arc::new(ServerConfig::builder().with_no_client_auth().with_cert_resolver(Arc::new(newest))))
}

/// Reads the files once, to find mistakes before anything runs.
pub fn check(certificate: &Path, key: &Path) -> Result<(), String> {
    let read = |file: &Path| {
        std::fs::read_to_string(file).map_err(|error| format!("{}: cannot be read: {error}", file.display()))
    };
    certified(&read(certificate)?, &read(key)?)
        .map(drop)
        .map_err(|what| format!("{}: {what}", certificate.display()))
}

fn certified(certificate: &str, key: &str) -> Result<CertifiedKey, String> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(certificate.as_bytes()).collect();
    let chain = chain.ok().filter(|chain| !chain.is_empty()).ok_or("it holds no certificate in PEM")?;
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes())
        .map_err(|_| "the key file holds no private key in PEM")?;
    let signing = rustls::crypto::ring::sign::any_supported_type(&key).map_err(|error| error.to_string())?;
    let certified = CertifiedKey::new(chain, signing);
    certified.keys_match().map_err(|_| "the certificate and the key do not belong together")?;
    Ok(certified)
}

/// TLS for pulls: believes the roots of the host and those built in, and what `ca_file` holds.
///
/// Errors: what is wrong with the file, in one line.
pub fn client(ca_file: Option<&Path>) -> Result<Arc<ClientConfig>, String> {
    let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(file) = ca_file {
        let name = file.display();
        let text = std::fs::read(file).map_err(|error| format!("{name}: cannot be read: {error}"))?;
        let own: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
        let own = own
            .ok()
            .filter(|own| !own.is_empty())
            .ok_or(format!("{name}: it holds no certificate in PEM"))?;
        let count = own.len();
        if roots.add_parsable_certificates(own).0 < count {
            return Err(format!("{name}: it holds something else than certificates"));
        }
    }
    Ok(Arc::new(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth()))
}
