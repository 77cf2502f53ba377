//! The image, the compose file and the manifests of Kubernetes that are shipped: their schemas know them, lb takes every flag that they give
//! it, and their parts fit together. Nothing here starts a container.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)] // helpers of tests may panic

mod common;

use base64::Engine;
use common::lb::{self, Lb};
use common::{SOON, http, process, wait_for};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// The oldest version of Kubernetes that has all that is used (a preStop that sleeps), and the newest that the validator knows.
const KUBERNETES: [&str; 2] = ["1.30", "1.37"];

/// Of each role: the ports that it listens on, by the names that manifests give them.
const PORTS: [(&str, &[(&str, u64)]); 3] = [
    ("ingest", &[("rtmp", 1935), ("admin", 9011)]),
    ("playback", &[("rtmp", 1935), ("http", 8081), ("admin", 9011)]),
    ("reactor", &[("api", 8080), ("admin", 9011)]),
];

/// What the kubelet and docker take at most until a container that ignores signals is killed, when nothing is said.
const MARGIN: Duration = Duration::from_secs(5);

const PASSWORD: &str = "0123456789abcdef";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn deploy() -> PathBuf {
    root().join("scripts/deploy")
}

fn read(name: &str) -> String {
    std::fs::read_to_string(root().join(name)).unwrap()
}

/// Runs a tool that `scripts/setup test` installs from PyPI.
#[track_caller]
fn tool(name: &str, args: &[&str]) -> String {
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
fn yaml(file: &Path) -> Vec<Value> {
    let script = "import json, sys, yaml; print(json.dumps(list(yaml.safe_load_all(open(sys.argv[1])))))";
    let json = tool("python", &["-c", script, file.to_str().unwrap()]);
    serde_json::from_str(&json).unwrap()
}

#[track_caller]
fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_else(|| panic!("{pointer} in {value:#}"))
}

#[track_caller]
fn array<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value.pointer(pointer).and_then(Value::as_array).unwrap_or_else(|| panic!("{pointer} in {value:#}"))
}

#[track_caller]
fn words(value: &Value, pointer: &str) -> Vec<String> {
    array(value, pointer).iter().map(|word| word.as_str().unwrap().to_owned()).collect()
}

/// A time as lb and Compose write it.
#[track_caller]
fn time(text: &str) -> Duration {
    humantime::parse_duration(text).unwrap_or_else(|_| panic!("{text} is no time"))
}

/// Bytes as lb, Kubernetes and Compose write them: 1GiB, 1Gi and 1g.
#[track_caller]
fn bytes(text: &str) -> u64 {
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
struct Started {
    name: String,
    args: Vec<String>,
    variables: BTreeMap<String, String>,
    /// What is mounted where: the content by the path.
    files: BTreeMap<String, String>,
}

impl Started {
    /// The value of a flag, from the arguments or the environment.
    fn flag(&self, flag: &str) -> Option<String> {
        let given =
            self.args.iter().find_map(|arg| arg.strip_prefix(&format!("--{flag}="))).map(str::to_owned);
        let variable = format!("LB_{}", flag.to_uppercase().replace('-', "_"));
        given.or_else(|| self.variables.get(&variable).cloned().filter(|value| !value.is_empty()))
    }

    fn role(&self) -> String {
        self.flag("role").unwrap()
    }

    fn drain(&self) -> Duration {
        time(&self.flag("drain-timeout").unwrap())
    }

    /// The real binary takes every flag and variable, and has nothing to say about them.
    #[track_caller]
    fn check(&self) {
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
    fn ports(&self) -> BTreeMap<&'static str, u64> {
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

/// The manifests as `kubectl apply -k` would send them, with secrets made up.
struct Cluster(Vec<Value>);

impl Cluster {
    #[track_caller]
    fn render() -> Cluster {
        let folder = tempfile::tempdir().unwrap();
        let copy = Command::new("cp").arg("-r").arg(deploy().join("kubernetes")).arg(folder.path()).status();
        assert!(copy.unwrap().success());
        let folder = folder.path().join("kubernetes");
        std::fs::write(folder.join("reactor.token"), lb::run(&["token"]).stdout).unwrap();
        std::fs::write(folder.join("redis.env"), format!("password={PASSWORD}\n")).unwrap();
        let rendered = folder.join("rendered.yaml");
        std::fs::write(&rendered, tool("kubectl", &["kustomize", folder.to_str().unwrap()])).unwrap();
        Cluster(yaml(&rendered))
    }

    fn of_kind<'a>(&'a self, kind: &str) -> impl Iterator<Item = &'a Value> {
        self.0.iter().filter(move |object| object["kind"] == kind)
    }

    #[track_caller]
    fn one(&self, kind: &str, name: &str) -> &Value {
        let mut found = self.of_kind(kind).filter(|object| object["metadata"]["name"] == name);
        found.next().unwrap_or_else(|| panic!("there is no {kind} {name}"))
    }

    /// Deployments and the like.
    fn workloads(&self) -> impl Iterator<Item = &Value> {
        self.0.iter().filter(|object| object.pointer("/spec/template/spec/containers").is_some())
    }

    /// Those that run lb.
    fn nodes(&self) -> impl Iterator<Item = (&Value, Started)> {
        let ours = self.workloads().filter(|object| text(object, "/metadata/name") != "redis");
        ours.map(|object| (object, self.started(object)))
    }

    fn value_of(&self, source: &Value) -> String {
        if let Some(field) = source.pointer("/fieldRef/fieldPath") {
            assert_eq!(field, "status.podIP");
            return "10.1.2.3".to_owned();
        }
        let reference = &source["secretKeyRef"];
        let secret = self.one("Secret", text(reference, "/name"));
        decoded(&secret["data"][text(reference, "/key")])
    }

    #[track_caller]
    fn started(&self, workload: &Value) -> Started {
        let pod = &workload["spec"]["template"]["spec"];
        let [container] = array(pod, "/containers") else { panic!("one container in {pod:#}") };
        let mut variables = BTreeMap::new();
        for source in container["envFrom"].as_array().unwrap_or(&Vec::new()) {
            let settings = self.one("ConfigMap", text(source, "/configMapRef/name"));
            let data = settings["data"].as_object().unwrap();
            variables
                .extend(data.iter().map(|(name, value)| (name.clone(), value.as_str().unwrap().to_owned())));
        }
        for variable in container["env"].as_array().unwrap_or(&Vec::new()) {
            let value = match &variable["value"] {
                Value::String(value) => value.clone(),
                _ => self.value_of(&variable["valueFrom"]),
            };
            // As the kubelet does: what stands before may be named.
            let filled = variables.iter().fold(value, |value, (name, known): (&String, &String)| {
                value.replace(&format!("$({name})"), known)
            });
            assert!(!filled.contains("$("), "{filled}");
            variables.insert(text(variable, "/name").to_owned(), filled);
        }
        let mut files = BTreeMap::new();
        for mount in container["volumeMounts"].as_array().unwrap_or(&Vec::new()) {
            let mut volumes = array(pod, "/volumes").iter();
            let volume =
                volumes.find(|volume| volume["name"] == mount["name"]).expect("a volume of that name");
            let secret = self.one("Secret", text(volume, "/secret/secretName"));
            for (key, content) in secret["data"].as_object().unwrap() {
                files.insert(format!("{}/{key}", text(mount, "/mountPath")), decoded(content));
            }
        }
        let name = text(workload, "/metadata/name").to_owned();
        Started { name, args: words(container, "/args"), variables, files }
    }

    /// The names of workloads whose pods a selector chooses.
    fn selected(&self, selector: &Value) -> BTreeSet<&str> {
        let matches = |labels: &Value| {
            let alike = |(name, value): (&String, &Value)| labels.get(name) == Some(value);
            let one_of = |rule: &Value| {
                assert_eq!(rule["operator"], "In");
                labels.get(text(rule, "/key")).is_some_and(|label| array(rule, "/values").contains(label))
            };
            selector["matchLabels"].as_object().is_none_or(|wanted| wanted.iter().all(alike))
                && selector["matchExpressions"].as_array().is_none_or(|rules| rules.iter().all(one_of))
        };
        let pods =
            self.workloads().filter(|object| matches(&object["spec"]["template"]["metadata"]["labels"]));
        pods.map(|object| text(object, "/metadata/name")).collect()
    }

    /// The number of a container's port by its name, for all these workloads.
    #[track_caller]
    fn port(&self, workload: &str, name: &str) -> u64 {
        let object = self.workloads().find(|object| object["metadata"]["name"] == workload).unwrap();
        let ports = array(object, "/spec/template/spec/containers/0/ports");
        let port = ports.iter().find(|port| port["name"] == name);
        port.unwrap_or_else(|| panic!("{workload} has no port {name}"))["containerPort"].as_u64().unwrap()
    }
}

fn decoded(value: &Value) -> String {
    // Long ones are broken into lines.
    let text: String = value.as_str().unwrap().split_whitespace().collect();
    let bytes = base64::engine::general_purpose::STANDARD.decode(text).unwrap();
    String::from_utf8(bytes).unwrap()
}

/// A health check that asks lb: the arguments, without the binary.
#[track_caller]
fn health_check(test: &[String]) -> Vec<&str> {
    let words: Vec<&str> = test.iter().map(String::as_str).collect();
    let [_, "/lb", "health", "--admin", url] = words[..] else { panic!("{words:?}") };
    assert_eq!(url, "http://127.0.0.1:9011");
    words[2..].to_vec()
}

#[test]
fn kubernetes_knows_every_object() {
    let cluster = Cluster::render();
    let folder = tempfile::tempdir().unwrap();
    let mut files = Vec::new();
    let own = cluster.0.iter().filter(|object| object["kind"] != "PodMonitor");
    for (number, object) in own.enumerate() {
        let file = folder.path().join(format!("{number}.json"));
        std::fs::write(&file, object.to_string()).unwrap();
        files.push(file.to_str().unwrap().to_owned());
    }
    assert!(files.len() > 20, "{}", files.len());
    for version in KUBERNETES {
        let mut args = vec!["--kubernetes-version", version, "--strict"];
        args.extend(files.iter().map(String::as_str));
        let said = tool("kubernetes-validate", &args);
        assert_eq!(said.matches(" passed for ").count(), files.len(), "{said}");
        // What is deprecated is said in a warning.
        assert!(!said.contains("WARN"), "{said}");
    }
    let all_in_one =
        |object: &&Value| object["kind"] != "Namespace" && object["metadata"]["namespace"] != "lb";
    assert_eq!(cluster.0.iter().find(all_in_one), None);
}

/// The operator's kind has no schema here: what is used of it is written down.
#[test]
fn prometheus_scrapes_every_lb() {
    let cluster = Cluster::render();
    let monitor = cluster.one("PodMonitor", "lb");
    assert_eq!(monitor["apiVersion"], "monitoring.coreos.com/v1");
    let spec = monitor["spec"].as_object().unwrap();
    let keys: Vec<&str> = spec.keys().map(String::as_str).collect();
    assert_eq!(keys, ["jobLabel", "podMetricsEndpoints", "selector"]);
    let scraped = cluster.selected(&monitor["spec"]["selector"]);
    assert_eq!(scraped, BTreeSet::from(["ingest", "playback", "reactor"]));
    let [endpoint] = array(monitor, "/spec/podMetricsEndpoints") else {
        panic!("one endpoint in {monitor:#}")
    };
    for workload in scraped {
        assert_eq!(cluster.port(workload, text(endpoint, "/port")), 9011);
    }
    assert_eq!(endpoint["path"], "/metrics");
    for relabeling in array(endpoint, "/relabelings") {
        let known = ["sourceLabels", "targetLabel"];
        assert!(relabeling.as_object().unwrap().keys().all(|key| known.contains(&&**key)), "{relabeling}");
    }
    // The job that alerts and the dashboard go by.
    let label = text(monitor, "/spec/jobLabel");
    for (workload, _) in cluster.nodes() {
        assert_eq!(workload["spec"]["template"]["metadata"]["labels"][label], "lb");
    }
}

#[test]
fn lb_takes_what_the_manifests_give_it() {
    let cluster = Cluster::render();
    let mut roles = BTreeSet::new();
    for (workload, started) in cluster.nodes() {
        started.check();
        assert_eq!(started.role(), started.name);
        roles.insert(started.role());
        let container = &workload["spec"]["template"]["spec"]["containers"][0];
        assert_eq!(text(container, "/image"), "registry.example.org/lb:0.1.0");
        let named = array(container, "/ports").iter();
        let named = named.map(|port| (text(port, "/name"), port["containerPort"].as_u64().unwrap()));
        assert_eq!(named.collect::<BTreeMap<_, _>>(), started.ports(), "{}", started.name);
        // Otherwise a Service gives every pod variables that look like flags.
        assert_eq!(workload["spec"]["template"]["spec"]["enableServiceLinks"], false);
    }
    assert_eq!(roles.len(), 3);
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
fn every_selector_and_reference_leads_somewhere() {
    let cluster = Cluster::render();
    for workload in cluster.workloads() {
        let name = text(workload, "/metadata/name");
        let labels = &workload["spec"]["template"]["metadata"]["labels"];
        assert_eq!(cluster.selected(&workload["spec"]["selector"]), BTreeSet::from([name]), "{labels}");
        let spread = &workload["spec"]["template"]["spec"]["topologySpreadConstraints"];
        for constraint in spread.as_array().unwrap_or(&Vec::new()) {
            assert_eq!(cluster.selected(&constraint["labelSelector"]), BTreeSet::from([name]));
        }
    }
    let mut guarded = BTreeSet::new();
    for budget in cluster.of_kind("PodDisruptionBudget") {
        guarded.extend(cluster.selected(&budget["spec"]["selector"]));
        assert_eq!(budget["spec"]["maxUnavailable"], 1);
    }
    assert_eq!(guarded, BTreeSet::from(["ingest", "playback", "reactor"]));
    for service in cluster.of_kind("Service") {
        let selected = cluster.selected(&json!({ "matchLabels": service["spec"]["selector"] }));
        let expected = match text(service, "/metadata/name") {
            "reactors" => "reactor",
            name => name,
        };
        assert_eq!(selected, BTreeSet::from([expected]));
        for port in array(service, "/spec/ports") {
            assert_eq!(port["port"], cluster.port(expected, text(port, "/targetPort")), "{service:#}");
        }
        if service["spec"]["type"] == "LoadBalancer" {
            assert_eq!(service["spec"]["externalTrafficPolicy"], "Local");
        }
    }
    for scaler in cluster.of_kind("HorizontalPodAutoscaler") {
        let target = &scaler["spec"]["scaleTargetRef"];
        let scaled = cluster.one(text(target, "/kind"), text(target, "/name"));
        assert_eq!(scaled["apiVersion"], target["apiVersion"]);
        assert_eq!(scaled["spec"].get("replicas"), None, "it would undo what the autoscaler did");
        assert!(scaler["spec"]["minReplicas"].as_u64().unwrap() >= 2);
    }
    assert_eq!(cluster.of_kind("HorizontalPodAutoscaler").count(), 2);
}

#[test]
fn nodes_name_every_reactor_and_the_port_that_it_has() {
    let cluster = Cluster::render();
    let reactor = cluster.one("StatefulSet", "reactor");
    let service = text(reactor, "/spec/serviceName");
    assert_eq!(cluster.one("Service", service)["spec"]["clusterIP"], "None");
    let port = cluster.port("reactor", "api");
    let urls = (0..reactor["spec"]["replicas"].as_u64().unwrap())
        .map(|number| format!("http://reactor-{number}.{service}:{port}"));
    let urls = urls.collect::<Vec<_>>().join(",");
    for (_, started) in cluster.nodes() {
        assert_eq!(started.flag("reactor-url"), Some(urls.clone()));
    }
    // A playback node pulls from one pod, and not from the Service before all of them.
    let ingest = cluster.started(cluster.one("Deployment", "ingest"));
    assert_eq!(ingest.flag("advertise").as_deref(), Some("10.1.2.3"));
    // The password that reactors show is the one that Redis asks for.
    let store = cluster.started(reactor).flag("store");
    assert_eq!(store, Some(format!("redis://:{PASSWORD}@redis:{}", cluster.port("redis", "redis"))));
    let redis = cluster.started(cluster.one("Deployment", "redis"));
    assert!(redis.args.join(" ").ends_with("--requirepass $(PASSWORD)"), "{redis:?}");
    assert_eq!(redis.variables["PASSWORD"], PASSWORD);
}

#[test]
fn policies_let_in_what_nodes_need_and_nobody_else() {
    let cluster = Cluster::render();
    // Who reaches which port of whom; nobody named is anybody.
    let mut open = BTreeSet::new();
    let mut out = BTreeSet::new();
    for policy in cluster.of_kind("NetworkPolicy") {
        assert_eq!(policy["spec"]["policyTypes"], json!(["Ingress", "Egress"]));
        let [to] = Vec::from_iter(cluster.selected(&policy["spec"]["podSelector"]))[..] else { panic!() };
        for rule in array(policy, "/spec/ingress") {
            for port in array(rule, "/ports") {
                let name = text(port, "/port");
                cluster.port(to, name);
                let peers = rule["from"].as_array().cloned().unwrap_or_else(|| vec![Value::Null]);
                for peer in peers {
                    let from = match (&peer["podSelector"], &peer["namespaceSelector"]) {
                        (Value::Null, Value::Null) => vec!["anybody"],
                        (Value::Null, namespace) => {
                            vec![text(namespace, "/matchLabels/kubernetes.io~1metadata.name")]
                        }
                        (pods, _) => cluster.selected(pods).into_iter().collect(),
                    };
                    open.extend(from.into_iter().map(|from| format!("{from} > {to}:{name}")));
                }
            }
        }
        for rule in policy["spec"]["egress"].as_array().unwrap_or(&Vec::new()) {
            for peer in rule["to"].as_array().unwrap_or(&Vec::new()) {
                for target in cluster.selected(&peer["podSelector"]) {
                    out.extend(array(rule, "/ports").iter().map(|port| {
                        cluster.port(target, text(port, "/port"));
                        format!("{to} > {target}:{}", text(port, "/port"))
                    }));
                }
            }
        }
    }
    let within =
        ["ingest > reactor:api", "playback > ingest:rtmp", "playback > reactor:api", "reactor > redis:redis"];
    assert_eq!(out, within.map(str::to_owned).into());
    let expected = [
        "anybody > ingest:rtmp",
        "anybody > playback:http",
        "anybody > playback:rtmp",
        "ingest > reactor:api",
        "monitoring > ingest:admin",
        "monitoring > playback:admin",
        "monitoring > reactor:admin",
        "playback > reactor:api",
        "reactor > redis:redis",
    ];
    assert_eq!(open, expected.map(str::to_owned).into());
}

#[test]
fn pods_have_the_time_to_drain_the_memory_of_their_budget_and_no_rights() {
    let cluster = Cluster::render();
    for (workload, started) in cluster.nodes() {
        let pod = &workload["spec"]["template"]["spec"];
        let container = &pod["containers"][0];
        let grace = Duration::from_secs(pod["terminationGracePeriodSeconds"].as_u64().unwrap());
        let sleep =
            Duration::from_secs(container["lifecycle"]["preStop"]["sleep"]["seconds"].as_u64().unwrap());
        assert!(grace >= sleep + started.drain() + MARGIN, "{}: {grace:?}", started.name);

        let memory = &container["resources"]["limits"]["memory"];
        assert_eq!(container["resources"]["requests"]["memory"], *memory);
        if let Some(budget) = started.flag("memory-budget") {
            assert!(bytes(&budget) * 2 <= bytes(memory.as_str().unwrap()), "{}", started.name);
        } else {
            assert_eq!(started.role(), "reactor");
        }
    }
    for workload in cluster.workloads() {
        let pod = &workload["spec"]["template"]["spec"];
        assert_eq!(pod["automountServiceAccountToken"], false);
        assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
        assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
        let security = &pod["containers"][0]["securityContext"];
        let expected = json!({
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": { "drop": ["ALL"] },
        });
        assert_eq!(*security, expected);
    }
}

#[test]
fn probes_ask_what_is_there() {
    let cluster = Cluster::render();
    let token = lb::run(&["token"]).stdout;
    let token = ["--reactor-token", token.trim(), "--heartbeat", "1s"];
    let reactor = Lb::start(&[&["--role", "reactor"], &token[..]].concat());
    let url = reactor.reactor_url();
    let node = |role| Lb::start(&[&["--role", role, "--reactor-url", &url], &token[..]].concat());
    let nodes =
        BTreeMap::from([("ingest", node("ingest")), ("playback", node("playback")), ("reactor", reactor)]);
    for (workload, started) in cluster.nodes() {
        let container = &workload["spec"]["template"]["spec"]["containers"][0];
        for (probe, expected) in [("readinessProbe", "/readyz"), ("livenessProbe", "/livez")] {
            let get = &container[probe]["httpGet"];
            let path = text(get, "/path");
            assert_eq!((path, text(get, "/port")), (expected, "admin"), "{}", started.name);
            // A node is ready when a reactor has heard it, a reactor when nodes had the time to report.
            let admin = nodes[&*started.role()].admin();
            wait_for(path, SOON, || http::get(admin, path).status == 200);
        }
    }
}

#[test]
fn the_compose_file_fits() {
    let file = deploy().join("compose.yaml");
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
        health_check(&words(service, "/healthcheck/test"));
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
    health_check(&check);
    let rust = all.iter().find(|(word, rest)| word == "FROM" && rest.contains("/rust:")).unwrap();
    let needed =
        read("Cargo.toml").lines().find_map(|line| line.strip_prefix("rust-version = ")).unwrap().to_owned();
    assert!(rust.1.contains(&format!("rust:{}-", needed.trim_matches('"'))), "{rust:?}");
}

#[test]
fn the_health_check_is_a_command_of_lb() {
    let node = Lb::start(&["--role", "reactor", "--heartbeat", "1s"]);
    wait_for("the reactor to be ready", SOON, || http::get(node.admin(), "/readyz").status == 200);
    let url = format!("http://{}", node.admin());
    let asked = lb::run(&["health", "--admin", &url]);
    assert_eq!(asked.code, Some(0), "{}", asked.stderr);
    node.stop(libc::SIGTERM);
    let asked = lb::run(&["health", "--admin", &url]);
    assert_eq!(asked.code, Some(1), "{}", asked.stderr);
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
