//! Imports point down only: reads the source and fails on an upward arrow, and on a name that has one place.

// A test fails by panicking; Clippy's switch for tests does not reach helpers outside of `#[test]` functions.
#![allow(clippy::expect_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The floors, as `src/lib.rs` draws them. Modules of one floor do not know each other, but for the top, which puts
/// everything together.
const FLOORS: [(u8, &[&str]); 5] = [
    (0, &["rtmp", "media"]),
    (1, &["relay", "registry"]),
    (2, &["net", "ffmpeg", "client"]),
    (3, &["steps", "web"]),
    (TOP, &["cli", "config", "node"]),
];
const TOP: u8 = 4;

/// Usable from floor 1 up; they use each other and nothing else of the crate.
const PILLARS: [&str; 6] = ["api", "ids", "drain", "health", "listen", "telemetry"];

/// Names of other crates, and the only modules that may say them.
const PLACES: [(&str, &[&str]); 5] = [
    ("mmids_core", &["steps"]),
    ("warp", &["web"]),
    ("reqwest", &["client"]),
    ("redis", &["registry"]),
    ("clap", &["cli", "config", "main"]),
];

/// What floor 0 never says: it has no sockets, no clocks and no tasks.
const NOT_ON_THE_GROUND: [&str; 6] =
    ["tokio", "std::net", "std::process", "std::thread", "Instant::now", "SystemTime"];

fn floor(module: &str) -> Option<u8> {
    FLOORS.iter().find(|(_, modules)| modules.contains(&module)).map(|(floor, _)| *floor)
}

/// Every source file with the module of the crate it belongs to.
fn sources() -> Vec<(String, PathBuf)> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut found, mut open) = (Vec::new(), vec![src.clone()]);
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(dir).expect("the source can be read").flatten() {
            let path = entry.path();
            // The shims are crates of their own.
            if path == src.join("shims") {
                continue;
            }
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let inside =
                    path.strip_prefix(&src).expect("it was found there").to_str().expect("names are ASCII");
                let module = inside.split('/').next().unwrap_or(inside).trim_end_matches(".rs").to_owned();
                found.push((module, path));
            }
        }
    }
    found
}

/// The lines of code, numbered: without comments, and without unit tests, which stand last and may use what they like.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let end = text.find("#[cfg(test)]\nmod tests").unwrap_or(text.len());
    let lines = text[..end].lines().enumerate();
    lines.map(|(index, line)| (index + 1, line.split("//").next().unwrap_or(line)))
}

/// The same with each import on the line where it begins, however many it takes, and with `crate::` for as many `super::`
/// as lead from a file to the top.
fn statements(text: &str, depth: usize) -> Vec<(usize, String)> {
    let climb = "super::".repeat(depth);
    let mut statements: Vec<(usize, String)> = Vec::new();
    for (number, line) in code(text) {
        match statements.last_mut() {
            Some((_, open)) if is_open(open) => open.push_str(line.trim()),
            _ => statements.push((number, line.to_owned())),
        }
    }
    statements.iter_mut().for_each(|(_, line)| *line = line.replace(&climb, "crate::"));
    statements
}

/// An import that goes on in the next line.
fn is_open(line: &str) -> bool {
    let import = line.trim_start().trim_start_matches("pub ").trim_start_matches("pub(crate) ");
    import.starts_with("use ") && !line.contains(';')
}

/// The modules of the crate that a line names: `crate::a::b` names `a`, `crate::{a, b::c}` names both.
fn named(line: &str) -> Vec<String> {
    let mut names = Vec::new();
    for (index, _) in line.match_indices("crate::") {
        // A `$crate` or another crate's name that ends so is not ours.
        if line[..index].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '$') {
            continue;
        }
        let rest = &line[index + "crate::".len()..];
        let list = match rest.strip_prefix('{') {
            Some(list) => {
                let mut depth = 0;
                let outer = |c: &char| {
                    match c {
                        '{' => depth += 1,
                        '}' => depth -= 1,
                        _ => {}
                    }
                    depth == 0
                };
                list.chars().filter(outer).collect()
            }
            None => rest.split([',', ';']).next().unwrap_or(rest).to_owned(),
        };
        names.extend(list.split(',').map(|path| {
            path.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>()
        }));
    }
    names.retain(|name| name.starts_with(|c: char| c.is_lowercase()));
    names
}

/// Whether a line names a crate or path as a word of its own.
fn says(line: &str, word: &str) -> bool {
    let part_of_a_word = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(index, _)| {
        let (before, after) = (&line[..index], &line[index + word.len()..]);
        !before.ends_with(part_of_a_word) && !before.ends_with("::") && after.starts_with("::")
            || (!before.ends_with(part_of_a_word)
                && word.contains("::")
                && !after.starts_with(part_of_a_word))
    })
}

#[test]
fn imports_point_down_only() {
    let mut wrong = Vec::new();
    let mut seen = BTreeMap::new();
    for (module, path) in sources() {
        let text = std::fs::read_to_string(&path).expect("the source can be read");
        *seen.entry(module.clone()).or_insert(0) += 1;
        if module == "lib" || module == "main" {
            continue;
        }
        let Some(own) = floor(&module).or(PILLARS.contains(&module.as_str()).then_some(0)) else {
            wrong.push(format!(
                "src/{module} stands on no floor: say where in tests/floors.rs and src/lib.rs"
            ));
            continue;
        };
        // The module `a` is `a.rs` or `a/mod.rs`, `a::b` is one deeper.
        let inside = path.strip_prefix(Path::new(env!("CARGO_MANIFEST_DIR")).join("src")).unwrap_or(&path);
        let depth = inside.iter().count() - usize::from(inside.ends_with("mod.rs"));
        for (number, line) in statements(&text, depth) {
            for name in named(&line) {
                let pillar = PILLARS.contains(&name.as_str());
                let allowed = match floor(&name) {
                    _ if name == module => true,
                    None if pillar => own >= 1 || PILLARS.contains(&module.as_str()),
                    None => false,
                    Some(other) => other < own || (own == TOP && other == TOP),
                };
                if !allowed {
                    wrong.push(format!("{}:{number}: {module} uses {name}: {}", path.display(), line.trim()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(seen.contains_key("rtmp") && seen.contains_key("lib"), "the source was not found: {seen:?}");
}

#[test]
fn some_names_have_one_place() {
    let mut wrong = Vec::new();
    for (module, path) in sources() {
        let text = std::fs::read_to_string(&path).expect("the source can be read");
        for (number, line) in code(&text) {
            let misplaced =
                PLACES.iter().filter(|(_, homes)| !homes.contains(&module.as_str())).map(|(name, _)| name);
            let ground = NOT_ON_THE_GROUND.iter().filter(|_| floor(&module) == Some(0));
            for name in misplaced.chain(ground).filter(|name| says(line, name)) {
                wrong.push(format!("{}:{number}: {module} says {name}: {}", path.display(), line.trim()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn an_arrow_is_seen_in_every_spelling() {
    let text =
        "use crate::{\n    net, // no: crate::x\n    web::a,\n};\nsuper::super::ids::f();\nsuper::here();\n";
    let found: Vec<_> = statements(text, 2).iter().map(|(number, line)| (*number, named(line))).collect();
    assert_eq!(found[0], (1, vec!["net".to_owned(), "web".to_owned()]));
    assert_eq!(found[1..], [(5, vec!["ids".to_owned()]), (6, vec![])]);
    assert_eq!(named("use crate::relay::Hub;"), ["relay"]);
    assert_eq!(named("pub(crate) use crate::{net, relay::{Hub, Stream}, api};"), ["net", "relay", "api"]);
    assert_eq!(named("fn f(a: crate::ids::NodeId, b: crate::web::Secret)"), ["ids", "web"]);
    assert_eq!(named("use mycrate::x; $crate::y!(); use crate::Type;"), Vec::<String>::new());
    assert!(says("use warp::Filter;", "warp") && says("let x = warp::path(\"a\");", "warp"));
    assert!(says("let now = Instant::now();", "Instant::now") && says("use std::net::IpAddr;", "std::net"));
    assert!(!says("use my_warp::Filter; time_warp(); warped::x()", "warp"));
}
