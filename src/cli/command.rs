//! What `lb` does besides running a node: short commands that print something and end.

use clap::Subcommand;

/// See the module's head.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Make a token for `--reactor-token-file`: 256 random bits
    Token,
}

impl Command {
    /// Carries a command out, and returns what it prints.
    pub fn run(&self) -> String {
        match self {
            Command::Token => {
                let token: [u8; 32] = rand::random();
                token.iter().map(|byte| format!("{byte:02x}")).collect()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_new_each_time_and_can_be_used() {
        let [one, other] = [Command::Token.run(), Command::Token.run()];
        assert_ne!(one, other);
        assert!(one.len() == 64 && one.bytes().all(|byte| byte.is_ascii_hexdigit()), "{one}");
    }
}
