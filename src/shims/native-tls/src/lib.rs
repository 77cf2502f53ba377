//! The interface of `native-tls`, without TLS behind it.
//!
//! `mmids-core` links `native-tls` for its own TCP listener, which this project never starts: RTMP sockets are ours and
//! HTTPS is rustls. The real crate would bring OpenSSL into the build (headers, a C compiler, a shared library on each
//! host), so the dependency is patched to this one. Every operation that would need TLS is refused with an [`Error`].

use std::fmt;
use std::io::{self, Read, Write};

/// Result of an operation of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Why nothing here succeeds: there is no TLS library behind this interface.
#[derive(Debug)]
pub struct Error(());

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("this build has no native TLS library")
    }
}

impl std::error::Error for Error {}

/// A key and its certificates. None can be read here.
#[derive(Clone)]
pub struct Identity(());

impl Identity {
    /// Always refused, see the crate's head.
    pub fn from_pkcs12(_der: &[u8], _password: &str) -> Result<Identity> {
        Err(Error(()))
    }

    /// Always refused, see the crate's head.
    pub fn from_pkcs8(_pem: &[u8], _key: &[u8]) -> Result<Identity> {
        Err(Error(()))
    }
}

/// The server's side of a handshake. None can be built here.
#[derive(Clone)]
pub struct TlsAcceptor(());

/// Builds a [`TlsAcceptor`].
pub struct TlsAcceptorBuilder(());

impl TlsAcceptor {
    /// Starts a builder.
    pub fn builder(_identity: Identity) -> TlsAcceptorBuilder {
        TlsAcceptorBuilder(())
    }

    /// Always refused, see the crate's head.
    pub fn accept<S: Read + Write>(
        &self,
        _stream: S,
    ) -> std::result::Result<TlsStream<S>, HandshakeError<S>> {
        Err(HandshakeError::Failure(Error(())))
    }
}

impl TlsAcceptorBuilder {
    /// Always refused, see the crate's head.
    pub fn build(&self) -> Result<TlsAcceptor> {
        Err(Error(()))
    }
}

/// The client's side of a handshake. None can be built here.
#[derive(Clone)]
pub struct TlsConnector(());

impl TlsConnector {
    /// Always refused, see the crate's head.
    pub fn connect<S: Read + Write>(
        &self,
        _domain: &str,
        _stream: S,
    ) -> std::result::Result<TlsStream<S>, HandshakeError<S>> {
        Err(HandshakeError::Failure(Error(())))
    }
}

/// How a handshake ends when it does not succeed.
#[derive(Debug)]
pub enum HandshakeError<S> {
    /// It failed for good.
    Failure(Error),
    /// It waits for the socket. Never made here.
    WouldBlock(MidHandshakeTlsStream<S>),
}

/// A handshake that waits for its socket. Never made here.
#[derive(Debug)]
pub struct MidHandshakeTlsStream<S>(TlsStream<S>);

impl<S> MidHandshakeTlsStream<S> {
    /// The stream below.
    pub fn get_ref(&self) -> &S {
        &self.0.inner
    }

    /// The stream below.
    pub fn get_mut(&mut self) -> &mut S {
        &mut self.0.inner
    }

    /// Always refused, see the crate's head.
    pub fn handshake(self) -> std::result::Result<TlsStream<S>, HandshakeError<S>> {
        Err(HandshakeError::Failure(Error(())))
    }
}

/// An encrypted stream. Never made here, so its methods are only there to be named.
#[derive(Debug)]
pub struct TlsStream<S> {
    inner: S,
}

impl<S> TlsStream<S> {
    /// The stream below.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }

    /// The stream below.
    pub fn get_mut(&mut self) -> &mut S {
        &mut self.inner
    }

    /// Bytes that were decrypted and not yet read.
    pub fn buffered_read_size(&self) -> Result<usize> {
        Err(Error(()))
    }

    /// Ends the encrypted stream.
    pub fn shutdown(&mut self) -> io::Result<()> {
        Err(io::Error::other(Error(())))
    }
}

impl<S: Read + Write> Read for TlsStream<S> {
    fn read(&mut self, _buf: &mut [u8]) -> io::Result<usize> {
        Err(io::Error::other(Error(())))
    }
}

impl<S: Read + Write> Write for TlsStream<S> {
    fn write(&mut self, _buf: &[u8]) -> io::Result<usize> {
        Err(io::Error::other(Error(())))
    }

    fn flush(&mut self) -> io::Result<()> {
        Err(io::Error::other(Error(())))
    }
}
