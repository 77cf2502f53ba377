//! One lb as a file starts it: its arguments, variables and files, and whether the real binary takes them. And how such files are read.

use crate::common::{SOON, lb, process};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// Of each role: the ports that it listens on, by the names that manifests give them.
pub const PORTS: [(&str, &[(&str, u64)]); 3] = [
    ("ingest", &[("rtmp", 1935), ("admin", 9011)]),
    ("playback", &[("rtmp", 1935), ("http", 8081), ("admin", 9011)]),
    ("reactor", &[("api", 8080), ("admin", 9011)]),
];

/// What the kubelet and docker take at most until a container that ignores signals is killed, when nothing is said.
pub const MARGIN: Duration = Duration::from_secs(5);

/// Runs a tool that `scripts/setup test` installs from PyPI.
#[track_caller]
pub fn tool(name: &str, args: &[&str]) -> String {
    let tool = Path::new(env!("CARGO_TARGET_TMPDIR")).join("../tools/manifests/bin").join(name);
    assert!(tool.exists(), "{name} is missing: run scripts/setup test first");
    let mut command = Command::new(tool);
    command.args(args);
    let ran = process::run(command, 3 * SOON);
    assert_eq!(ran.code, Some(0), "{name} {args:?}: {}{}", ran.stdout, ran.stderr);
    ran.stdout
}

/// The documents of a YAML file, as the library reads them that Compose's older versions were written with.
#[track_caller]
pub fn yaml(file: &Path) -> Vec<Value> {
    let script = "import json, sys, yaml; print(json.dumps(list(yaml.safe_load_all(open(sys.argv[1])))))";
    let json = tool("python", &["-c", script, file.to_str().unwrap()]);
    serde_json::from_str(&json).unwrap()
}

#[track_caller]
pub fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_else(|| panic!("{pointer} in {value:#}"))
}

#[track_caller]
pub fn array<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value.pointer(pointer).and_then(Value::as_array).unwrap_or_else(|| panic!("{pointer} in {value:#}"))
}

#[track_caller]
pub fn words(value: &Value, pointer: &str) -> Vec<String> {
    array(value, pointer).iter().map(|word| word.as_str().unwrap().to_owned()).collect()
}

/// A time as lb and Compose write it.
#[track_caller]
pub fn time(text: &str) -> Duration {
    humantime::parse_duration(text).unwrap_or_else(|_| panic!("{text} is no time"))
}

/// Bytes as lb, Kubernetes and Compose write them: 1GiB, 1Gi and 1g.
#[track_caller]
pub fn bytes(text: &str) -> u64 {
    let digits = text.trim_end_matches(char::is_alphabetic);
    let power = match &text[digits.len()..] {
        "" => 0,
        "KiB" | "Ki" | "k" => 10,
        "MiB" | "Mi" | "m" => 20,
        "GiB" | "Gi" | "g" => 30,
        unit => panic!("{unit} in {text}"),
    };
    digits.parse::<u64>().unwrap() << power
}

/// One lb as a file has it started.
#[derive(Debug)]
pub struct Started {
    pub name: String,
    pub args: Vec<String>,
    pub variables: BTreeMap<String, String>,
    /// What is mounted where: the content by the path.
    pub files: BTreeMap<String, String>,
}

impl Started {
    /// The value of a flag, from the arguments or the environment.
    pub fn flag(&self, flag: &str) -> Option<String> {
        let given =
            self.args.iter().find_map(|arg| arg.strip_prefix(&format!("--{flag}="))).map(str::to_owned);
        let variable = format!("LB_{}", flag.to_uppercase().replace('-', "_"));
        given.or_else(|| self.variables.get(&variable).cloned().filter(|value| !value.is_empty()))
    }

    pub fn role(&self) -> String {
        self.flag("role").unwrap()
    }

    pub fn drain(&self) -> Duration {
        time(&self.flag("drain-timeout").unwrap())
    }

    /// The real binary takes every flag and variable, and has nothing to say about them.
    #[track_caller]
    pub fn check(&self) {
        let folder = tempfile::tempdir().unwrap();
        let mut variables = self.variables.clone();
        let mut args = self.args.clone();
        for (number, (path, content)) in self.files.iter().enumerate() {
            let file = folder.path().join(number.to_string());
            std::fs::write(&file, content).unwrap();
            let file = file.to_str().unwrap();
            variables.values_mut().chain(&mut args).for_each(|value| *value = value.replace(path, file));
        }
        let mut args: Vec<&str> = args.iter().map(String::as_str).collect();
        args.push("--check");
        let variables: Vec<_> = variables.iter().map(|(name, value)| (&**name, &**value)).collect();
        let checked = lb::run_with(&args, &variables);
        assert_eq!((checked.code, &*checked.stderr), (Some(0), ""), "{}: {self:?}", self.name);
    }

    /// The ports that it opens: numbers by names, as in [`PORTS`].
    pub fn ports(&self) -> BTreeMap<&'static str, u64> {
        let role = self.role();
        let listens = |flag: &str, default: u64| match self.flag(flag) {
            Some(address) => address.rsplit(':').next().unwrap().parse().unwrap(),
            None => default,
        };
        let (_, ports) = PORTS.iter().find(|(of, _)| *of == role).unwrap();
        let flag = |name: &str, default| match name {
            "rtmp" => listens("rtmp-port", default),
            "http" => listens("http-listen", default),
            "api" => listens("reactor-listen", default),
            _ => listens("admin-listen", default),
        };
        ports.iter().map(|(name, default)| (*name, flag(name, *default))).collect()
    }
}
