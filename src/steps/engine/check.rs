//! What can be said of a configuration, or of a reactor's answer, before it runs.

use super::super::definition::{Config, ConfigError, ReactorDefinition};
use super::super::executor::{self, Settings};
use super::super::parameters::{ParameterError, Parameters};
use super::super::reactors::PulledAt;
use super::super::{forwarder, pull, rtmp_receive, rtmp_watch};
use crate::api::PULL_APP;
use crate::ffmpeg;
use crate::net::location::Location;
use crate::net::routes::Place;
use mmids_core::workflows::definitions::WorkflowStepDefinition;
use std::collections::BTreeMap;

/// Every step type, with its parameters.
fn step_types() -> [(&'static str, &'static [&'static str]); 6] {
    let [documented, registered] = forwarder::NAMES;
    [
        ("rtmp_receive", &rtmp_receive::PARAMETERS),
        ("rtmp_watch", &rtmp_watch::PARAMETERS),
        ("rtmp_pull", &pull::NATIVE_PARAMETERS),
        ("ffmpeg_pull", &pull::PARAMETERS),
        (documented, &forwarder::PARAMETERS),
        (registered, &forwarder::PARAMETERS),
    ]
}

/// Checks a configuration as far as that is possible without running it. `file` is named in errors.
pub fn check(file: &str, config: &Config, default_port: u16) -> Result<(), ConfigError> {
    for reactor in &config.reactors {
        let settings = Settings::read(file, reactor)?;
        if let Some(target) = &settings.forward_to
            && !config.workflows.iter().any(|workflow| *workflow.definition.name == *target)
        {
            let what = format!("reactor {}: forward_to {target}: there is no such workflow", reactor.name);
            return Err(ConfigError { file: file.to_owned(), line: Some(reactor.line), what });
        }
    }
    for workflow in &config.workflows {
        for (index, step) in workflow.definition.steps.iter().enumerate() {
            check_step(step, &config.reactors, default_port).map_err(|what| ConfigError {
                file: file.to_owned(),
                line: Some(workflow.lines.get(index).copied().unwrap_or(workflow.line)),
                what,
            })?;
        }
    }
    // Whoever has named the port of the API, as mmids' configurations do, may bring workflows by it.
    let by_api = config.settings.iter().any(|setting| setting.name == "http_api_port");
    if config.workflows.is_empty() && !by_api {
        let what = "it defines no workflow, so there is nothing to run".to_owned();
        return Err(ConfigError { file: file.to_owned(), line: None, what });
    }
    Ok(())
}

/// Checks a step with its parameters; says what is wrong and what is allowed.
pub(super) fn check_step(
    step: &WorkflowStepDefinition,
    reactors: &[ReactorDefinition],
    default_port: u16,
) -> Result<(), String> {
    let types = step_types();
    let name = step.step_type.0.as_str();
    let Some((_, known)) = types.iter().find(|(known, _)| *known == name) else {
        let all: Vec<&str> = types.iter().map(|(name, _)| *name).collect();
        return Err(format!("the step '{name}' is not known; {} are", all.join(", ")));
    };
    let mut given: Vec<&String> = step.parameters.keys().collect();
    given.sort();
    if let Some(unknown) = given.into_iter().find(|key| !known.contains(&key.as_str())) {
        return Err(format!("{name}: the parameter '{unknown}' is not known; {} are", known.join(", ")));
    }
    if let Some(reactor) = Parameters(step).get("reactor")
        && !reactors.iter().any(|known| known.name == reactor)
    {
        let all: Vec<&str> = reactors.iter().map(|reactor| reactor.name.as_str()).collect();
        let known =
            if all.is_empty() { "none is defined".to_owned() } else { format!("{} are", all.join(", ")) };
        return Err(format!("{name}: reactor={reactor} is not known; {known}"));
    }
    let checked = match name {
        "rtmp_receive" => rtmp_receive::parameters(step, default_port).map(drop),
        "rtmp_watch" => rtmp_watch::parameters(step, default_port).map(drop),
        "rtmp_pull" => pull::parameters(step).and_then(|(location, _)| {
            read_location(&location)?;
            pull::deadlines(step).map(drop)
        }),
        "ffmpeg_pull" => pull::parameters(step).and_then(|(location, _)| {
            let read = ffmpeg::Location::parse(&location).map(drop);
            read.map_err(|error| ParameterError(format!("location: {error}")))
        }),
        _ => forwarder::parameters(step),
    };
    checked.map_err(|error| format!("{name}: {error}"))
}

/// Reads the location of a native pull.
pub(super) fn read_location(location: &str) -> Result<Location, ParameterError> {
    Location::parse(location).map_err(|error| ParameterError(format!("location: {error}")))
}

/// Where a step listens, if it is one that does.
pub(super) fn place(step: &WorkflowStepDefinition, default_port: u16) -> Option<Place> {
    let listens = matches!(step.step_type.0.as_str(), "rtmp_receive" | "rtmp_watch");
    Parameters(step).place(default_port).ok().filter(|_| listens)
}

/// A step that listens.
pub(super) struct Listening<'a> {
    pub file: &'a str,
    pub line: usize,
    pub step: &'a WorkflowStepDefinition,
    pub place: Place,
}

impl Listening<'_> {
    /// Something is wrong with it.
    pub fn error(&self, what: String) -> ConfigError {
        ConfigError { file: self.file.to_owned(), line: Some(self.line), what }
    }
}

/// The steps that listen.
pub(super) fn listening(
    configs: &[(String, Config)],
    default_port: u16,
) -> impl Iterator<Item = Listening<'_>> {
    let workflows = configs.iter().flat_map(|(file, config)| config.workflows.iter().map(move |w| (file, w)));
    let steps = workflows.flat_map(|(file, workflow)| {
        let steps = workflow.definition.steps.iter().enumerate();
        steps.map(move |(index, step)| {
            (file, workflow.lines.get(index).copied().unwrap_or(workflow.line), step)
        })
    });
    steps.filter_map(move |(file, line, step)| {
        Some(Listening { file, line, step, place: place(step, default_port)? })
    })
}

/// The ports that the steps of configurations listen on, and whether by TLS.
///
/// Errors: one step wants a port by TLS, and another one without.
pub fn ports(configs: &[(String, Config)], default_port: u16) -> Result<BTreeMap<u16, bool>, ConfigError> {
    let mut ports = BTreeMap::new();
    for listening in listening(configs, default_port) {
        let Place { port, tls, .. } = listening.place;
        if *ports.entry(port).or_insert(tls) != tls {
            let what = format!("the port {port} cannot be for steps with rtmps and for others as well");
            return Err(listening.error(what));
        }
    }
    Ok(ports)
}

/// Checks that no two steps take the same publishers, or the same viewers.
pub fn overlaps(configs: &[(String, Config)], default_port: u16) -> Result<(), ConfigError> {
    let mut seen: Vec<Listening<'_>> = Vec::new();
    for listening in listening(configs, default_port) {
        let is_same = |other: &Listening<'_>| {
            other.step.step_type == listening.step.step_type && are_same(&other.place, &listening.place)
        };
        if seen.iter().any(is_same) {
            let (name, Place { port, app, .. }) = (&listening.step.step_type, &listening.place);
            let what =
                format!("{name}: port {port}, app '{app}' and this stream key are taken by another step");
            return Err(listening.error(what));
        }
        seen.push(listening);
    }
    Ok(())
}

/// Whether two steps of a kind cannot have these places both.
pub(super) fn are_same(one: &Place, other: &Place) -> bool {
    one.port == other.port && one.app == other.app && one.key.overlaps(&other.key)
}

/// Whether a step of these configurations runs ffmpeg.
pub fn needs_ffmpeg(configs: &[(String, Config)]) -> bool {
    let workflows = configs.iter().flat_map(|(_, config)| &config.workflows);
    workflows.flat_map(|workflow| &workflow.definition.steps).any(|step| step.step_type.0 == "ffmpeg_pull")
}

/// The ports that other nodes pull from: that of the step that watches at the app for pulls, which may have a port of its
/// own. `other_way`: where the default port's apps are reached by TLS as well, and pulls are to go there.
pub fn pulled_at(configs: &[(String, Config)], default_port: u16, other_way: Option<u16>) -> PulledAt {
    let mut watches = listening(configs, default_port).filter(|one| one.step.step_type.0 == "rtmp_watch");
    match watches.find(|one| one.place.app == PULL_APP).map(|one| one.place) {
        Some(Place { port, tls: true, .. }) => PulledAt { rtmp: port, rtmps: Some(port) },
        Some(Place { port, .. }) if port != default_port => PulledAt { rtmp: port, rtmps: None },
        _ => PulledAt { rtmp: default_port, rtmps: other_way },
    }
}

/// Says whether a text is a workflow definition that mmids-core's own parser takes, as plain mmids nodes would. The
/// brackets of an IPv6 address are let through: that parser knows none, so plain nodes can have no such origin anyway.
///
/// The answers of a bundled reactor open no port: nodes listen where their own configuration says.
pub fn check_answer(text: &str) -> Result<(), String> {
    let answer = executor::read(text, None)?;
    let steps = answer.iter().flat_map(|workflow| &workflow.steps);
    let opens = |step: &&WorkflowStepDefinition| {
        ["port", "rtmps"].iter().any(|key| step.parameters.contains_key(*key))
    };
    if let Some(step) = steps.into_iter().find(opens) {
        return Err(format!(
            "{}: port and rtmps are not allowed here, as an answer opens no port",
            step.step_type
        ));
    }
    match mmids_core::config::parse(&text.replace(['[', ']'], "_")) {
        Ok(parsed) if parsed.workflows.is_empty() => Err("it defines no workflow".to_owned()),
        Ok(_) => Ok(()),
        Err(error) => Err(format!("mmids cannot read it: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::definition;
    use super::*;
    use std::collections::HashMap;

    #[test]
    fn the_port_for_pulls_is_that_of_the_step_that_serves_them() {
        let port = |step: &str| {
            let text = format!("workflow w {{\n rtmp_watch rtmp_app=live stream_key=* port=1\n {step}\n}}\n");
            let config = definition::parse("f", &text, &HashMap::new()).unwrap();
            let at = pulled_at(&[("f".to_owned(), config)], 1935, Some(1936));
            at.rtmps.map_or_else(|| at.rtmp.to_string(), |port| format!("{port} by TLS"))
        };
        assert_eq!(port("rtmp_watch rtmp_app=pull_source stream_key=* port=1999"), "1999");
        assert_eq!(port("rtmp_watch rtmp_app=pull_source stream_key=* port=1999 rtmps"), "1999 by TLS");
        assert_eq!(port("rtmp_watch rtmp_app=pull_source stream_key=*"), "1936 by TLS");
        assert_eq!(port("rtmp_watch rtmp_app=other stream_key=* port=1999"), "1936 by TLS");
    }

    #[test]
    fn a_port_is_for_tls_or_not() {
        let of = |steps: &str| {
            let text = format!("workflow w {{\n{steps}\n}}\n");
            let config = definition::parse("f", &text, &HashMap::new()).unwrap();
            ports(&[("f".to_owned(), config)], 1935).map_err(|error| error.to_string())
        };
        let receive = "rtmp_receive rtmp_app=ingest stream_key=*";
        assert_eq!(of(&format!("{receive}\n{receive} rtmps")), Ok([(1935, false), (443, true)].into()));
        assert_eq!(of(&format!("{receive} rtmps=true port=9")), Ok([(9, true)].into()));
        let error = of(&format!("{receive} port=9\n{receive} port=9 rtmps")).unwrap_err();
        assert!(error.contains("the port 9 cannot be for steps with rtmps"), "{error}");
    }

    #[test]
    fn a_step_is_checked_with_its_parameters() {
        let check = |step: &str| {
            let text = format!("workflow w {{\n {step}\n}}\n");
            let config = definition::parse("f", &text, &HashMap::new()).unwrap();
            check_step(&config.workflows[0].definition.steps[0], &[], 1935)
        };
        assert_eq!(check("rtmp_pull location=rtmp://[::1]/a/x stream_name=x"), Ok(()));
        assert_eq!(
            check("rtmp_pull location=rtmp://h/a/x stream_name=x connect_ms=1 silence_ms=600000"),
            Ok(())
        );
        assert_eq!(check("rtmp_watch rtmp_app=live/ stream_key=*"), Ok(()));
        for (bad, part) in [
            ("rtmp_pull location=nonsense stream_name=x", "not a URL"),
            ("rtmp_pull location=rtmp://h/a/x stream_name=a//b", "stream_name=a//b"),
            ("rtmp_pull location=rtmp://h/a/x", "lacks stream_name"),
            ("rtmp_pull location=rtmp://h/a/x stream_name=x start_ms=soon", "start_ms=soon is not allowed"),
            ("rtmp_pull location=rtmp://h/a/x stream_name=x silence_ms=0", "from 1 to 600000"),
            ("ffmpeg_pull location=rtmp://h/a/x stream_name=x silence_ms=1", "'silence_ms' is not known"),
            ("made_up x=y", "'made_up' is not known"),
            ("rtmp_watch rtmp_app=live stream_key=* rtmps=no", "rtmps=no is not allowed"),
            ("rtmp_watch rtmp_app=live/inst stream_key=*", "rtmp_app=live/inst is not allowed"),
        ] {
            let error = check(bad).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }
}
