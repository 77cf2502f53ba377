//! How a command fails.

/// Why a command printed nothing: one line, and the exit code of the process.
#[derive(Debug)]
pub struct Failed {
    /// 2: it was used wrongly. 1: anything else.
    pub code: u8,
    /// For people.
    pub text: String,
}

impl Failed {
    pub(super) fn usage(text: String) -> Self {
        Failed { code: 2, text }
    }

    pub(super) fn other(error: impl std::fmt::Display) -> Self {
        Failed { code: 1, text: error.to_string() }
    }
}
