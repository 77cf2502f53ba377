//! What a player asks for: the head of an HTTP request (RFC 9112), and the heads of the answers. Pure.

use percent_encoding::percent_decode_str;
use tungstenite::handshake::derive_accept_key;
use url::form_urlencoded;

/// The longest head of a request, bytes: browsers send up to some kilobytes of cookies to a host that has others for them.
pub const HEAD_MAX: usize = 16 << 10;

/// The most header fields in one.
const FIELDS_MAX: usize = 100;

/// A stream that a player wants.
#[derive(Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The first element of the path.
    pub app: String,
    /// The rest of it, without `.flv`.
    pub key: String,
    /// The query, with a token from an `Authorization` field.
    pub query: Option<String>,
    /// The answer to its handshake, if it wants a WebSocket.
    pub websocket: Option<String>,
}

/// A file of HLS that a player wants.
#[derive(Debug, PartialEq, Eq)]
pub struct HlsWanted {
    /// The first element of the path.
    pub app: String,
    /// The rest of it, without what tells the file.
    pub key: String,
    /// As that of [`Wanted`].
    pub query: Option<String>,
    /// Which of its files.
    pub file: File,
    /// The connection may be used again.
    pub keep_alive: bool,
}

/// A file of HLS.
#[derive(Debug, PartialEq, Eq)]
pub enum File {
    /// `NAME.m3u8`.
    Playlist,
    /// `NAME-NUMBER.ts`: the number, in digits.
    Segment(String),
}

/// What a request comes to.
#[derive(Debug, PartialEq, Eq)]
pub enum Request {
    /// To play.
    Play(Wanted),
    /// A file of HLS.
    Hls(HlsWanted),
    /// A browser asks whether its page may play from here (CORS preflight).
    Preflight,
    /// Something that is answered with an error.
    Refused(Status, &'static str),
}

/// The status of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// 400.
    BadRequest,
    /// 403.
    Forbidden,
    /// 404.
    NotFound,
    /// 405.
    MethodNotAllowed,
    /// 431.
    HeadTooLarge,
    /// 503, to be tried again.
    Unavailable,
}

impl Status {
    fn line(self) -> &'static str {
        match self {
            Status::BadRequest => "400 Bad Request",
            Status::Forbidden => "403 Forbidden",
            Status::NotFound => "404 Not Found",
            Status::MethodNotAllowed => "405 Method Not Allowed\r\nAllow: GET, OPTIONS",
            Status::HeadTooLarge => "431 Request Header Fields Too Large",
            Status::Unavailable => "503 Service Unavailable\r\nRetry-After: 1",
        }
    }
}

/// Reads a request; nothing: its head is not complete yet.
pub fn read(bytes: &[u8]) -> Option<Request> {
    let refused = |status, why| Some(Request::Refused(status, why));
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut request = httparse::Request::new(&mut fields);
    match request.parse(bytes) {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) if bytes.len() < HEAD_MAX => return None,
        Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
            return refused(Status::HeadTooLarge, "the head of the request is too long");
        }
        Err(_) => return refused(Status::BadRequest, "this is no HTTP request"),
    }
    let field = |name: &str| {
        let found = request.headers.iter().find(|field| field.name.eq_ignore_ascii_case(name));
        found.and_then(|field| std::str::from_utf8(field.value).ok()).map(str::trim)
    };
    match request.method {
        Some("OPTIONS") => return Some(Request::Preflight),
        Some("GET") => {}
        _ => return refused(Status::MethodNotAllowed, "GET is allowed"),
    }
    let (path, query) = match request.path.unwrap_or_default().split_once('?') {
        Some((path, query)) => (path, Some(query.to_owned())),
        None => (request.path.unwrap_or_default(), None),
    };
    let (file, path) = match path.strip_suffix(".flv") {
        Some(path) => (None, Some(path)),
        None => hls(path).map_or((None, None), |(file, path)| (Some(file), Some(path))),
    };
    let place = path.and_then(|path| path.strip_prefix('/')?.split_once('/'));
    let decoded = |text: &str| percent_decode_str(text).decode_utf8().ok().map(|text| text.into_owned());
    let Some((Some(app), Some(key))) = place.map(|(app, key)| (decoded(app), decoded(key))) else {
        return refused(Status::NotFound, "streams are at /APP/NAME.flv, and /APP/NAME.m3u8 as HLS");
    };
    let query = match (field("authorization").and_then(bearer), query) {
        (Some(token), query) => {
            let token = form_urlencoded::Serializer::new(String::new()).append_pair("token", token).finish();
            Some(query.map(|query| format!("{query}&{token}")).unwrap_or(token))
        }
        (None, query) => query,
    };
    if let Some(file) = file {
        let closes = field("connection").is_some_and(|connection| connection.eq_ignore_ascii_case("close"));
        // HTTP/1.0 has connections for one request.
        let keep_alive = request.version == Some(1) && !closes;
        return Some(Request::Hls(HlsWanted { app, key, query, file, keep_alive }));
    }
    let websocket = match field("upgrade").filter(|to| to.eq_ignore_ascii_case("websocket")) {
        Some(_) => match field("sec-websocket-key") {
            Some(key) => Some(derive_accept_key(key.as_bytes())),
            None => return refused(Status::BadRequest, "Sec-WebSocket-Key is missing"),
        },
        None => None,
    };
    Some(Request::Play(Wanted { app, key, query, websocket }))
}

/// Which file of HLS a path names, and what is left of the path.
fn hls(path: &str) -> Option<(File, &str)> {
    if let Some(path) = path.strip_suffix(".m3u8") {
        return Some((File::Playlist, path));
    }
    let (path, number) = path.strip_suffix(".ts")?.rsplit_once('-')?;
    let is_number = !number.is_empty() && number.bytes().all(|digit| digit.is_ascii_digit());
    is_number.then(|| (File::Segment(number.to_owned()), path))
}

fn bearer(authorization: &str) -> Option<&str> {
    let (scheme, token) = authorization.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// Pages of any origin may play: a player runs on somebody's page, and who may watch is decided by `--auth-…`, never by a cookie.
const CORS: &str = "Access-Control-Allow-Origin: *\r\nCross-Origin-Resource-Policy: cross-origin\r\n";

/// The head before a stream. It ends with the connection.
pub fn stream_head(websocket: Option<&str>) -> String {
    match websocket {
        Some(accept) => format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {accept}\r\n\r\n"
        ),
        None => format!(
            "HTTP/1.1 200 OK\r\nContent-Type: video/x-flv\r\nCache-Control: no-store\r\n{CORS}Connection: close\r\n\r\n"
        ),
    }
}

/// The head before a playlist, which is another one each time.
pub fn playlist_head(length: usize, keep_alive: bool) -> String {
    let connection = connection(keep_alive);
    format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/vnd.apple.mpegurl\r\nContent-Length: {length}\r\n\
         Cache-Control: no-cache\r\n{CORS}{connection}\r\n"
    )
}

/// The head before a segment, which never changes. `public`: anybody may play, so that a cache may give it to anybody.
pub fn segment_head(length: u64, keep_alive: bool, public: bool) -> String {
    let (connection, whose) = (connection(keep_alive), if public { "public" } else { "private" });
    format!(
        "HTTP/1.1 200 OK\r\nContent-Type: video/mp2t\r\nContent-Length: {length}\r\n\
         Cache-Control: {whose}, max-age=3600, immutable\r\n{CORS}{connection}\r\n"
    )
}

fn connection(keep_alive: bool) -> &'static str {
    if keep_alive { "" } else { "Connection: close\r\n" }
}

/// The answer to a preflight.
pub fn preflight() -> String {
    format!(
        "HTTP/1.1 204 No Content\r\n{CORS}Access-Control-Allow-Methods: GET\r\n\
         Access-Control-Allow-Headers: authorization, range\r\nAccess-Control-Max-Age: 86400\r\nConnection: close\r\n\r\n"
    )
}

/// An error, with a text for people.
pub fn refusal(status: Status, text: &str) -> String {
    let (line, length) = (status.line(), text.len() + 1);
    format!(
        "HTTP/1.1 {line}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {length}\r\n\
         Cache-Control: no-store\r\n{CORS}Connection: close\r\n\r\n{text}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn get(path: &str, fields: &str) -> Request {
        read(format!("GET {path} HTTP/1.1\r\nHost: a\r\n{fields}\r\n").as_bytes()).unwrap()
    }

    #[test]
    fn a_stream_is_named_by_app_and_path() {
        let wanted = |app: &str, key: &str, query: Option<&str>| {
            let query = query.map(str::to_owned);
            Request::Play(Wanted { app: app.to_owned(), key: key.to_owned(), query, websocket: None })
        };
        assert_eq!(get("/live/x.flv", ""), wanted("live", "x", None));
        assert_eq!(get("/live/team%2Fa/x.flv?token=1", ""), wanted("live", "team/a/x", Some("token=1")));
        let bearer = "Authorization: Bearer a+b\r\n";
        assert_eq!(get("/live/x.flv?q", bearer), wanted("live", "x", Some("q&token=a%2Bb")));
    }

    #[test]
    fn files_of_hls_are_told_by_their_ends() {
        let wanted = |key: &str, file, keep_alive| {
            let (app, key) = ("live".to_owned(), key.to_owned());
            Request::Hls(HlsWanted { app, key, query: Some("token=1".to_owned()), file, keep_alive })
        };
        assert_eq!(get("/live/team/x.m3u8?token=1", ""), wanted("team/x", File::Playlist, true));
        let segment = || File::Segment("17".to_owned());
        assert_eq!(get("/live/x-y-17.ts?token=1", "Connection: close\r\n"), wanted("x-y", segment(), false));
        for other in ["/live/x.ts", "/live/x-.ts", "/live/x-1a.ts", "/x.m3u8"] {
            assert!(matches!(get(other, ""), Request::Refused(Status::NotFound, _)), "{other}");
        }
    }

    #[test]
    fn a_websocket_gets_the_answer_of_the_specification() {
        let fields =
            "Upgrade: WebSocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
        let Request::Play(wanted) = get("/live/x.flv", fields) else { panic!() };
        // RFC 6455, 1.3.
        assert_eq!(wanted.websocket.as_deref(), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
        assert!(matches!(
            get("/live/x.flv", "Upgrade: websocket\r\n"),
            Request::Refused(Status::BadRequest, _)
        ));
    }

    #[test]
    fn what_is_no_stream_is_refused_and_what_is_not_complete_waited_for() {
        for (bytes, status) in [
            ("POST /live/x.flv HTTP/1.1\r\n\r\n", Status::MethodNotAllowed),
            ("GET / HTTP/1.1\r\n\r\n", Status::NotFound),
            ("GET /x.flv HTTP/1.1\r\n\r\n", Status::NotFound),
            ("GET /live/x HTTP/1.1\r\n\r\n", Status::NotFound),
            ("\x03\0\0\0", Status::BadRequest),
        ] {
            let read = read(bytes.as_bytes());
            assert!(matches!(read, Some(Request::Refused(is, _)) if is == status), "{bytes}: {read:?}");
        }
        assert_eq!(read(b"GET /live/x.flv HTTP/1.1\r\nHost: "), None);
        let endless = format!("GET /live/x.flv HTTP/1.1\r\nCookie: {}", "a".repeat(HEAD_MAX));
        assert!(matches!(read(endless.as_bytes()), Some(Request::Refused(Status::HeadTooLarge, _))));
        assert_eq!(read(b"OPTIONS /live/x.flv HTTP/1.1\r\n\r\n"), Some(Request::Preflight));
    }

    proptest! {
        #[test]
        fn anything_is_an_answer_or_not_complete(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _any = read(&bytes);
        }
    }
}
