//! What a workflow does, for people and tools.

use mmids_core::workflows::definitions::WorkflowStepDefinition;
use mmids_core::workflows::steps::StepStatus;
use mmids_core::workflows::{WorkflowState, WorkflowStatus, WorkflowStepState};
use serde_json::{Value, json};
use std::collections::HashMap;

/// A workflow as JSON: its status, its steps, and those that are not active yet. Query strings of parameters, which may
/// hold secrets, are left out.
pub(super) fn workflow(name: &str, state: &WorkflowState) -> Value {
    let status = match &state.status {
        WorkflowStatus::Running => json!({"state": "running"}),
        WorkflowStatus::Error { message, .. } => json!({"state": "error", "message": message}),
    };
    let steps = |steps: &[WorkflowStepState]| -> Vec<Value> {
        steps.iter().map(|each| step(&each.definition, &each.status)).collect()
    };
    json!({
        "name": name,
        "status": status,
        "active_steps": steps(&state.active_steps),
        "pending_steps": steps(&state.pending_steps),
    })
}

fn step(definition: &WorkflowStepDefinition, status: &StepStatus) -> Value {
    let parameters: HashMap<&String, String> = definition
        .parameters
        .iter()
        .map(|(key, value)| (key, shown(key, value.as_deref().unwrap_or_default())))
        .collect();
    let status = match status {
        StepStatus::Created => "created".to_owned(),
        StepStatus::Active => "active".to_owned(),
        StepStatus::Shutdown => "shutdown".to_owned(),
        StepStatus::Error { message } => format!("error: {message}"),
    };
    json!({"type": definition.step_type.0, "parameters": parameters, "status": status})
}

/// A parameter without its secrets: query strings may hold some, and the stream key of a place to push to is one.
fn shown(key: &str, value: &str) -> String {
    let value = value.split('?').next().unwrap_or_default();
    match value.split_once("://") {
        Some((scheme, rest)) if key == "target" => {
            // Without user and password, and without what stands behind the app.
            let place: Vec<&str> = rest.splitn(3, '/').take(2).collect();
            let place = place.join("/");
            let host = place.rsplit_once('@').map_or(place.as_str(), |(_, host)| host);
            format!("{scheme}://{host}/…")
        }
        _ => value.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_of_a_push_is_not_shown() {
        for (key, value, is) in [
            ("target", "rtmp://h:1/app/secret/key?a=b", "rtmp://h:1/app/…"),
            ("target", "rtmp://me:pw@h/app/secret", "rtmp://h/app/…"),
            ("target", "/tmp/x.flv", "/tmp/x.flv"),
            ("location", "rtmp://h/app/x?token=secret", "rtmp://h/app/x"),
        ] {
            assert_eq!(shown(key, value), is);
        }
    }
}
