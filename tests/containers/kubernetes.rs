//! The manifests of Kubernetes.

use crate::common::{SOON, http, lb, lb::Lb, root, wait_for};
use crate::started::{MARGIN, Started, array, bytes, text, tool, words, yaml};
use base64::Engine;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::time::Duration;

/// The oldest version of Kubernetes that has all that is used (a preStop that sleeps), and the newest that the validator knows.
const KUBERNETES: [&str; 2] = ["1.30", "1.37"];

const PASSWORD: &str = "0123456789abcdef";

/// The manifests as `kubectl apply -k` would send them, with secrets made up.
pub struct Cluster(Vec<Value>);

impl Cluster {
    #[track_caller]
    pub fn render() -> Cluster {
        let folder = tempfile::tempdir().unwrap();
        let copy = Command::new("cp")
            .arg("-r")
            .arg(root().join("scripts/deploy/kubernetes"))
            .arg(folder.path())
            .status();
        assert!(copy.unwrap().success());
        let folder = folder.path().join("kubernetes");
        std::fs::write(folder.join("reactor.token"), lb::run(&["token"]).stdout).unwrap();
        std::fs::write(folder.join("redis.env"), format!("password={PASSWORD}\n")).unwrap();
        let rendered = folder.join("rendered.yaml");
        std::fs::write(&rendered, tool("kubectl", &["kustomize", folder.to_str().unwrap()])).unwrap();
        Cluster(yaml(&rendered))
    }

    pub fn of_kind<'a>(&'a self, kind: &str) -> impl Iterator<Item = &'a Value> {
        self.0.iter().filter(move |object| object["kind"] == kind)
    }

    #[track_caller]
    pub fn one(&self, kind: &str, name: &str) -> &Value {
        let mut found = self.of_kind(kind).filter(|object| object["metadata"]["name"] == name);
        found.next().unwrap_or_else(|| panic!("there is no {kind} {name}"))
    }

    /// Deployments and the like.
    pub fn workloads(&self) -> impl Iterator<Item = &Value> {
        self.0.iter().filter(|object| object.pointer("/spec/template/spec/containers").is_some())
    }

    /// Those that run lb.
    pub fn nodes(&self) -> impl Iterator<Item = (&Value, Started)> {
        let ours = self.workloads().filter(|object| text(object, "/metadata/name") != "redis");
        ours.map(|object| (object, self.started(object)))
    }

    pub fn value_of(&self, source: &Value) -> String {
        if let Some(field) = source.pointer("/fieldRef/fieldPath") {
            assert_eq!(field, "status.podIP");
            return "10.1.2.3".to_owned();
        }
        let reference = &source["secretKeyRef"];
        let secret = self.one("Secret", text(reference, "/name"));
        decoded(&secret["data"][text(reference, "/key")])
    }

    #[track_caller]
    pub fn started(&self, workload: &Value) -> Started {
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
    pub fn selected(&self, selector: &Value) -> BTreeSet<&str> {
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
    pub fn port(&self, workload: &str, name: &str) -> u64 {
        let object = self.workloads().find(|object| object["metadata"]["name"] == workload).unwrap();
        let ports = array(object, "/spec/template/spec/containers/0/ports");
        let port = ports.iter().find(|port| port["name"] == name);
        port.unwrap_or_else(|| panic!("{workload} has no port {name}"))["containerPort"].as_u64().unwrap()
    }
}

pub fn decoded(value: &Value) -> String {
    // Long ones are broken into lines.
    let text: String = value.as_str().unwrap().split_whitespace().collect();
    let bytes = base64::engine::general_purpose::STANDARD.decode(text).unwrap();
    String::from_utf8(bytes).unwrap()
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
