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
        // Query strings may hold secrets.
        .map(|(key, value)| {
            let value = value.as_deref().unwrap_or_default();
            (key, value.split('?').next().unwrap_or_default().to_owned())
        })
        .collect();
    let status = match status {
        StepStatus::Created => "created".to_owned(),
        StepStatus::Active => "active".to_owned(),
        StepStatus::Shutdown => "shutdown".to_owned(),
        StepStatus::Error { message } => format!("error: {message}"),
    };
    json!({"type": definition.step_type.0, "parameters": parameters, "status": status})
}
