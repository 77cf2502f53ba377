//! App and stream key: taking apart what clients put together in many ways.

/// An app as it was sent, in its parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct App {
    pub app: String,
    /// What followed the app's first slash.
    pub instance: String,
    pub query: Option<String>,
}

/// Splits `live/instance?query`, with stray slashes anywhere.
pub(super) fn split_app(text: &str) -> App {
    let (path, query) = split_query(text);
    let path = path.trim_matches('/');
    let (app, instance) = path.split_once('/').unwrap_or((path, ""));
    App { app: app.to_owned(), instance: instance.trim_matches('/').to_owned(), query }
}

/// Puts the app's instance in front of a stream key, and splits off the key's query.
///
/// ffmpeg and others take the first two elements of an address for the app: `rtmp://host/live/a/b` comes as app `live/a`
/// with key `b`, where OBS, told server `rtmp://host/live` and key `a/b`, sends just that. Both are the stream `a/b` of
/// the app `live`. With an empty key the instance alone is the name, for encoders that know one address field only.
pub(super) fn stream_key(instance: &str, key: &str) -> (String, Option<String>) {
    let (key, query) = split_query(key);
    let key = key.trim_start_matches('/');
    let name = match (instance, key) {
        ("", key) => key.to_owned(),
        (instance, "") => instance.to_owned(),
        (instance, key) => format!("{instance}/{key}"),
    };
    (name, query)
}

/// Splits at the first `?`. An empty query is none.
pub(super) fn split_query(text: &str) -> (&str, Option<String>) {
    let (path, query) = text.split_once('?').unwrap_or((text, ""));
    (path, (!query.is_empty()).then(|| query.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_app_is_split_however_it_is_written() {
        for (text, app, instance, query) in [
            ("live", "live", "", None),
            ("live/", "live", "", None),
            ("/live", "live", "", None),
            ("live/inst", "live", "inst", None),
            ("live/a/b/", "live", "a/b", None),
            ("live?token=a/b", "live", "", Some("token=a/b")),
            ("live/?token=1", "live", "", Some("token=1")),
            ("live/inst?x=1?y", "live", "inst", Some("x=1?y")),
            ("live?", "live", "", None),
            ("", "", "", None),
        ] {
            let query = query.map(str::to_owned);
            let want = App { app: app.to_owned(), instance: instance.to_owned(), query };
            assert_eq!(split_app(text), want, "{text}");
        }
    }

    #[test]
    fn a_key_takes_the_instance_and_gives_up_its_query() {
        for (instance, key, name, query) in [
            ("", "x", "x", None),
            ("", "/x", "x", None),
            ("", "x?token=1", "x", Some("token=1")),
            ("", "?token=1", "", Some("token=1")),
            ("inst", "x?token=1", "inst/x", Some("token=1")),
            ("x", "", "x", None),
            ("x", "?token=1", "x", Some("token=1")),
            ("", "", "", None),
        ] {
            assert_eq!(stream_key(instance, key), (name.to_owned(), query.map(str::to_owned)), "{key}");
        }
    }
}
