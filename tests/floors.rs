//! Imports point down only, and never round in a circle: reads the source and fails on an upward arrow, on a circle
//! between modules of a floor or between files of a module, and on a name that has one place.

// A test fails by panicking; Clippy's switch for tests does not reach helpers outside of `#[test]` functions.
#![allow(clippy::expect_used, clippy::indexing_slicing)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The floors, as `src/lib.rs` draws them. Modules of one floor do not know each other, but for the top, which puts
/// everything together.
const FLOORS: [(u8, &[&str]); 5] = [
    (0, &["rtmp", "media"]),
    (1, &["relay", "registry", "published", "observed", "auth"]),
    (2, &["net", "ffmpeg", "client"]),
    (3, &["steps", "web"]),
    (TOP, &["cli", "config", "node", "demo", "conform"]),
];
const TOP: u8 = 4;

/// Usable from floor 1 up; they use each other and nothing else of the crate.
const PILLARS: [&str; 9] =
    ["api", "budget", "reread", "retry", "ids", "drain", "health", "journal", "telemetry"];

/// Modules whose files stand in circles for now. One that has none any more may not stay here.
const CIRCLES_FOR_NOW: [&str; 0] = [];

/// Names of other crates, and the only modules that may say them.
const PLACES: [(&str, &[&str]); 5] = [
    ("mmids_core", &["steps"]),
    ("warp", &["web"]),
    ("reqwest", &["client"]),
    ("redis", &["registry"]),
    ("clap", &["cli", "config", "demo", "main"]),
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

/// The same with each import on the line where it begins, however many it takes.
fn joined(text: &str) -> Vec<(usize, String)> {
    let mut statements: Vec<(usize, String)> = Vec::new();
    for (number, line) in code(text) {
        match statements.last_mut() {
            Some((_, open)) if is_open(open) => open.push_str(line.trim()),
            _ => statements.push((number, line.to_owned())),
        }
    }
    statements
}

/// The same, with `crate::` for as many `super::` as lead from a file to the top.
fn statements(text: &str, depth: usize) -> Vec<(usize, String)> {
    let climb = "super::".repeat(depth);
    let mut statements = joined(text);
    statements.iter_mut().for_each(|(_, line)| *line = line.replace(&climb, "crate::"));
    statements
}

/// An import that goes on in the next line.
fn is_open(line: &str) -> bool {
    import(line).is_some() && !line.contains(';')
}

/// What an import says, and whether it is one that others may follow by the importing module's name.
fn import(line: &str) -> Option<(bool, &str)> {
    let line = line.trim_start();
    let (public, rest) = match line.strip_prefix("pub") {
        Some(rest) if rest.starts_with('(') => (true, rest.split_once(')')?.1.trim_start()),
        Some(rest) => (true, rest.trim_start()),
        None => (false, line),
    };
    rest.strip_prefix("use ").map(|what| (public, what.split(';').next().unwrap_or(what).trim()))
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

/// A module of the crate by the segments of its path: `client`, `agent`.
type Name = Vec<String>;

/// The modules that are files, without tests, and the arrows between them.
#[derive(Default)]
struct Tree {
    files: BTreeMap<Name, String>,
    /// By what names a module knows items of others.
    aliases: BTreeMap<Name, BTreeMap<String, Name>>,
}

impl Tree {
    fn of(files: impl IntoIterator<Item = (Name, String)>) -> Self {
        let mut tree = Tree { files: files.into_iter().collect(), aliases: BTreeMap::new() };
        tree.files.retain(|name, _| !name.is_empty());
        let tests: Vec<Name> = tree.files.iter().flat_map(|(name, text)| test_modules(name, text)).collect();
        tree.files.retain(|name, _| !tests.iter().any(|test| name.starts_with(test)));
        for (name, text) in &tree.files {
            let mut aliases = BTreeMap::new();
            for (_, line) in joined(text) {
                let paths = import(&line).into_iter().flat_map(|(_, what)| leaves(what));
                let absolute =
                    paths.filter_map(|path| Some((path.last()?.clone(), tree.absolute(name, &path)?)));
                aliases.extend(absolute);
            }
            tree.aliases.insert(name.clone(), aliases);
        }
        tree
    }

    /// The path from the top of the crate, of a path as it stands in a module; nothing: another crate's, or a name of
    /// the module itself.
    fn absolute(&self, module: &[String], path: &[String]) -> Option<Name> {
        let first = path.first()?.as_str();
        let climb = path.iter().take_while(|segment| *segment == "super").count();
        let (base, rest) = match first {
            "crate" => (Name::new(), path.get(1..)?),
            "self" => (module.to_vec(), path.get(1..)?),
            "super" => (module.get(..module.len().checked_sub(climb)?)?.to_vec(), path.get(climb..)?),
            _ => {
                let child = [module, &path[..1]].concat();
                (self.files.contains_key(&child).then(|| module.to_vec())?, path)
            }
        };
        Some([base.as_slice(), rest].concat())
    }

    /// The file that holds what a path names, past all re-exports.
    fn home(&self, path: &[String], hops: usize) -> Name {
        let mut at = Name::new();
        for (index, segment) in path.iter().enumerate() {
            let child = [at.as_slice(), std::slice::from_ref(segment)].concat();
            if self.files.contains_key(&child) {
                at = child;
                continue;
            }
            let alias = self.aliases.get(&at).and_then(|aliases| aliases.get(segment));
            return match alias {
                Some(alias) if hops > 0 => {
                    self.home(&[alias.as_slice(), &path[index + 1..]].concat(), hops - 1)
                }
                _ => at,
            };
        }
        at
    }

    /// Who uses whom, as files. A module that shows its parts to others does not use them by that.
    fn arrows(&self) -> BTreeMap<Name, BTreeSet<Name>> {
        let mut arrows: BTreeMap<Name, BTreeSet<Name>> = BTreeMap::new();
        for (name, text) in &self.files {
            let own = arrows.entry(name.clone()).or_default();
            for (_, line) in joined(text) {
                let paths = match import(&line) {
                    Some((true, _)) => continue,
                    Some((false, what)) => leaves(what),
                    None => paths(&line),
                };
                let absolute = paths.iter().filter_map(|path| self.absolute(name, path));
                own.extend(absolute.map(|path| self.home(&path, 8)).filter(|home| home != name));
            }
        }
        arrows
    }
}

/// The modules that a file declares for tests only.
fn test_modules(name: &[String], text: &str) -> Vec<Name> {
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let declared = lines.windows(2).filter(|two| two[0].starts_with("#[cfg(") && two[0].contains("test"));
    let names = declared
        .filter_map(|two| two[1].strip_suffix(';')?.split_whitespace().skip_while(|w| *w != "mod").nth(1));
    names.map(|test| [name, &[test.to_owned()]].concat()).collect()
}

/// The paths of an import: `a::{b, c::d as e}` is `a::b` and `a::c::d`.
fn leaves(tree: &str) -> Vec<Name> {
    let tree = tree.trim();
    let Some((before, list)) = tree.split_once('{') else {
        let path = tree.split(" as ").next().unwrap_or(tree);
        let segments: Name = path.split("::").map(|s| s.trim().to_owned()).collect();
        return if path.is_empty() { Vec::new() } else { vec![segments] };
    };
    let list = list.rsplit_once('}').map_or(list, |(list, _)| list);
    let (mut depth, mut items) = (0, vec![String::new()]);
    for c in list.chars() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                items.push(String::new());
                continue;
            }
            _ => {}
        }
        items.last_mut().expect("there is one").push(c);
    }
    items
        .iter()
        .filter(|item| !item.trim().is_empty())
        .flat_map(|item| leaves(&format!("{before}{}", item.trim())))
        .collect()
}

/// The paths in a line of code that is no import.
fn paths(line: &str) -> Vec<Name> {
    let words = line.split(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':'));
    let paths = words.filter(|word| word.contains("::")).map(|word| word.trim_matches(':'));
    paths.map(|path| path.split("::").map(str::to_owned).collect()).collect()
}

/// The sets of nodes of which each leads to each other.
fn circles<N: Ord + Clone>(arrows: &BTreeMap<N, BTreeSet<N>>) -> BTreeSet<BTreeSet<N>> {
    let reached = |from: &N| {
        let (mut seen, mut open) = (BTreeSet::new(), vec![from.clone()]);
        while let Some(node) = open.pop() {
            for next in arrows.get(&node).into_iter().flatten() {
                if seen.insert(next.clone()) {
                    open.push(next.clone());
                }
            }
        }
        seen
    };
    let reached: BTreeMap<&N, BTreeSet<N>> = arrows.keys().map(|node| (node, reached(node))).collect();
    let mutual = |a: &N, b: &N| {
        reached.get(a).is_some_and(|of_a| of_a.contains(b))
            && reached.get(b).is_some_and(|of_b| of_b.contains(a))
    };
    let circle =
        |node: &N| arrows.keys().filter(|other| mutual(node, other)).cloned().collect::<BTreeSet<N>>();
    arrows.keys().map(circle).filter(|circle| circle.len() > 1).collect()
}

/// The whole crate.
fn tree() -> Tree {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    Tree::of(sources().into_iter().map(|(_, path)| {
        let inside = path.strip_prefix(&src).expect("it was found there").with_extension("");
        let mut name: Name = inside.iter().map(|part| part.to_string_lossy().into_owned()).collect();
        if name.last().is_some_and(|last| last == "mod") {
            name.pop();
        }
        // The roots put the modules together and belong to none.
        name.retain(|part| part != "lib" && part != "main");
        (name, std::fs::read_to_string(&path).expect("the source can be read"))
    }))
}

#[test]
fn no_imports_go_round_in_a_circle() {
    let arrows = tree().arrows();
    let mut modules: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut files: BTreeMap<String, BTreeMap<Name, BTreeSet<Name>>> = BTreeMap::new();
    for (from, to) in &arrows {
        let homes = to.iter().filter_map(|home| home.first()).filter(|home| **home != from[0]);
        modules.entry(from[0].clone()).or_default().extend(homes.cloned());
        let inside = to.iter().filter(|home| home.first() == from.first()).cloned().collect();
        files.entry(from[0].clone()).or_default().insert(from.clone(), inside);
    }
    let mut wrong: Vec<String> =
        circles(&modules).iter().map(|circle| format!("modules in a circle: {circle:?}")).collect();
    for (module, arrows) in &files {
        let found = circles(arrows);
        match CIRCLES_FOR_NOW.contains(&module.as_str()) {
            true if found.is_empty() => {
                wrong.push(format!("{module} has no circle: take it off CIRCLES_FOR_NOW"))
            }
            true => {}
            false => {
                let names = |circle: &BTreeSet<Name>| {
                    let uses = circle.iter().flat_map(|from| {
                        let to = arrows[from].iter().filter(|to| circle.contains(*to));
                        to.map(|to| format!("{} uses {}", from.join("::"), to.join("::")))
                    });
                    uses.collect::<Vec<_>>().join(", ")
                };
                wrong.extend(found.iter().map(|circle| format!("files in a circle: {}", names(circle))));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let agent = ["client", "agent"].map(str::to_owned).to_vec();
    assert!(
        arrows[&agent].contains(&vec!["published".to_owned()]),
        "arrows are not seen: {:?}",
        arrows[&agent]
    );
}

#[test]
fn a_circle_is_seen_through_re_exports_and_in_every_spelling_and_tests_are_not_looked_at() {
    let circles_of = |files: &[(&str, &str)]| {
        let name = |path: &str| path.split("::").map(str::to_owned).collect::<Name>();
        let tree = Tree::of(files.iter().map(|(path, text)| (name(path), (*text).to_owned())));
        let found = circles(&tree.arrows());
        found.iter().flatten().map(|name| name.join("::")).collect::<Vec<_>>().join(" ")
    };
    let parent = ("a", "mod b;\nmod c;\npub use b::B;\npub use c::C;\n");
    let b = ("a::b", "use super::{\n    C, // the other\n    x,\n};\npub struct B(C);\n");
    assert_eq!(circles_of(&[parent, b, ("a::c", "pub struct C;\nfn f() { super::b::g() }\n")]), "a::b a::c");
    assert_eq!(circles_of(&[parent, b, ("a::c", "use crate::a::B as D;\npub struct C(D);\n")]), "a::b a::c");
    assert_eq!(
        circles_of(&[
            parent,
            b,
            ("a::c", "pub struct C;\n#[cfg(test)]\nmod tests { use super::super::B; }\n")
        ]),
        ""
    );
    let tested = ("a", "mod b;\nmod c;\npub use b::B;\npub use c::C;\n#[cfg(test)]\nmod t;\n");
    assert_eq!(circles_of(&[tested, b, ("a::c", "pub struct C;\n"), ("a::t", "use super::B;\n")]), "");
    // What the parent says itself is an arrow, what it shows is none.
    assert_eq!(circles_of(&[("a", "mod b;\nfn f() { b::g() }\n"), ("a::b", "use super::f;\n")]), "a a::b");
    assert_eq!(
        circles_of(&[("a", "mod b;\npub use b::g;\nconst X: u8 = 1;\n"), ("a::b", "use super::X;\n")]),
        ""
    );
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
