//! The environment as flags see it: what is empty is not set, and what is misspelt is said.

use clap::{Command, CommandFactory};
use std::ffi::OsString;

const PREFIX: &str = "LB_";

/// How near a misspelt name is to the one that is suggested: Jaro-Winkler, as clap suggests flags.
const NEAR: f64 = 0.8;

/// The variables with our prefix that are set to nothing, as a line `LB_X=` in a unit's environment file does.
pub fn empty(variables: impl Iterator<Item = (OsString, OsString)>) -> Vec<OsString> {
    let ours = |name: &OsString| name.to_str().is_some_and(|name| name.starts_with(PREFIX));
    variables.filter(|(name, value)| ours(name) && value.is_empty()).map(|(name, _)| name).collect()
}

/// One line for each variable with our prefix that no flag reads.
pub fn unknown(names: impl Iterator<Item = OsString>) -> Vec<String> {
    let known = known(&super::Args::command());
    let mut lines: Vec<String> = names
        .filter_map(|name| name.into_string().ok())
        .filter(|name| name.starts_with(PREFIX) && !known.contains(name))
        .map(|name| {
            let near = known.iter().map(|known| {
                // All begin alike.
                let (asked, known_word) = (name.trim_start_matches(PREFIX), known.trim_start_matches(PREFIX));
                (strsim::jaro_winkler(asked, known_word), known)
            });
            let nearest = near.max_by(|a, b| a.0.total_cmp(&b.0)).filter(|(near, _)| *near > NEAR);
            let meant = nearest.map(|(_, known)| format!("; {known} is")).unwrap_or_default();
            format!("the variable {name} is not known{meant}")
        })
        .collect();
    lines.sort();
    lines
}

fn known(command: &Command) -> Vec<String> {
    let own = command.get_arguments().filter_map(|flag| flag.get_env()?.to_str().map(str::to_owned));
    own.chain(command.get_subcommands().flat_map(known)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_empty_is_not_set() {
        let variables =
            [("LB_ROLE", ""), ("LB_LOG", "info"), ("OTHER", "")].map(|(a, b)| (a.into(), b.into()));
        assert_eq!(empty(variables.into_iter()), ["LB_ROLE"]);
    }

    #[test]
    fn a_misspelt_variable_is_named_with_the_one_that_is_meant() {
        let unknown = |names: &[&str]| unknown(names.iter().map(OsString::from)).join(" | ");
        assert_eq!(unknown(&["LB_RTMP_PORT", "LB_AUTH_JWT_KEYS", "PATH"]), "");
        assert_eq!(
            unknown(&["LB_RTMP_PROT", "LB_X"]),
            "the variable LB_RTMP_PROT is not known; LB_RTMP_PORT is | the variable LB_X is not known"
        );
    }
}
