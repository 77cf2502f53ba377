//! The image, the compose file and the manifests of Kubernetes that are shipped: their schemas know them, lb takes every flag that they give
//! it, and their parts fit together. Nothing here starts a container.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)] // helpers of tests may panic

#[path = "../common/mod.rs"]
mod common;
mod kubernetes;
mod started;

use common::{lb, read, root};
use kubernetes::Cluster;
use serde_json::json;
use started::{MARGIN, PORTS, Started, array, bytes, text, time, tool, words, yaml};
use std::collections::{BTreeMap, BTreeSet};

/// A health check asks lb where it listens.
#[track_caller]
fn assert_asks_lb(test: &[String]) {
    let words: Vec<&str> = test.iter().map(String::as_str).collect();
    let [_, "/lb", "health", "--admin", url] = words[..] else { panic!("{words:?}") };
    assert_eq!(url, "http://127.0.0.1:9011");
}

#[test]
fn a_flag_that_lb_does_not_know_is_found() {
    let started = |args: &[&str], variables: &[(&str, &str)]| Started {
        name: "x".to_owned(),
        args: args.iter().map(|&arg| arg.to_owned()).collect(),
        variables: variables.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect(),
        files: BTreeMap::new(),
    };
    let fails = |started: Started| std::panic::catch_unwind(|| started.check()).is_err();
    assert!(!fails(started(&["--role=ingest"], &[("LB_LOG", "info")])));
    assert!(fails(started(&["--role=ingest", "--drain=10s"], &[])));
    assert!(fails(started(&["--role=ingest"], &[("LB_RTMP_PROT", "1935")])));
    assert!(fails(started(&["--role=ingest"], &[("LB_REACTOR_PORT", "tcp://10.0.0.1:8080")])));
}

#[test]
fn the_compose_file_fits() {
    let file = root().join("scripts/deploy/compose.yaml");
    tool("check-jsonschema", &["--builtin-schema", "vendor.compose-spec", file.to_str().unwrap()]);
    let [compose] = &yaml(&file)[..] else { panic!("one document") };
    let services = compose["services"].as_object().unwrap();
    let token = text(compose, "/secrets/reactor.token/file");
    assert!(read(".gitignore").contains(&format!("/scripts/deploy{}", token.trim_start_matches('.'))));
    let mut published = BTreeSet::new();
    let mut roles = BTreeMap::<String, usize>::new();
    for (name, service) in services {
        for other in service["depends_on"].as_array().unwrap_or(&Vec::new()) {
            assert!(services.contains_key(other.as_str().unwrap()), "{name} depends on {other}");
        }
        for network in array(service, "/networks") {
            assert!(compose["networks"].get(network.as_str().unwrap()).is_some(), "{name} is in {network}");
        }
        assert_eq!((&service["read_only"], &service["cap_drop"]), (&json!(true), &json!(["ALL"])), "{name}");
        assert_eq!(service["restart"], "unless-stopped");
        if name == "redis" {
            assert_eq!(service["networks"], json!(["store"]));
            assert_eq!(compose["networks"]["store"]["internal"], true);
            continue;
        }
        let variables = service["environment"].as_object().unwrap().iter();
        let variables = variables.map(|(name, value)| (name.clone(), value.as_str().unwrap().to_owned()));
        let started = Started {
            name: name.clone(),
            args: words(service, "/command"),
            variables: variables.collect(),
            files: BTreeMap::from([("/run/secrets/reactor.token".to_owned(), lb::run(&["token"]).stdout)]),
        };
        started.check();
        assert!(words(service, "/secrets").contains(&"reactor.token".to_owned()));
        let role = started.role();
        let ports = started.ports();
        for port in words(service, "/ports") {
            let (outside, inside) = port.rsplit_once(':').unwrap();
            assert!(ports.values().any(|known| known.to_string() == inside), "{name}: {port}");
            assert!(
                published.insert(outside.rsplit(':').next().unwrap().to_owned()),
                "{port} is published twice"
            );
        }
        // Other services are known by their names.
        let urls = started.flag("reactor-url").unwrap();
        let url = urls.strip_prefix("http://").unwrap().split_once(':').unwrap();
        assert!(services.contains_key(url.0) && url.1 == "8080", "{urls}");
        match role.as_str() {
            "reactor" => assert_eq!(started.flag("store").unwrap(), "redis://redis:6379"),
            _ => {
                let budget = started.flag("memory-budget").unwrap();
                assert!(bytes(&budget) * 2 <= bytes(text(service, "/mem_limit")), "{name}");
                assert_eq!(started.flag("node-id").as_ref(), Some(name));
            }
        }
        match role.as_str() {
            "ingest" => assert_eq!(started.flag("advertise").as_ref(), Some(name)),
            "playback" => {
                let http = started.flag("http-advertise").unwrap();
                assert!(published.contains(http.rsplit(':').next().unwrap()), "{name}: {http}");
            }
            _ => {}
        }
        assert!(time(text(service, "/stop_grace_period")) >= started.drain() + MARGIN, "{name}");
        assert_eq!(ports["admin"], 9011);
        assert_asks_lb(&words(service, "/healthcheck/test"));
        *roles.entry(role).or_default() += 1;
    }
    let expected = [("ingest", 2), ("playback", 2), ("reactor", 1)];
    assert_eq!(roles, expected.map(|(role, number)| (role.to_owned(), number)).into());
}

/// The instructions of the Containerfile: lines that go on are joined, comments left out.
fn instructions() -> Vec<(String, String)> {
    let text = read("Containerfile");
    let lines = text.lines().filter(|line| !line.starts_with('#')).collect::<Vec<_>>().join("\n");
    let joined = lines.replace("\\\n", " ");
    let filled = joined.lines().filter(|line| !line.trim().is_empty());
    let split = filled.map(|line| line.split_once(' ').unwrap());
    split
        .map(|(word, rest)| (word.to_owned(), rest.split_whitespace().collect::<Vec<_>>().join(" ")))
        .collect()
}

#[test]
fn the_image_holds_the_binary_and_nothing_else() {
    let all = instructions();
    let last = all.iter().rposition(|(word, _)| word == "FROM").unwrap();
    assert_eq!(all[last].1, "scratch");
    let of = |wanted: &str| -> Vec<&str> {
        let found = all[last..].iter().filter(|(word, _)| word == wanted);
        found.map(|(_, rest)| rest.as_str()).collect()
    };
    // A number that is not root's, by which Kubernetes goes.
    let user = of("USER")[0].split(':').next().unwrap().parse::<u32>().unwrap();
    assert!(user > 0);
    let cluster = Cluster::render();
    for (workload, _) in cluster.nodes() {
        assert_eq!(workload["spec"]["template"]["spec"]["securityContext"]["runAsUser"], user);
    }
    assert_eq!(of("ENTRYPOINT"), [r#"["/lb"]"#]);
    assert_eq!(of("COPY").len(), 1);
    assert!(of("COPY")[0].ends_with(" /lb"));
    assert!(of("RUN").is_empty(), "there is no shell");
    let exposed: BTreeSet<u64> = of("EXPOSE")[0].split(' ').map(|port| port.parse().unwrap()).collect();
    let known = PORTS.iter().flat_map(|(_, ports)| ports.iter().map(|(_, number)| *number));
    assert_eq!(exposed, known.collect());

    // lb takes the variables, and listens where the health check asks.
    let variables: BTreeMap<String, String> = of("ENV")
        .iter()
        .map(|line| line.split_once('=').unwrap())
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    for (role, _) in PORTS {
        let args = vec![format!("--role={role}")];
        let started =
            Started { name: role.to_owned(), args, variables: variables.clone(), files: BTreeMap::new() };
        started.check();
        assert_eq!(started.ports()["admin"], 9011);
    }
    let (options, check) = of("HEALTHCHECK")[0].split_once("CMD ").unwrap();
    assert!(options.contains("--interval="), "{options}");
    let check: Vec<String> = serde_json::from_str(check).unwrap();
    let check: Vec<String> = std::iter::once("CMD".to_owned()).chain(check).collect();
    assert_asks_lb(&check);
    let rust = all.iter().find(|(word, rest)| word == "FROM" && rest.contains("/rust:")).unwrap();
    let needed =
        read("Cargo.toml").lines().find_map(|line| line.strip_prefix("rust-version = ")).unwrap().to_owned();
    assert!(rust.1.contains(&format!("rust:{}-", needed.trim_matches('"'))), "{rust:?}");
}

#[test]
fn what_the_image_is_built_from_is_not_ignored() {
    let ignored = read(".containerignore");
    let ignored: BTreeSet<&str> = ignored.lines().filter(|line| !line.starts_with('#')).collect();
    for needed in ["Cargo.toml", "Cargo.lock", "build.rs", "src", "benches", "mmids-configs"] {
        assert!(root().join(needed).exists() && !ignored.contains(&*format!("/{needed}")), "{needed}");
    }
    for left_out in ["/target", "/src/web/page/node_modules", "/tests", "**/*.token", "**/*.env"] {
        assert!(ignored.contains(left_out), "{left_out}");
    }
}
