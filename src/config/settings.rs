//! The `settings` block of a configuration file, as mmids has it: what it sets here, and what stands in the place of the rest. A flag or
//! variable that is given counts more than a setting.

use crate::cli::Args;
use crate::net::certificate::Password;
use crate::steps::ConfigError;
use crate::steps::definition::Setting;
use std::path::PathBuf;

/// The settings that mmids documents.
const KNOWN: [&str; 6] =
    ["ffmpeg_path", "ffmpeg_log_dir", "log_path", "http_api_port", "tls_cert_path", "tls_cert_password"];

/// A file's settings.
pub(super) type OfFile = (String, Vec<Setting>);

/// Puts settings in the place of flags that were not given. Says in one line each what is not taken and why.
///
/// Errors: a setting that is not known, or has no value that can be.
pub(super) fn apply(args: &mut Args, files: &[OfFile]) -> Result<Vec<String>, ConfigError> {
    let mut notes = Vec::new();
    // The password is for the certificate of the same file.
    let own_certificate = args.transport.tls_cert.is_none();
    for (file, settings) in files {
        for setting in settings {
            let note = one(args, setting, own_certificate).map_err(|what| ConfigError {
                file: file.clone(),
                line: Some(setting.line),
                what: format!("{}: {what}", setting.name),
            })?;
            notes.extend(note.map(|note| format!("{file}:{}: {}: {note}", setting.line, setting.name)));
        }
    }
    if args.transport.tls_cert.is_none() && args.transport.tls_password.is_some() {
        notes.push("tls_cert_password: it is of no use without tls_cert_path".to_owned());
    }
    Ok(notes)
}

fn one(args: &mut Args, setting: &Setting, own_certificate: bool) -> Result<Option<String>, String> {
    let name = setting.name.as_str();
    if !KNOWN.contains(&name) {
        return Err(format!("it is no setting; {} are", KNOWN.join(", ")));
    }
    let value = setting.value.clone().filter(|value| !value.is_empty()).ok_or("it lacks its value")?;
    let taken = match name {
        "ffmpeg_path" => {
            let free = !args.typed.given("--ffmpeg-path");
            if free {
                args.media.ffmpeg_path = PathBuf::from(value);
            }
            (free, "--ffmpeg-path")
        }
        "http_api_port" => {
            let port: Option<u16> = value.parse().ok().filter(|port| *port != 0);
            let port = port.ok_or_else(|| format!("'{value}' is not allowed; a port from 1 to 65535 is"))?;
            let free = args.admin_listen.is_none();
            // As by default, only this host reaches it.
            args.admin_listen.get_or_insert_with(|| format!("127.0.0.1:{port}"));
            (free, "--admin-listen")
        }
        "tls_cert_path" => {
            args.transport.tls_cert.get_or_insert_with(|| PathBuf::from(value));
            (own_certificate, "--tls-cert")
        }
        "tls_cert_password" => {
            let free = own_certificate && args.transport.tls_password_file.is_none();
            args.transport.tls_password = free.then_some(Password::Text(value));
            (free, "--tls-cert or --tls-password-file")
        }
        "log_path" => {
            let note = "the log goes to standard error, from where a service manager takes it; see --log and --log-format";
            return Ok(Some(note.to_owned()));
        }
        _ => return Ok(Some("what ffmpeg says is in the log of this process".to_owned())),
    };
    Ok(match taken {
        (true, _) => None,
        (false, flag) => Some(format!("{flag} is given, and counts more")),
    })
}
