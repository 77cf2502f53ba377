//! How an mmids reactor asks its web service: the executor `simple_http`.
//!
//! Under the name that mmids gave it, and with its one parameter `url`. Unlike mmids' own it speaks HTTPS, keeps its
//! connections, has deadlines, tries several URLs, and answers an outage with the last good answer. One more parameter,
//! `forward_to`, says where the media of a returned workflow goes that has no step to consume it.

use super::definition::{ConfigError, ReactorDefinition};
use super::{forwarder, outputs};
use crate::client::{ClientMetrics, Http, Lookup, Urls};
use mmids_core::workflows::definitions::{WorkflowDefinition, WorkflowStepDefinition, WorkflowStepType};
use std::collections::HashMap;
use std::time::Duration;

/// The executor's name.
pub const NAME: &str = "simple_http";

/// Whether a step takes a workflow's media somewhere.
fn consumes(step: &WorkflowStepDefinition) -> bool {
    let name = step.step_type.0.as_str();
    let outlets = [outputs::RTMP_PUSH, outputs::FFMPEG_PUSH, outputs::FFMPEG_HLS];
    forwarder::NAMES.contains(&name) || name == "rtmp_watch" || outlets.contains(&name)
}

/// An mmids reactor's definition, read.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where it asks.
    pub urls: Urls,
    /// The workflow that gets the media of returned workflows.
    pub forward_to: Option<String>,
    /// How long until a followed name is asked for again; zero: never.
    pub update_interval: Duration,
}

impl Settings {
    /// Reads a definition. `file` is named in errors.
    pub fn read(file: &str, definition: &ReactorDefinition) -> Result<Self, ConfigError> {
        let name = &definition.name;
        let error = |what: String| ConfigError { file: file.to_owned(), line: Some(definition.line), what };
        if definition.executor != NAME {
            let executor = &definition.executor;
            return Err(error(format!("reactor {name}: executor={executor} is not known; {NAME} is")));
        }
        for key in definition.parameters.keys() {
            if key != "url" && key != "forward_to" {
                return Err(error(format!("reactor {name}: '{key}' is not known; url and forward_to are")));
            }
        }
        let value = |key: &str| definition.parameters.get(key).and_then(Option::as_deref);
        let url = value("url").ok_or_else(|| error(format!("reactor {name} lacks its url")))?;
        Ok(Settings {
            urls: url.parse().map_err(|bad| error(format!("reactor {name}: {bad}")))?,
            forward_to: value("forward_to").map(str::to_owned),
            update_interval: definition.update_interval,
        })
    }

    /// The lookups of this reactor. Answers with a step that `check` does not take are no answers: a workflow that runs
    /// would end for one.
    pub fn lookup(
        &self,
        http: Http,
        metrics: ClientMetrics,
        check: impl Fn(&WorkflowStepDefinition) -> Result<(), String> + Send + Sync + 'static,
    ) -> Lookup {
        let validate = move |text: &str| {
            read(text, None)?.iter().flat_map(|workflow| &workflow.steps).try_for_each(&check)
        };
        Lookup::new(http, &self.urls, validate, metrics)
    }
}

/// Reads the workflows of an answer. A workflow without a consuming step gets one that forwards to `forward_to`.
pub fn read(text: &str, forward_to: Option<&str>) -> Result<Vec<WorkflowDefinition>, String> {
    let config =
        super::definition::parse("answer", text, &HashMap::new()).map_err(|error| error.to_string())?;
    let mut workflows: Vec<_> = config.workflows.into_iter().map(|workflow| workflow.definition).collect();
    for workflow in &mut workflows {
        let consumed = workflow.steps.iter().any(consumes);
        if let (Some(target), false) = (forward_to, consumed) {
            workflow.steps.push(WorkflowStepDefinition {
                step_type: WorkflowStepType(forwarder::NAMES[0].to_owned()),
                parameters: HashMap::from([("target_workflow".to_owned(), Some(target.to_owned()))]),
            });
        }
    }
    Ok(workflows)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANSWER: &str =
        "workflow ingest_x {\n    ffmpeg_pull location=rtmp://10.0.0.1/pull_source/x stream_name=x\n}\n";

    #[test]
    fn a_workflow_without_a_consumer_is_forwarded() {
        let workflows = read(ANSWER, Some("pending_watchers")).unwrap();
        let last = workflows[0].steps.last().unwrap();
        assert_eq!(last.step_type.0, "workflow_forwarder");
        assert_eq!(last.parameters["target_workflow"].as_deref(), Some("pending_watchers"));
        assert_eq!(read(ANSWER, None).unwrap()[0].steps.len(), 1);
        let consumed =
            "workflow a {\n ffmpeg_pull location=x stream_name=x\n workflow_forwarder target_workflow=b\n}\n";
        assert_eq!(read(consumed, Some("pending_watchers")).unwrap()[0].steps.len(), 2);
    }

    #[test]
    fn a_definition_is_checked() {
        let read = |text: &str| {
            let config = super::super::definition::parse("f", text, &HashMap::new()).unwrap();
            Settings::read("f", &config.reactors[0]).map_err(|error| error.to_string())
        };
        let good = read(
            "reactor r executor=simple_http update_interval=60 {\n url: http://a/x,http://b/x\n forward_to w\n}\n",
        );
        let good = good.unwrap();
        assert_eq!((good.urls.as_slice().len(), good.forward_to.as_deref()), (2, Some("w")));
        for (text, part) in [
            (
                "reactor r executor=other {\n url http://a\n}\n",
                "f:1: reactor r: executor=other is not known; simple_http is",
            ),
            ("reactor r executor=simple_http {\n}\n", "f:1: reactor r lacks its url"),
            ("reactor r executor=simple_http {\n url ftp://a\n}\n", "f:1: reactor r: "),
            (
                "reactor r executor=simple_http {\n uri http://a\n}\n",
                "'uri' is not known; url and forward_to are",
            ),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }
}
