//! The text of the reply to a watcher lookup: a workflow definition with places to fill.

use crate::api::word;
use crate::ids::{Origin, StreamName};
use std::net::{Ipv4Addr, Ipv6Addr};

/// The template that is used unless another one is given.
const DEFAULT: &str = include_str!("../../mmids-configs/watcher_reply.mmids");

/// The longest template, in bytes: every watcher lookup carries it.
const TEMPLATE_MAX: usize = 64 * 1024;

/// The scheme of origins that are pulled from without TLS.
const SCHEME: &str = "rtmp://";

/// Why a text is not a template.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// More than 64 KiB.
    #[error("the template is longer than 65536 bytes")]
    TooLong,
    /// `{word}` that is no placeholder.
    #[error(
        "line {line}: '{{{word}}}' is not a placeholder; {{stream_name}}, {{ip_address}} and {{pull}} are allowed"
    )]
    Unknown {
        /// The line, from 1.
        line: usize,
        /// What stands between the braces.
        word: String,
    },
    /// A placeholder that must be there is not.
    #[error("the template has no {{{0}}}")]
    Missing(&'static str),
    /// A closing brace without an opening one, or an opening one (on that line) that is never closed.
    #[error("line {0}: this brace has no counterpart")]
    Unbalanced(usize),
    /// What the template makes is not a workflow definition.
    #[error("with sample values the template is not a workflow definition: {0}")]
    Grammar(String),
}

/// A parsed template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    StreamName,
    /// `rtmp://` before the address: another scheme for an origin that is pulled from by TLS.
    Scheme,
    IpAddress,
    Pull,
}

impl Template {
    /// Reads a template. `{stream_name}` and `{ip_address}` must occur; `{pull}` may, and stands for the step that
    /// pulls. All other braces are the text's own and must be balanced.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        if text.len() > TEMPLATE_MAX {
            return Err(TemplateError::TooLong);
        }
        let mut parts = Vec::new();
        let mut open = Vec::new();
        let (mut literal, mut line, mut rest) = (String::new(), 1, text);
        while let Some(c) = rest.chars().next() {
            if let Some((word, after)) = placeholder(rest) {
                let part = match word {
                    "stream_name" => Part::StreamName,
                    "ip_address" => Part::IpAddress,
                    "pull" => Part::Pull,
                    _ => {
                        return Err(TemplateError::Unknown { line, word: word.to_owned() });
                    }
                };
                let mut text = std::mem::take(&mut literal);
                let scheme = text.strip_suffix(SCHEME).filter(|_| part == Part::IpAddress).map(str::len);
                scheme.iter().for_each(|length| text.truncate(*length));
                parts.push(Part::Text(text));
                parts.extend(scheme.map(|_| Part::Scheme));
                parts.push(part);
                rest = after;
                continue;
            }
            match c {
                '\n' => line += 1,
                '{' => open.push(line),
                '}' if open.pop().is_none() => return Err(TemplateError::Unbalanced(line)),
                _ => {}
            }
            literal.push(c);
            rest = rest.get(c.len_utf8()..).unwrap_or_default();
        }
        parts.push(Part::Text(literal));
        if let Some(line) = open.pop() {
            return Err(TemplateError::Unbalanced(line));
        }
        for (part, word) in [(Part::StreamName, "stream_name"), (Part::IpAddress, "ip_address")] {
            if !parts.contains(&part) {
                return Err(TemplateError::Missing(word));
            }
        }
        Ok(Template(parts))
    }

    /// Renders samples and has them checked, by a parser that this module does not know.
    pub fn check(&self, check: &dyn Fn(&str) -> Result<(), String>) -> Result<(), TemplateError> {
        let names = ["live/a-b_c.d:e,0", "~live/+a=@b%"].map(StreamName::parse);
        let origins = [
            Origin::from_ip(Ipv4Addr::LOCALHOST.into(), 1935),
            Origin::from_ip(Ipv6Addr::LOCALHOST.into(), 1936),
            Origin::from_ip(Ipv4Addr::LOCALHOST.into(), 1936).by_tls(),
        ];
        for name in names.iter().flatten() {
            for origin in &origins {
                for native in [false, true] {
                    check(&self.render(name, origin, native)).map_err(TemplateError::Grammar)?;
                }
            }
        }
        Ok(())
    }

    /// The reply for a stream that can be pulled from an origin; `native` if the node has the step `rtmp_pull`. What the words of a
    /// definition cannot hold of the name is written as escapes, which plain mmids nodes cannot read: see [`word::is_plain_word`].
    pub fn render(&self, name: &StreamName, origin: &Origin, native: bool) -> String {
        let (scheme, origin) = (if origin.is_tls() { "rtmps://" } else { SCHEME }, origin.authority());
        let pull = if native { "rtmp_pull" } else { "ffmpeg_pull" };
        let mut written = String::with_capacity(name.as_str().len());
        word::write(name.as_str(), &mut written);
        let mut text = String::new();
        for part in &self.0 {
            text.push_str(match part {
                Part::Text(text) => text,
                Part::StreamName => &written,
                Part::Scheme => scheme,
                Part::IpAddress => &origin,
                Part::Pull => pull,
            });
        }
        text
    }
}

impl Default for Template {
    fn default() -> Self {
        // The unit test below parses the embedded file: it cannot fail here.
        Template::parse(DEFAULT).unwrap_or(Template(Vec::new()))
    }
}

/// `{word}` at the start of a text, and what follows it.
fn placeholder(text: &str) -> Option<(&str, &str)> {
    let (word, after) = text.strip_prefix('{')?.split_once('}')?;
    let is_word = !word.is_empty() && word.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    is_word.then_some((word, after))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn render(template: &str) -> String {
        let (name, origin) = ("a/b".parse().unwrap(), "[2001:db8::2]:1936".parse().unwrap());
        Template::parse(template).unwrap().render(&name, &origin, true)
    }

    #[test]
    fn an_origin_that_is_pulled_from_by_tls_has_its_scheme() {
        let (name, origin) = ("x".parse().unwrap(), "rtmps://10.1.2.3:1936".parse().unwrap());
        let text = Template::default().render(&name, &origin, true);
        assert!(text.contains("location=rtmps://10.1.2.3:1936/pull_source/x "), "{text}");
        let template = Template::parse("w {stream_name} at {ip_address}").unwrap();
        assert_eq!(template.render(&name, &origin, true), "w x at 10.1.2.3:1936");
    }

    #[test]
    fn the_default_is_the_contract_to_the_letter() {
        let template = Template::parse(DEFAULT).unwrap();
        assert_eq!(template, Template::default());
        let (name, origin) = ("x".parse().unwrap(), "10.1.2.3".parse().unwrap());
        assert_eq!(
            template.render(&name, &origin, false),
            "workflow ingest_x {\n    ffmpeg_pull location=rtmp://10.1.2.3/pull_source/x stream_name=x\n}\n"
        );
        assert!(template.render(&name, &origin, true).contains("    rtmp_pull location="));
    }

    #[test]
    fn braces_of_the_workflow_are_left_alone() {
        assert_eq!(render("{stream_name} { {ip_address} {} }"), "a/b { [2001:db8::2]:1936 {} }");
        assert_eq!(
            render("w {\n {pull} {stream_name}{ip_address}\n}"),
            "w {\n rtmp_pull a/b[2001:db8::2]:1936\n}"
        );
    }

    #[test]
    fn mistakes_are_named_with_their_line() {
        for (text, message) in [
            (
                "a\n{name} {ip_address}",
                "line 2: '{name}' is not a placeholder; {stream_name}, {ip_address} and {pull} are allowed",
            ),
            ("{ip_address}", "the template has no {stream_name}"),
            ("{stream_name}", "the template has no {ip_address}"),
            ("{stream_name} {ip_address}\n}", "line 2: this brace has no counterpart"),
            ("w {\n{\n}{stream_name} {ip_address}", "line 1: this brace has no counterpart"),
        ] {
            assert_eq!(Template::parse(text).unwrap_err().to_string(), message, "{text}");
        }
        assert_eq!(Template::parse(&"x".repeat(TEMPLATE_MAX + 1)), Err(TemplateError::TooLong));
    }

    #[test]
    fn samples_are_checked_by_whoever_knows_the_grammar() {
        let template = Template::default();
        assert_eq!(
            template.check(&|text| text.contains("pull").then_some(()).ok_or("no pull".into())),
            Ok(())
        );
        let error = template.check(&|text| {
            if text.contains("[::1]:1936") { Err("no IPv6".into()) } else { Ok(()) }
        });
        assert_eq!(error, Err(TemplateError::Grammar("no IPv6".into())));
    }

    proptest! {
        #[test]
        fn any_text_is_a_template_or_a_clear_error(text in "[{}a-c\\n_]{0,20}(\\{stream_name\\}\\{ip_address\\})?[{}a\\n]{0,9}") {
            match Template::parse(&text) {
                Ok(template) => {
                    let rendered = template.render(&"n".parse().unwrap(), &"h".parse().unwrap(), false);
                    prop_assert_eq!(rendered, text.replace("{stream_name}", "n").replace("{ip_address}", "h"));
                }
                Err(error) => prop_assert!(!error.to_string().is_empty()),
            }
        }
    }
}
