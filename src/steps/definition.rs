//! The text of a configuration or of a lookup's answer, read into definitions.
//!
//! The grammar is `mmids-core`'s, which lacks what real addresses need: brackets, question marks, a second equals sign,
//! most characters in comments. So a text is made readable for it first: comments go, and characters that its words
//! cannot hold are written as escapes ([`word`]), which are taken back out of every word afterwards. Line numbers stay. A reactor
//! writes such escapes into its answers, so those of a text are left as they are.
//!
//! It knows which steps and parameters exist only through what the caller passes in.

use crate::api::word;
use mmids_core::config::{self, ConfigParseError};
use mmids_core::workflows::definitions::{WorkflowDefinition, WorkflowStepDefinition};
use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

/// What is wrong with a configuration, and where. Shown as one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The file, or another name of the text.
    pub file: String,
    /// The line, counted from one, if it is known.
    pub line: Option<usize>,
    /// What is wrong and what is allowed.
    pub what: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}: {}", self.file, self.what),
            None => write!(f, "{}: {}", self.file, self.what),
        }
    }
}

impl std::error::Error for ConfigError {}

/// A configuration.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// The settings, by line.
    pub settings: Vec<Setting>,
    /// The mmids reactors, by line.
    pub reactors: Vec<ReactorDefinition>,
    /// The workflows, by line.
    pub workflows: Vec<Workflow>,
}

/// One line of a `settings` block. `Debug` shows no value, which may be a password.
#[derive(Clone, PartialEq, Eq)]
pub struct Setting {
    /// Its name.
    pub name: String,
    /// What it is set to.
    pub value: Option<String>,
    /// The line it stands on.
    pub line: usize,
}

impl fmt::Debug for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.name)
    }
}

/// An mmids reactor: how names are looked up.
#[derive(Clone, Debug)]
pub struct ReactorDefinition {
    /// What steps name.
    pub name: String,
    /// The executor's name.
    pub executor: String,
    /// How long until a followed name is looked up again; zero: never.
    pub update_interval: Duration,
    /// The executor's parameters. `url:` is `url`.
    pub parameters: HashMap<String, Option<String>>,
    /// The line it begins on.
    pub line: usize,
}

/// A workflow with the lines it stands on.
#[derive(Clone, Debug)]
pub struct Workflow {
    /// What the engine runs.
    pub definition: WorkflowDefinition,
    /// The line of each step.
    pub lines: Vec<usize>,
    /// The line it begins on.
    pub line: usize,
}

/// Reads a text. `file` is named in errors; `variables` fill `${NAME}`.
pub fn parse(file: &str, text: &str, variables: &HashMap<&str, String>) -> Result<Config, ConfigError> {
    let error = |line: Option<usize>, what: String| ConfigError { file: file.to_owned(), line, what };
    let mut readable = String::with_capacity(text.len());
    for (index, line) in text.lines().enumerate() {
        let filled = fill(line, variables).map_err(|what| error(Some(index + 1), what))?;
        let escaped = escape_line(&filled).map_err(|what| error(Some(index + 1), what))?;
        readable.push_str(&escaped);
        readable.push('\n');
    }
    let places = Places::find(&readable);
    let parsed = config::parse(&readable).map_err(|parse_error| {
        let (line, what) = explain(&parse_error, text, &places);
        error(line, what)
    })?;
    let mut config = Config::default();
    for (name, value) in parsed.settings {
        config.settings.push(Setting {
            line: places.setting(&name),
            name: word::read(&name),
            value: value.map(|value| word::read(&value)),
        });
    }
    for (name, reactor) in parsed.reactors {
        let parameters = reactor.parameters.into_iter().map(|(key, value)| {
            let key = word::read(&key);
            (key.strip_suffix(':').unwrap_or(&key).to_owned(), value.map(|value| word::read(&value)))
        });
        config.reactors.push(ReactorDefinition {
            line: places.line("reactor", &name),
            name: word::read(&name),
            executor: word::read(&reactor.executor),
            update_interval: reactor.update_interval,
            parameters: parameters.collect(),
        });
    }
    for (name, workflow) in parsed.workflows {
        let steps = workflow.steps.into_iter().map(|step| WorkflowStepDefinition {
            step_type: step.step_type,
            parameters: step
                .parameters
                .into_iter()
                .map(|(key, value)| (word::read(&key), value.map(|value| word::read(&value))))
                .collect(),
        });
        config.workflows.push(Workflow {
            line: places.line("workflow", &name),
            lines: places.children("workflow", &name),
            definition: WorkflowDefinition {
                name: word::read(&name).into(),
                routed_by_reactor: workflow.routed_by_reactor,
                steps: steps.collect(),
            },
        });
    }
    config.settings.sort_by_key(|setting| setting.line);
    config.reactors.sort_by_key(|reactor| reactor.line);
    config.workflows.sort_by_key(|workflow| workflow.line);
    Ok(config)
}

/// A text with `${NAME}` filled, and nothing else changed.
pub fn fill_text(file: &str, text: &str, variables: &HashMap<&str, String>) -> Result<String, ConfigError> {
    let fill = |(index, line): (usize, &str)| {
        let error = |what| ConfigError { file: file.to_owned(), line: Some(index + 1), what };
        fill(line, variables).map(|line| line + "\n").map_err(error)
    };
    text.lines().enumerate().map(fill).collect()
}

/// Splits a line where its comment begins: at a `#` outside quotation marks, at the line's start or after white space. A
/// `#` inside a word is part of it.
fn split_comment(line: &str) -> (&str, &str) {
    let mut quoted = false;
    let mut previous = ' ';
    for (position, c) in line.char_indices() {
        match c {
            '"' => quoted = !quoted,
            '#' if !quoted && previous.is_whitespace() => return line.split_at(position),
            _ => {}
        }
        previous = c;
    }
    (line, "")
}

/// Replaces `${NAME}`, but not in a comment. A list of URLs takes what follows it in the word on each of its members.
fn fill(line: &str, variables: &HashMap<&str, String>) -> Result<String, String> {
    let (mut rest, comment) = split_comment(line);
    let mut filled = String::new();
    while let Some((before, after)) = rest.split_once("${") {
        let Some((name, after)) = after.split_once('}') else {
            return Err(format!("'${{{after}' has no closing brace"));
        };
        let Some(value) = variables.get(name) else {
            let mut known: Vec<&str> = variables.keys().copied().collect();
            known.sort_unstable();
            return Err(format!("${{{name}}} is not known; {} are", known.join(", ")));
        };
        filled.push_str(before);
        let end = after.find(char::is_whitespace).unwrap_or(after.len());
        let (suffix, after) = after.split_at(end);
        if value.contains(',') && !suffix.contains("${") {
            let members: Vec<String> =
                value.split(',').map(|member| format!("{}{suffix}", member.trim())).collect();
            filled.push_str(&members.join(","));
            rest = after;
        } else {
            filled.push_str(value);
            rest = rest.get(rest.len() - suffix.len() - after.len()..).unwrap_or_default();
        }
    }
    filled.push_str(rest);
    filled.push_str(comment);
    Ok(filled)
}

/// Where the name of the workflow stands that begins on this line. Web servers make it of a stream's name, which may hold `=`.
fn workflow_name(line: &str) -> std::ops::Range<usize> {
    const HEAD: &str = "workflow";
    let begin = line.len() - line.trim_start().len();
    let after = line.get(begin..).and_then(|line| line.strip_prefix(HEAD)).unwrap_or_default();
    let name = after.trim_start();
    if name.len() == after.len() {
        return 0..0;
    }
    let begin = line.len() - name.len();
    begin..begin + name.find(char::is_whitespace).unwrap_or(name.len())
}

/// A line without its comment, with every character that the grammar's words lack written as an escape.
fn escape_line(line: &str) -> Result<String, String> {
    let (line, _) = split_comment(line);
    let mut out = String::with_capacity(line.len());
    let mut quoted = false;
    let mut equals = false;
    let structural_close = line.trim() == "}";
    let opening = line.trim_end().strip_suffix('{').map(str::len);
    let name = workflow_name(line);
    for (position, c) in line.char_indices() {
        match c {
            '"' => {
                quoted = !quoted;
                out.push(c);
            }
            ' ' | '\t' => {
                if !quoted {
                    equals = false;
                }
                out.push(c);
            }
            '\r' => {}
            '=' if !quoted && !equals && !name.contains(&position) => {
                equals = true;
                out.push(c);
            }
            '{' if !quoted && Some(position) == opening => out.push(c),
            '}' if structural_close => out.push(c),
            '\\' if word::escape(line.get(position..).unwrap_or_default()).is_some() => out.push(c),
            other => word::write_char(other, &mut out),
        }
    }
    if quoted { Err("a quotation mark is not closed on its line".to_owned()) } else { Ok(out) }
}

/// The lines of blocks and of what is in them.
struct Places(Vec<Block>);

struct Block {
    kind: String,
    name: String,
    line: usize,
    /// The line of each, and its first word.
    children: Vec<(usize, String)>,
}

impl Places {
    fn find(text: &str) -> Self {
        let mut blocks: Vec<Block> = Vec::new();
        let mut open = false;
        for (index, line) in text.lines().enumerate() {
            let mut words = line.split_whitespace();
            let (first, second) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
            if first.is_empty() {
            } else if first == "}" {
                open = false;
            } else if open {
                let child = (index + 1, first.to_owned());
                blocks.last_mut().into_iter().for_each(|block| block.children.push(child.clone()));
            } else {
                open = true;
                let name = second.trim_end_matches('{').to_owned();
                blocks.push(Block {
                    kind: first.trim_end_matches('{').to_lowercase(),
                    name,
                    line: index + 1,
                    children: Vec::new(),
                });
            }
        }
        Places(blocks)
    }

    fn block(&self, kind: &str, name: &str) -> Option<&Block> {
        self.0.iter().rfind(|block| block.kind == kind && block.name == name)
    }

    fn line(&self, kind: &str, name: &str) -> usize {
        self.block(kind, name).map_or(1, |block| block.line)
    }

    fn children(&self, kind: &str, name: &str) -> Vec<usize> {
        let children = self.block(kind, name).map(|block| block.children.iter());
        children.into_iter().flatten().map(|(line, _)| *line).collect()
    }

    /// The line that counts of a setting: the last one, in whatever block.
    fn setting(&self, name: &str) -> usize {
        let blocks = self.0.iter().filter(|block| block.kind == "settings");
        let mut lines = blocks.flat_map(|block| &block.children).filter(|(_, first)| first == name);
        lines.next_back().map_or(1, |(line, _)| *line)
    }
}

/// Where a parse error is, and what a reader of the text can do about it.
fn explain(error: &ConfigParseError, text: &str, places: &Places) -> (Option<usize>, String) {
    match error {
        ConfigParseError::InvalidConfig(syntax) => {
            let line = match syntax.line_col {
                pest::error::LineColLocation::Pos((line, _)) => line,
                pest::error::LineColLocation::Span((line, _), _) => line,
            };
            let shown = text.lines().nth(line.saturating_sub(1)).unwrap_or_default().trim();
            let shown =
                if shown.is_empty() { "the end of the text".to_owned() } else { format!("'{shown}'") };
            let allowed = "a block is 'workflow NAME {' or 'reactor NAME executor=NAME {', then one step or parameter a \
                           line, then '}' on a line of its own";
            (Some(line), format!("syntax error at {shown}; {allowed}"))
        }
        ConfigParseError::DuplicateWorkflowName { name } => {
            (Some(places.line("workflow", name)), format!("a workflow named '{name}' was defined before"))
        }
        ConfigParseError::DuplicateReactorName { name } => {
            (Some(places.line("reactor", name)), format!("a reactor named '{name}' was defined before"))
        }
        ConfigParseError::InvalidNodeName { name, line } => {
            (Some(*line), format!("'{}' is no block; settings, reactor and workflow are", word::read(name)))
        }
        ConfigParseError::ArgumentsSpecifiedOnSettingNode { line }
        | ConfigParseError::TooManySettingArguments { line }
        | ConfigParseError::InvalidSettingArgumentFormat { line }
        | ConfigParseError::InvalidRoutedByReactorArgument { line }
        | ConfigParseError::NoNameOnWorkflow { line }
        | ConfigParseError::InvalidWorkflowName { line, .. }
        | ConfigParseError::NoNameOnReactor { line }
        | ConfigParseError::InvalidReactorName { line, .. }
        | ConfigParseError::InvalidUpdateIntervalValue { line, .. }
        | ConfigParseError::InvalidReactorParameterValueFormat { line }
        | ConfigParseError::TooManyReactorParameterValues { line }
        | ConfigParseError::NoExecutorForReactor { line } => {
            let what = error.to_string();
            (Some(*line), word::read(&what.replace(&format!(" on line {line}"), "")))
        }
        ConfigParseError::UnexpectedRule { .. } => (None, error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> Result<Config, ConfigError> {
        let variables = HashMap::from([
            ("RTMP_PORT", "1940".to_owned()),
            ("REACTOR_URL", "http://[::1]:8080,https://b.example".to_owned()),
        ]);
        parse("test.mmids", text, &variables)
    }

    #[test]
    fn the_contract_is_read_to_the_letter() {
        let config = read(
            "reactor publishers executor=simple_http update_interval=60 {\n    url: https://web-server/publisher_lookup\n}\n\
             workflow ingestion {\n    rtmp_receive rtmp_app=ingest stream_key=* reactor=publishers\n    rtmp_watch rtmp_app=pull_source stream_key=*\n}\n",
        )
        .unwrap();
        let reactor = &config.reactors[0];
        assert_eq!((reactor.name.as_str(), reactor.executor.as_str()), ("publishers", "simple_http"));
        assert_eq!(reactor.update_interval, Duration::from_secs(60));
        assert_eq!(reactor.parameters["url"].as_deref(), Some("https://web-server/publisher_lookup"));
        let workflow = &config.workflows[0];
        assert_eq!(workflow.lines, [5, 6]);
        assert_eq!(workflow.definition.steps[0].parameters["stream_key"].as_deref(), Some("*"));
    }

    #[test]
    fn settings_are_read_with_their_lines() {
        let config = read(
            "settings {\n    log_path ./logs # here\n    tls_cert_password \"a =b\"\n    bare\n}\n\nsettings{\n x 1\n}\n",
        );
        let settings: Vec<_> = config.unwrap().settings;
        let settings: Vec<_> =
            settings.iter().map(|s| (s.line, s.name.as_str(), s.value.as_deref())).collect();
        assert_eq!(
            settings,
            [
                (2, "log_path", Some("./logs")),
                (3, "tls_cert_password", Some("a =b")),
                (4, "bare", None),
                (8, "x", Some("1"))
            ]
        );
        let error = read("workflow w {\n}\nsettings {\n a b c\n}\n").unwrap_err();
        assert_eq!(error.line, Some(4), "{error}");
    }

    #[test]
    fn a_workflow_may_be_called_by_whatever_a_stream_is() {
        let config =
            read("workflow\tingest_~a=b=+@% routed_by_reactor {\n step x=1=2\n}\nworkflow x {\n}\n").unwrap();
        let workflow = &config.workflows[0].definition;
        assert_eq!((workflow.name.as_str(), workflow.routed_by_reactor), ("ingest_~a=b=+@%", true));
        assert_eq!(workflow.steps[0].parameters["x"].as_deref(), Some("1=2"));
        assert_eq!((config.workflows[0].line, config.workflows[1].line), (1, 4));
    }

    #[test]
    fn escapes_of_a_reactor_are_left_as_they_are_and_begin_nothing() {
        let config = read(
            "workflow ingest_a\\00003db {\n rtmp_pull stream_name=a\\00003db\\000025 x=\\00000a\\00003\n}\n",
        )
        .unwrap();
        let workflow = &config.workflows[0].definition;
        assert_eq!(workflow.name.as_str(), "ingest_a=b");
        assert_eq!(workflow.steps[0].parameters["stream_name"].as_deref(), Some("a=b%"));
        assert_eq!(workflow.steps[0].parameters["x"].as_deref(), Some("\\00000a\\00003"), "no line's end");
        assert_eq!(config.workflows[0].lines, [2]);
    }

    #[test]
    fn what_the_grammar_lacks_is_carried_through() {
        let config = read(
            "# it's 100% [true]; ok?\nworkflow a { # \"quoted\" & more\n\
             ffmpeg_pull location=rtmp://[2001:db8::1]:99/app/x?a=b&c=d%20 stream_name=x # why\n\
             note \"two words = {x} # y\"\n}\n",
        )
        .unwrap();
        let step = &config.workflows[0].definition.steps[0];
        let location = step.parameters["location"].as_deref();
        assert_eq!(location, Some("rtmp://[2001:db8::1]:99/app/x?a=b&c=d%20"));
        assert_eq!(config.workflows[0].lines, [3, 4]);
        let note = &config.workflows[0].definition.steps[1];
        assert!(note.parameters.contains_key("two words = {x} # y"), "{:?}", note.parameters);
    }

    #[test]
    fn variables_are_filled_and_a_list_takes_its_suffix_on_each_member() {
        let config = read(
            "reactor r executor=simple_http {\n url ${REACTOR_URL}/lookup\n}\nworkflow w {\n x port=${RTMP_PORT}\n}\n",
        )
        .unwrap();
        let url = config.reactors[0].parameters["url"].as_deref();
        assert_eq!(url, Some("http://[::1]:8080/lookup,https://b.example/lookup"));
        assert_eq!(config.workflows[0].definition.steps[0].parameters["port"].as_deref(), Some("1940"));
        let error = read("workflow w {\n x port=${NOPE}\n}\n").unwrap_err();
        assert_eq!(error.to_string(), "test.mmids:2: ${NOPE} is not known; REACTOR_URL, RTMP_PORT are");
    }

    #[test]
    fn variables_are_filled_up_to_a_comment_and_only_white_space_begins_one() {
        let text = "# ${NOPE}\nworkflow w { # ${NOPE}\n x port=a#${RTMP_PORT} # ${NOPE}\n\
                    \ty \"a # ${RTMP_PORT}\"\t# \" ${NOPE}\n}\n";
        let config = read(text).unwrap();
        let steps = &config.workflows[0].definition.steps;
        assert_eq!(steps[0].parameters["port"].as_deref(), Some("a#1940"));
        assert!(steps[1].parameters.contains_key("a # 1940"), "{:?}", steps[1].parameters);
        let printed = fill_text("f", text, &HashMap::from([("RTMP_PORT", "1940".to_owned())])).unwrap();
        assert_eq!(printed, text.replace("${RTMP_PORT}", "1940"));
        let error = read("workflow w {\n x port=a#${NOPE}\n}\n").unwrap_err();
        assert!(error.to_string().starts_with("test.mmids:2: ${NOPE} is not known"), "{error}");
    }

    #[test]
    fn errors_name_file_and_line_in_one_line() {
        for (text, starts) in [
            ("workflow a {\n step\n", "test.mmids:"),
            ("workflow a {\n step x=\"y\n}\n", "test.mmids:2: a quotation mark"),
            ("workflow a {\n}\nworkflow a {\n}\n", "test.mmids:3: a workflow named 'a'"),
            ("nonsense a {\n}\n", "test.mmids:1: 'nonsense' is no block; settings, reactor and workflow are"),
            ("reactor r {\n url x\n}\n", "test.mmids:1: "),
            ("workflow a {\n}\n\nreactor r executor=x update_interval=often {\n}\n", "test.mmids:4: "),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.starts_with(starts), "{error}");
            assert!(!error.contains('\n'), "{error}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "(?s).{0,300}") {
            let _ = read(&text);
        }

        #[test]
        fn any_value_survives(value in "[!$-~&&[^\"#\\{\\}]]{1,40}") {
            let config = read(&format!("workflow w {{\n step key=x{value}\n}}\n")).unwrap();
            prop_assert_eq!(
                config.workflows[0].definition.steps[0].parameters["key"].clone(),
                Some(format!("x{value}"))
            );
        }
    }
}
