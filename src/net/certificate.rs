//! Certificates of this node, and whom it believes.

use crate::reread::{self, Reread};
use p12_keystore::{KeyStore, Pkcs12ImportPolicy};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The newest certificate of a node, for each new connection. Those that run keep theirs.
#[derive(Debug)]
struct Newest(Reread<Arc<CertifiedKey>>);

impl ResolvesServerCert for Newest {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some((*self.0.get()).clone())
    }
}

/// Where a certificate chain and its private key are.
#[derive(Clone, Debug)]
pub struct Files {
    /// The chain in PEM, or both in PKCS#12.
    pub certificate: PathBuf,
    /// The key in PEM; none where the other file is PKCS#12.
    pub key: Option<PathBuf>,
    /// The password of a PKCS#12 file; none: it is empty.
    pub password: Option<Password>,
}

/// A password. Shows nothing when printed.
#[derive(Clone, PartialEq, Eq)]
pub enum Password {
    /// In a file of its own.
    File(PathBuf),
    /// As it is.
    Text(String),
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(..)")
    }
}

impl Files {
    fn paths(&self) -> Vec<&Path> {
        let password = match &self.password {
            Some(Password::File(file)) => Some(file),
            _ => None,
        };
        [Some(&self.certificate), self.key.as_ref(), password]
            .into_iter()
            .flatten()
            .map(PathBuf::as_path)
            .collect()
    }

    /// Reads what the files hold, which is given in the order of [`Files::paths`].
    fn parser(&self) -> impl Fn(&[Vec<u8>]) -> Result<CertifiedKey, String> + use<> {
        let (has_key, password) = (self.key.is_some(), self.password.clone());
        move |contents| {
            let mut contents = contents.iter().map(Vec::as_slice);
            let certificate = contents.next().unwrap_or_default();
            let key = if has_key { contents.next() } else { None };
            let password = match &password {
                Some(Password::File(_)) => reread::text(contents.next().unwrap_or_default())?,
                Some(Password::Text(text)) => text,
                None => "",
            };
            match key {
                Some(key) => certified(chain(certificate)?, pem_key(key)?),
                None if certificate.starts_with(b"-----") => {
                    Err("a certificate in PEM needs its key, see --tls-key".to_owned())
                }
                None => pkcs12(certificate, password.trim_end_matches(['\r', '\n'])),
            }
        }
    }

    /// Reads the files once, to find mistakes before anything runs.
    ///
    /// Errors: what is wrong with them, in one line.
    pub fn check(&self) -> Result<(), String> {
        reread::read(&self.paths(), self.parser()).map(drop)
    }
}

/// TLS for accepted connections, with a certificate that is read again when its files change.
///
/// Errors: what is wrong with the files, in one line.
pub fn server(files: &Files) -> Result<Arc<ServerConfig>, String> {
    let parse = files.parser();
    let newest = Newest(Reread::start(&files.paths(), move |contents| parse(contents).map(Arc::new))?);
    Ok(Arc::new(ServerConfig::builder().with_no_client_auth().with_cert_resolver(Arc::new(newest))))
}

fn chain(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    chain.ok().filter(|chain| !chain.is_empty()).ok_or("it holds no certificate in PEM".to_owned())
}

fn pem_key(pem: &[u8]) -> Result<PrivateKeyDer<'static>, String> {
    PrivateKeyDer::from_pem_slice(pem).map_err(|_| "the key file holds no private key in PEM".to_owned())
}

/// RFC 7292, as `openssl pkcs12 -export` writes it.
fn pkcs12(file: &[u8], password: &str) -> Result<CertifiedKey, String> {
    let store = KeyStore::from_pkcs12(file, password, Pkcs12ImportPolicy::Strict)
        .map_err(|_| "it is neither PEM nor PKCS#12 with that password, see --tls-password-file")?;
    let (_, chain) = store.private_key_chain().ok_or("it holds no private key")?;
    let certificates = chain.certs().iter().map(|one| one.as_der().to_vec().into()).collect();
    certified(certificates, PrivatePkcs8KeyDer::from(chain.key().as_der().to_vec()).into())
}

fn certified(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<CertifiedKey, String> {
    let signing = rustls::crypto::ring::sign::any_supported_type(&key).map_err(|error| error.to_string())?;
    let certified = CertifiedKey::new(chain, signing);
    certified.keys_match().map_err(|_| "the certificate and the key do not belong together")?;
    Ok(certified)
}

/// TLS for what this process connects to: believes the roots of the host and those built in, and what `ca_file` holds.
///
/// Errors: what is wrong with the file, in one line.
pub fn client(ca_file: Option<&Path>) -> Result<Arc<ClientConfig>, String> {
    let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(file) = ca_file {
        let name = file.display();
        let text = std::fs::read(file).map_err(|error| format!("{name}: cannot be read: {error}"))?;
        let own = chain(&text).map_err(|what| format!("{name}: {what}"))?;
        let count = own.len();
        if roots.add_parsable_certificates(own).0 < count {
            return Err(format!("{name}: it holds something else than certificates"));
        }
    }
    Ok(Arc::new(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth()))
}
