//! The calls of both ports for programs, as OpenAPI 3.0: `GET /openapi.json`. The documents stand in `openapi/`; that they say what is true
//! is tested by a tool that makes calls from them (`tests/openapi.rs`).

use serde_json::Value;

/// Of the reactor.
pub(super) fn reactor() -> Value {
    read(include_str!("openapi/reactor.json"))
}

/// Of the admin port.
pub(super) fn admin() -> Value {
    read(include_str!("openapi/admin.json"))
}

fn read(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_documents_are_json_and_describe_calls() {
        for document in [reactor(), admin()] {
            assert!(document["paths"].as_object().is_some_and(|paths| paths.len() > 10));
        }
    }
}
