//! What `lb` does besides running a node: short commands that print something and end.

use super::conform::ConformArgs;
use super::duration;
use super::failed::Failed;
use super::operate::{DrainArgs, ExplainArgs, HealthArgs, KickArgs, ListArgs, TopArgs};
use crate::auth::jwt::{Claims, Keys, Patterns};
use crate::ids::StreamName;
use clap::{Args, CommandFactory, Subcommand, ValueEnum};
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

/// See the module's head.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Run a whole cluster in this process, with two streams to look at in a browser; needs nothing else
    Demo(DemoArgs),
    /// Make a token for `--reactor-token-file`: 256 random bits
    Token,
    /// Sign a token (JWT) for a publisher or viewer, and print what to type into OBS and ffmpeg
    Sign(SignArgs),
    /// Ask a process on this host whether it is ready, by its admin port; for health checks of containers
    Health(HealthArgs),
    /// List the nodes of a running cluster: what they do, and how full they are
    Status(ListArgs),
    /// List the streams of a running cluster: where each is published, and for how long
    Streams(ListArgs),
    /// Watch a running cluster: its nodes, and the streams with the most viewers
    Top(TopArgs),
    /// Tell what happened to a stream, over all nodes: published, found, pulled, first picture, switched, and why
    Explain(ExplainArgs),
    /// Have a node drain and stop, as after SIGTERM
    Drain(DrainArgs),
    /// Send the publisher of a stream away; an encoder that reconnects is let in again
    Kick(KickArgs),
    /// Check whether an RTMP server, lb or any other, does what encoders and players need of it
    Conform(ConformArgs),
    /// Write completions for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write the manual page, in roff: lb man | man -l -
    Man,
}

/// How the demo runs.
#[derive(Clone, Debug, Args)]
pub struct DemoArgs {
    /// What is logged, as of --log
    #[arg(long, value_name = "FILTER", default_value = "warn")]
    pub log: String,
}

/// What is signed.
#[derive(Clone, Debug, Args)]
pub struct SignArgs {
    /// What the token is for
    #[arg(value_enum)]
    pub action: SignFor,

    /// The stream, or several with a pattern: 'team-a/*'
    pub name: String,

    /// The secrets of --auth-jwt-keys; the first one signs
    #[arg(long, env = "LB_AUTH_JWT_KEYS", value_name = "FILE")]
    pub auth_jwt_keys: PathBuf,

    /// For how long it holds
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = duration)]
    pub ttl: Duration,

    /// Who it is for: only the same takes over a stream that it publishes [default: the name]
    #[arg(long, value_name = "WHO")]
    pub sub: Option<String>,

    /// The address of the node, with its app [default: rtmp://HOST/ingest or rtmp://HOST/live]
    #[arg(long, value_name = "URL")]
    pub server: Option<String>,
}

/// What a token is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SignFor {
    /// To send a stream.
    Publish,
    /// To watch one.
    Play,
}

impl Command {
    /// Carries a command out, and returns what it prints; nothing for the demo, which runs as a node does.
    ///
    /// Errors: see [`Failed`].
    pub fn run(&self) -> Result<String, Failed> {
        match self {
            Command::Demo(_) => Ok(String::new()),
            Command::Token => {
                let token: [u8; 32] = rand::random();
                Ok(token.iter().map(|byte| format!("{byte:02x}")).collect())
            }
            Command::Sign(args) => args.sign().map_err(Failed::usage),
            Command::Health(args) => args.health(),
            Command::Status(args) => args.status(),
            Command::Streams(args) => args.streams(),
            Command::Kick(args) => args.kick(),
            Command::Top(args) => args.top(),
            Command::Explain(args) => args.explain(),
            Command::Drain(args) => args.drain(),
            Command::Conform(args) => args.run(),
            Command::Completions { shell } => Ok(written(|out| {
                clap_complete::generate(*shell, &mut super::Args::command(), "lb", out);
            })),
            Command::Man => Ok(man()),
        }
    }
}

fn written(write: impl FnOnce(&mut Vec<u8>)) -> String {
    let mut out = Vec::new();
    write(&mut out);
    String::from_utf8_lossy(&out).trim_end().to_owned()
}

/// The manual page: the program, then each of its commands.
fn man() -> String {
    let command = super::Args::command();
    let commands: Vec<clap::Command> = command.get_subcommands().cloned().collect();
    let page = written(|out| {
        // Writing to memory does not fail.
        let _written = clap_mangen::Man::new(command).section("8").render(out);
    });
    let parts = commands.into_iter().map(|command| {
        let (name, man) = (command.get_name().to_uppercase(), clap_mangen::Man::new(command));
        written(|out| {
            let _written = writeln!(out, ".SH \"LB {name}\"")
                .and_then(|()| man.render_description_section(out))
                .and_then(|()| man.render_options_section(out));
        })
    });
    std::iter::once(page).chain(parts).collect::<Vec<_>>().join("\n")
}

impl SignArgs {
    fn sign(&self) -> Result<String, String> {
        let name = self.name.trim_end_matches('*').trim_end_matches('/');
        if self.name != "*" {
            StreamName::parse(name).map_err(|error| format!("{}: {error}", self.name))?;
        }
        let file = self.auth_jwt_keys.display();
        let text = std::fs::read_to_string(&self.auth_jwt_keys)
            .map_err(|error| format!("--auth-jwt-keys: {file}: cannot be read: {error}"))?;
        let keys = Keys::parse(&text).map_err(|error| format!("--auth-jwt-keys: {file}: {error}"))?;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let names = Patterns::One(self.name.clone());
        let (publish, play, app) = match self.action {
            SignFor::Publish => (names, Patterns::None, "ingest"),
            SignFor::Play => (Patterns::None, names, "live"),
        };
        let sub = Some(self.sub.clone().unwrap_or_else(|| self.name.clone()));
        let claims = Claims { exp: (now + self.ttl).as_secs(), nbf: None, sub, publish, play };
        let token = keys.sign(&claims).map_err(|error| format!("--auth-jwt-keys: {file}: {error}"))?;
        let server = self.server.clone().unwrap_or_else(|| format!("rtmp://HOST/{app}"));
        let server = server.trim_end_matches('/');
        // A pattern stands for a name that is to be filled in.
        let key = format!("{}?token={token}", self.name.replace('*', "NAME"));
        Ok(match self.action {
            SignFor::Publish => format!(
                "OBS      server      {server}\n         stream key  {key}\nffmpeg   ffmpeg -re -i INPUT -c copy -f flv '{server}/{key}'"
            ),
            SignFor::Play => format!("players  {server}/{key}\nffplay   ffplay '{server}/{key}'"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_new_each_time_and_can_be_used() {
        let [one, other] = [Command::Token.run().unwrap(), Command::Token.run().unwrap()];
        assert_ne!(one, other);
        assert!(one.len() == 64 && one.bytes().all(|byte| byte.is_ascii_hexdigit()), "{one}");
    }

    #[test]
    fn what_is_signed_is_what_the_keys_accept() {
        let secrets = tempfile::NamedTempFile::new().unwrap();
        let text = format!("now = {}\n", Command::Token.run().unwrap());
        std::fs::write(secrets.path(), &text).unwrap();
        let args = |name: &str| SignArgs {
            action: SignFor::Publish,
            name: name.to_owned(),
            auth_jwt_keys: secrets.path().to_owned(),
            ttl: Duration::from_secs(60),
            sub: None,
            server: Some("rtmp://node/ingest/".to_owned()),
        };
        let printed = args("team/*").sign().unwrap();
        assert!(printed.contains("server      rtmp://node/ingest\n"), "{printed}");
        let token = printed.split("team/NAME?token=").nth(1).unwrap().lines().next().unwrap();
        let claims = Keys::parse(&text).unwrap().claims(token).unwrap();
        assert!(claims.publish.matches(&"team/x".parse().unwrap()));
        assert!(!claims.play.matches(&"team/x".parse().unwrap()));
        assert!(args("a b").sign().unwrap_err().starts_with("a b: the stream name"));
    }
}
