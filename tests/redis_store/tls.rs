//! A server that speaks TLS, with a certificate of a private CA.

use super::redis_server::{RedisServer, free_address};
use super::*;
use lb::registry::RedisUrlError;
use lb::registry::store::Unreachable;
use std::path::Path;
use std::process::Command;

fn openssl(directory: &Path, arguments: &str) {
    let output = Command::new("openssl")
        .args(arguments.split(' '))
        .current_dir(directory)
        .output()
        .expect("openssl is needed");
    assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Makes a CA, and a server's certificate for `ip` that it signed.
fn make_certificates(directory: &Path, ip: &str) {
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
    openssl(directory, &format!("req -x509 {key} -keyout ca.key -out ca.pem -days 2 -subj /CN=ca"));
    openssl(directory, &format!("req {key} -keyout server.key -out server.csr -subj /CN=redis"));
    std::fs::write(directory.join("names"), format!("subjectAltName=IP:{ip}")).unwrap();
    let sign = "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out server.pem -days 2";
    openssl(directory, &format!("{sign} -extfile names"));
}

#[tokio::test]
async fn a_server_with_tls_is_believed_if_its_ca_is() {
    lb::client::install_crypto_provider();
    let (directory, address) = (tempfile::tempdir().unwrap(), free_address());
    make_certificates(directory.path(), &address.ip().to_string());
    let other = tempfile::tempdir().unwrap();
    make_certificates(other.path(), &address.ip().to_string());
    let file = |name: &str| directory.path().join(name).display().to_string();
    let _server = RedisServer::on_tls(address, &file("server.pem"), &file("server.key"), &file("ca.pem"));

    let store = connect(&format!("rediss://{address}?ca={}", file("ca.pem"))).await;
    let mut announcements = store.announcements();
    store.write(vec![announcing(write(&stream("x"), None, Some("1")), "over TLS")]).await.unwrap();
    assert_eq!(heard(&mut announcements).await, "over TLS");
    assert_eq!(get(&store, &stream("x")).await.as_deref(), Some("1"));

    let wrong_ca = format!("rediss://{address}?ca={}", other.path().join("ca.pem").display());
    for url in [wrong_ca, format!("rediss://{address}"), format!("redis://{address}")] {
        let store = Redis::start(&url).unwrap();
        assert_eq!(store.read(vec![stream("x")]).await, Err(Unreachable), "{url}");
        assert_eq!(store.memory(), None);
    }
    let no_certificate = format!("rediss://{address}?ca={}", file("server.key"));
    assert!(matches!(Redis::start(&no_certificate), Err(RedisUrlError::Ca(..))));
}
