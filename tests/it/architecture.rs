//! The architecture, held by reading `src/`: which module may import which, what the pure part may not do, where the
//! clock is read, and a few rules of order. Each rule is first tried on snippets that it must and must not report, so
//! that a rule that cannot fail is noticed.

mod source;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use source::{File, Source, group};

/// The pure part: no async, no I/O, no clock.
const PURE: &[&str] = &["quota", "clock", "observation", "plan", "provider", "limiter", "telemetry"];

/// What each top-level module may import. Client and controller are in no line of each other: they meet in
/// `observation` on the way up and in `plan` on the way down.
const MAY_IMPORT: &[(&str, &[&str], &[&str])] = &[
    // module, groups, modules
    ("quota", &[], &[]),
    ("clock", &[], &[]),
    ("observation", &[], &["quota", "clock"]),
    ("plan", &[], &["quota", "clock"]),
    ("provider", &[], &["quota", "clock", "observation"]),
    ("limiter", &[], &["quota", "clock", "plan"]),
    ("telemetry", &[], &["quota"]),
    ("store", &[], &["plan"]),
    ("https", &[], &[]),
    ("client", PURE, &["store", "https"]),
    ("redis", PURE, &["client"]),
    ("exposition", &[], &["telemetry"]),
    ("controller", PURE, &["store", "https", "exposition"]),
    ("sim", PURE, &["store", "client", "redis", "exposition", "controller"]),
    ("config", PURE, &["client", "controller"]),
    ("cli", PURE, &["store", "client", "redis", "exposition", "controller", "sim", "config"]),
];

/// Where tokio's clock may be read: the shells, which run on tokio. Tests pause it.
const TOKIO_CLOCK: &[&str] = &["store", "client", "redis", "controller", "sim", "cli"];

const BANNED_NAMES: &[&str] = &["utils", "util", "common", "types", "helpers", "misc", "shared"];

const LINES_MAX: usize = 700;

type Rule = fn(&Source) -> Vec<String>;
/// A little crate: paths below `src/` and their text.
type Snippet = &'static [(&'static str, &'static str)];

/// A rule, crates it must report, and crates it must let pass.
struct Checked {
    name: &'static str,
    rule: Rule,
    bad: &'static [Snippet],
    good: &'static [Snippet],
}

const RULES: &[Checked] = &[
    Checked {
        name: "every file is Rust",
        rule: |source| source.unreadable.clone(),
        bad: &[&[("lib.rs", "fn f( {")]],
        good: &[&[("lib.rs", "fn f() {}")]],
    },
    Checked {
        name: "imports follow the table",
        rule: imports_follow_the_table,
        bad: &[
            &[("lib.rs", "mod client;"), ("client.rs", "use crate::controller::Params;")],
            &[("lib.rs", "mod controller;"), ("controller.rs", "use crate::client;")],
            &[("lib.rs", "mod plan;"), ("plan.rs", "use crate::{quota::Meter, store::{Store, Source}};")],
            &[("lib.rs", "mod plan;"), ("plan.rs", "fn f() -> u8 { crate::limiter::g::<u8>() }")],
            &[("lib.rs", "mod plan;"), ("plan.rs", "fn f() { assert!(crate::limiter::g()) }")],
            &[("lib.rs", "mod plan;"), ("plan/mod.rs", "mod a;"), ("plan/a.rs", "use super::super::limiter::X;")],
            &[("lib.rs", "mod plan;"), ("plan/mod.rs", "mod a;"), ("plan/a.rs", "fn f() { super::super::store::g() }")],
            &[("lib.rs", "mod plan;"), ("plan.rs", "use super::{limiter::{self as l}, quota};")],
            &[("lib.rs", "mod plan;"), ("plan.rs", "macro_rules! m { () => { $crate::store::g() } }")],
            &[("lib.rs", "mod plan;"), ("plan.rs", "use crate as root;")],
            &[("lib.rs", "mod plan;"), ("plan.rs", "use crate::{self as root};")],
            &[("lib.rs", "mod plan; pub use store::Store;"), ("plan.rs", "use crate::Store;")],
            &[("lib.rs", "mod stray;"), ("stray.rs", "")],
            &[
                ("lib.rs", "#[path = \"telemetry/exposition.rs\"] mod exposition;"),
                ("telemetry/exposition.rs", "use crate::plan::X;"),
            ],
        ],
        good: &[
            &[("lib.rs", "mod plan;"), ("plan.rs", "use crate::{quota::Meter, clock::{self, Clock as C}};")],
            &[
                ("lib.rs", "mod plan;"),
                ("plan/mod.rs", "mod a;"),
                ("plan/a.rs", "use super::b; use super::super::quota;"),
            ],
            &[
                ("lib.rs", "mod plan;"),
                (
                    "plan.rs",
                    "//! [`x`](crate::store)\n// crate::store::X\npub(crate) const S: &str = \"crate::store::X\";",
                ),
            ],
            &[("lib.rs", "mod cli;"), ("cli.rs", "use crate::{client, controller};")],
        ],
    },
    Checked {
        name: "no import circles",
        rule: no_import_circles,
        bad: &[&[
            ("lib.rs", "mod a; mod b; mod c;"),
            ("a.rs", "use crate::b::X;"),
            ("b.rs", "use crate::c::X;"),
            ("c.rs", "fn f() { crate::a::g() }"),
        ]],
        good: &[&[("lib.rs", "mod a; mod b;"), ("a.rs", "use crate::b::X; use self::c::Y; mod c;"), ("b.rs", "")]],
    },
    Checked {
        name: "no glob imports",
        rule: no_glob_imports,
        bad: &[
            &[("lib.rs", "mod plan;"), ("plan.rs", "use crate::*;")],
            &[("lib.rs", "mod plan;"), ("plan.rs", "use super::{quota, *};")],
            &[("lib.rs", "mod plan;"), ("plan.rs", "use std::time::*;")],
        ],
        good: &[&[("lib.rs", "mod plan;"), ("plan.rs", "use proptest::prelude::*; fn f(a: u8) -> u8 { a * a }")]],
    },
    Checked {
        name: "features are chosen in lib.rs alone",
        rule: features_in_lib_alone,
        bad: &[
            &[("plan.rs", "#[cfg(feature = \"client\")] fn f() {}")],
            &[("plan.rs", "#[cfg_attr(all(unix, feature = \"x\"), derive(Debug))] struct S;")],
            &[("plan.rs", "fn f() -> bool { cfg!(not(feature = \"x\")) }")],
        ],
        good: &[&[("lib.rs", "#[cfg(feature = \"client\")] mod client;"), ("plan.rs", "#[cfg(unix)] fn feature() {}")]],
    },
    Checked {
        name: "tests live in tests/it",
        rule: tests_in_tests,
        bad: &[
            &[("lib.rs", "#[cfg(test)] fn f() {}")],
            &[("plan.rs", "fn f() -> u8 { if cfg!(any(test, unix)) { 1 } else { 2 } }")],
            &[("plan.rs", "#[test] fn f() {}")],
            &[("plan.rs", "#[tokio::test] async fn f() {}")],
        ],
        good: &[&[("plan.rs", "fn test() {} #[cfg(unix)] fn g() { test() }")]],
    },
    Checked {
        name: "no module is a grab bag",
        rule: no_grab_bags,
        bad: &[&[("plan/utils.rs", "")], &[("helpers/mod.rs", "")], &[("plan.rs", "mod types { }")]],
        good: &[&[("plan/common_law.rs", "fn common() {}")]],
    },
    Checked {
        name: "a module is a file",
        rule: modules_are_files,
        bad: &[&[("plan.rs", "pub mod inner { pub fn f() {} }")]],
        good: &[&[("plan.rs", "pub mod inner;")]],
    },
    Checked {
        name: "no orphan files",
        rule: no_orphans,
        bad: &[
            &[("lib.rs", "mod plan;"), ("plan/mod.rs", ""), ("plan/left.rs", "")],
            &[("lib.rs", "// mod plan;"), ("plan.rs", "")],
        ],
        good: &[&[
            ("lib.rs", "mod plan; #[path = \"x/y.rs\"] mod z;"),
            ("main.rs", ""),
            ("plan/mod.rs", "mod a;"),
            ("plan/a.rs", "mod b;"),
            ("plan/a/b.rs", ""),
            ("x/y.rs", ""),
        ]],
    },
    Checked {
        name: "the clock is read in clock.rs alone",
        rule: clock_reads_in_clock_alone,
        bad: &[
            &[("lib.rs", "mod plan;"), ("plan.rs", "fn f() { std::time::Instant::now(); }")],
            &[("lib.rs", "mod client;"), ("client.rs", "use std::time::Instant; fn f() { Instant::now(); }")],
            &[
                ("lib.rs", "mod client;"),
                ("client.rs", "use std::time::{Duration, SystemTime as T}; fn f() { T::now(); }"),
            ],
            &[("lib.rs", "mod client;"), ("client.rs", "use std::time; fn f() { time::SystemTime::now(); }")],
            &[("lib.rs", "mod client;"), ("client.rs", "fn f() { g(Instant::now) }")],
            &[("lib.rs", "mod client;"), ("client.rs", "use std::time::UNIX_EPOCH;")],
            &[("lib.rs", "mod client;"), ("client.rs", "use quanta::Clock;")],
            &[("lib.rs", "mod client;"), ("client.rs", "fn f() { jiff::Timestamp::now(); }")],
            &[("lib.rs", "mod config;"), ("config.rs", "fn f() { tokio::time::Instant::now(); }")],
        ],
        good: &[
            &[("lib.rs", "mod clock;"), ("clock.rs", "use std::time::SystemTime; fn f() { SystemTime::now(); }")],
            &[("lib.rs", "mod client;"), ("client.rs", "use tokio::time::Instant; fn f() { Instant::now(); }")],
            &[("lib.rs", "mod client;"), ("client.rs", "use tokio::time; fn f() { time::Instant::now(); }")],
            &[("lib.rs", "mod plan;"), ("plan.rs", "use std::time::Duration; fn f(c: C) { c.now(); }")],
        ],
    },
    Checked {
        name: "no file is too long",
        rule: no_long_files,
        bad: &[&[("lib.rs", LONG)]],
        good: &[&[("lib.rs", "fn f() {}")]],
    },
    Checked {
        name: "the pure part is pure",
        rule: the_pure_part_is_pure,
        bad: &[
            &[("lib.rs", "mod plan;"), ("plan.rs", "async fn f() {}")],
            &[("lib.rs", "mod plan;"), ("plan.rs", "fn f() { x.await }")],
            &[("lib.rs", "mod plan;"), ("plan.rs", "use tokio::sync::Notify;")],
            &[("lib.rs", "mod plan;"), ("plan.rs", "use std::{fs, io::Read};")],
            &[("lib.rs", "mod plan;"), ("plan.rs", "fn f(a: std::net::IpAddr) {}")],
            &[("lib.rs", "mod plan;"), ("plan.rs", "use std as s;")],
            &[("lib.rs", "mod plan;"), ("plan/mod.rs", "mod a;"), ("plan/a.rs", "fn f() { std::thread::yield_now() }")],
        ],
        good: &[
            &[("lib.rs", "mod plan;"), ("plan.rs", "//! async, tokio, std::fs\nuse std::{fmt, sync::Arc};")],
            &[("lib.rs", "mod client;"), ("client.rs", "use tokio::sync::Notify; use std::net::IpAddr;")],
            &[
                ("lib.rs", "#[path = \"telemetry/exposition.rs\"] mod exposition;"),
                ("telemetry/exposition.rs", "use std::net::IpAddr;"),
            ],
        ],
    },
];

/// One line more than allowed.
const LONG: &str = {
    const BYTES: [u8; LINES_MAX + 1] = [b'\n'; LINES_MAX + 1];
    match std::str::from_utf8(&BYTES) {
        Ok(text) => text,
        Err(_) => "",
    }
};

#[test]
fn the_source_keeps_the_architecture() {
    let source = Source::new(&read_source());
    assert!(source.files.len() > 20, "src/ was read");
    let found: Vec<String> = RULES
        .iter()
        .flat_map(|checked| (checked.rule)(&source).into_iter().map(|line| format!("{}: {line}", checked.name)))
        .collect();
    assert!(found.is_empty(), "\n{}\n", found.join("\n"));
}

#[test]
fn each_rule_reports_what_it_must_and_nothing_else() {
    let source = |snippet: Snippet| {
        let texts: Vec<_> = snippet.iter().map(|(path, text)| (format!("src/{path}"), (*text).to_owned())).collect();
        Source::new(&texts)
    };
    for Checked { name, rule, bad, good } in RULES {
        assert!(!bad.is_empty() && !good.is_empty(), "{name}: has snippets");
        for snippet in *bad {
            assert!(!rule(&source(snippet)).is_empty(), "{name}: must report {snippet:?}");
        }
        for snippet in *good {
            assert_eq!(rule(&source(snippet)), Vec::<String>::new(), "{name}: must not report {snippet:?}");
        }
    }
}

#[test]
fn the_import_table_knows_each_module_and_points_one_way() {
    let declared: BTreeSet<String> = Source::new(&read_source()).top_modules().into_iter().collect();
    let listed: BTreeSet<String> = MAY_IMPORT.iter().map(|(module, ..)| (*module).to_owned()).collect();
    assert_eq!(declared, listed);
    let edges = MAY_IMPORT.iter().flat_map(|(module, groups, modules)| {
        groups.iter().chain(*modules).map(|to| ((*module).to_owned(), (*to).to_owned()))
    });
    assert_eq!(circle(&edges.collect()), None);
}

// === The rules ===

fn imports_follow_the_table(source: &Source) -> Vec<String> {
    let mut found = Vec::new();
    for (file, line, from, to) in crate_imports(source) {
        let Some(to) = to else {
            found.push(format!("{}: the crate's root is imported; name the module", file.at(line)));
            continue;
        };
        let may = MAY_IMPORT.iter().find(|(module, ..)| *module == from);
        if !may.is_some_and(|(_, groups, modules)| groups.contains(&to) || modules.contains(&to)) {
            found.push(format!("{}: {from} may not import {to}", file.at(line)));
        }
    }
    let known = |top: &str| MAY_IMPORT.iter().any(|(module, ..)| *module == top);
    found.extend(source.top_modules().iter().filter(|top| !known(top)).map(|top| format!("{top}: not in the table")));
    found
}

fn no_import_circles(source: &Source) -> Vec<String> {
    let edges =
        crate_imports(source).into_iter().filter_map(|(_, _, from, to)| Some((from.to_owned(), to?.to_owned())));
    circle(&edges.collect()).into_iter().collect()
}

fn no_glob_imports(source: &Source) -> Vec<String> {
    each_name(source, |_, name| {
        let glob = name.imported_as.as_deref() == Some("*") && name.path.last().is_some_and(|last| last != "prelude");
        glob.then(|| format!("{}::* hides what is imported", name.path.join("::")))
    })
}

fn features_in_lib_alone(source: &Source) -> Vec<String> {
    let elsewhere = source.files.iter().filter(|file| file.path != "src/lib.rs");
    elsewhere.flat_map(|file| in_cfg(file, "feature")).collect()
}

fn tests_in_tests(source: &Source) -> Vec<String> {
    let mut found: Vec<String> = source.files.iter().flat_map(|file| in_cfg(file, "test")).collect();
    for file in &source.files {
        for (n, token) in file.tokens.iter().enumerate().filter(|(_, token)| token.text == "[") {
            let attribute = n.checked_sub(1).is_some_and(|before| file.tokens[before].text == "#");
            let inside = group(&file.tokens, n);
            if attribute && inside.len() >= 3 && inside[inside.len() - 2].text == "test" {
                found.push(format!("{}: a test in src", file.at(token.line)));
            }
        }
    }
    found
}

fn no_grab_bags(source: &Source) -> Vec<String> {
    let mut found = Vec::new();
    for file in &source.files {
        let segments = file.path.trim_end_matches(".rs").split('/').map(|segment| (segment, 1));
        let inline = file.tokens.windows(2).filter(|pair| pair[0].text == "mod");
        let inline = inline.map(|pair| (pair[1].text.as_str(), pair[1].line));
        for (name, line) in segments.chain(inline).filter(|(name, _)| BANNED_NAMES.contains(name)) {
            found.push(format!("{}: a module called {name} says nothing", file.at(line)));
        }
    }
    found
}

fn modules_are_files(source: &Source) -> Vec<String> {
    let inline = |file: &File| {
        let hits = file.tokens.windows(3).filter(|three| three[0].text == "mod" && three[2].text == "{");
        hits.map(|three| format!("{}: mod {} in a file", file.at(three[0].line), three[1].text)).collect::<Vec<_>>()
    };
    source.files.iter().flat_map(inline).collect()
}

fn no_orphans(source: &Source) -> Vec<String> {
    let orphans = source.files.iter().filter(|file| file.module.is_none());
    orphans.map(|file| format!("{}: no mod leads here", file.path)).collect()
}

fn clock_reads_in_clock_alone(source: &Source) -> Vec<String> {
    each_name(source, |file, name| {
        if file.path == "src/clock.rs" {
            return None;
        }
        let path: Vec<&str> = name.path.iter().map(String::as_str).collect();
        let read = match path[..] {
            ["tokio", "time", "Instant", "now"] => !file.top().is_some_and(|top| TOKIO_CLOCK.contains(&top)),
            ["std" | "core", "time", "Instant" | "SystemTime" | "UNIX_EPOCH", ..]
            | ["quanta", ..]
            | [.., "Instant" | "SystemTime" | "Timestamp" | "Zoned", "now"] => true,
            _ => false,
        };
        read.then(|| format!("{} reads a clock; take `now`, or a Clock", path.join("::")))
    })
}

fn no_long_files(source: &Source) -> Vec<String> {
    let lines = |file: &File| file.text.lines().count();
    let long = source.files.iter().filter(|file| lines(file) > LINES_MAX);
    long.map(|file| format!("{}: {} lines, at most {LINES_MAX}", file.path, lines(file))).collect()
}

fn the_pure_part_is_pure(source: &Source) -> Vec<String> {
    let pure = |file: &File| file.top().is_some_and(|top| PURE.contains(&top));
    let mut found = each_name(source, |file, name| {
        let path: Vec<&str> = name.path.iter().map(String::as_str).collect();
        let impure = match path[..] {
            ["tokio", ..] | ["std", "net" | "fs" | "process" | "thread" | "env", ..] => true,
            // `use std` under any name would hide what follows.
            ["std"] => name.imported_as.is_some(),
            _ => false,
        };
        (pure(file) && impure).then(|| format!("{} in the pure part", path.join("::")))
    });
    for file in source.files.iter().filter(|file| pure(file)) {
        let words = file.tokens.iter().filter(|token| ["async", "await"].contains(&token.text.as_str()));
        found.extend(words.map(|token| format!("{}: {} in the pure part", file.at(token.line), token.text)));
    }
    found
}

// === What the rules share ===

/// What each file imports from other top-level modules: file, line, from, to; to is `None` for the root itself.
fn crate_imports(source: &Source) -> Vec<(&File, usize, &str, Option<&str>)> {
    let mut imports = Vec::new();
    for file in &source.files {
        let Some(from) = file.top() else { continue };
        for name in file.names.iter().filter(|name| name.path[0] == "crate") {
            let to = name.path.get(1).map(String::as_str);
            if to != Some(from) {
                imports.push((file, name.line, from, to));
            }
        }
    }
    imports
}

fn each_name(source: &Source, rule: impl Fn(&File, &source::Named) -> Option<String>) -> Vec<String> {
    let mut found = Vec::new();
    for file in &source.files {
        let hits = file.names.iter().filter_map(|name| Some(format!("{}: {}", file.at(name.line), rule(file, name)?)));
        found.extend(hits);
    }
    found
}

/// Where `cfg`, `cfg_attr` or `cfg!` asks for `what`.
fn in_cfg(file: &File, what: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (n, token) in file.tokens.iter().enumerate() {
        let open = n + 1 + usize::from(file.tokens.get(n + 1).is_some_and(|next| next.text == "!"));
        let asks = ["cfg", "cfg_attr"].contains(&token.text.as_str())
            && file.tokens.get(open).is_some_and(|next| next.text == "(")
            && group(&file.tokens, open).iter().any(|token| token.text == what);
        if asks {
            found.push(format!("{}: cfg({what}) does not belong here", file.at(token.line)));
        }
    }
    found
}

/// A circle in a graph, written `a → b → a`.
fn circle(edges: &BTreeSet<(String, String)>) -> Option<String> {
    let mut next: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (from, to) in edges {
        next.entry(from).or_default().push(to);
    }
    next.keys().find_map(|start| walk(start, &mut Vec::new(), &next))
}

/// Goes on from `at`; `way` is how it was reached.
fn walk<'a>(at: &'a str, way: &mut Vec<&'a str>, next: &BTreeMap<&str, Vec<&'a str>>) -> Option<String> {
    if let Some(start) = way.iter().position(|step| *step == at) {
        return Some(format!("{} → {at}", way[start..].join(" → ")));
    }
    way.push(at);
    let found = next.get(at).into_iter().flatten().find_map(|to| walk(to, way, next));
    way.pop();
    found
}

fn package() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All of `src/`: paths below the package, and text.
fn read_source() -> Vec<(String, String)> {
    fn walk(folder: PathBuf, files: &mut Vec<(String, String)>) {
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                walk(path, files);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(package()).expect("below the package").display().to_string();
                files.push((name, std::fs::read_to_string(&path).expect("text")));
            }
        }
    }
    let mut files = Vec::new();
    walk(package().join("src"), &mut files);
    files.sort();
    files
}

// === The thin client's dependencies ===

/// `cargo tree` for the thin client, on one fixed platform so that the answer is the same everywhere.
fn cargo_tree(extra: &[&str]) -> String {
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .current_dir(package())
        .args(["tree", "--no-default-features", "--features", "client", "-e", "normal", "--offline", "--locked"])
        .args(["--target", "x86_64-unknown-linux-gnu"])
        .args(extra)
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "cargo tree: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn the_thin_client_depends_on_what_the_golden_file_lists() {
    let tree = cargo_tree(&["--prefix", "none"]);
    let names: BTreeSet<&str> = tree.lines().filter_map(|line| line.split(' ').next()).collect();
    let list = names.iter().copied().collect::<Vec<_>>().join("\n") + "\n";
    let golden = package().join("tests/golden/client-deps.txt");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&golden, &list).expect("writes");
    }
    let expected = std::fs::read_to_string(&golden).expect("the golden file");
    let expected: BTreeSet<&str> = expected.lines().collect();
    let (more, less): (Vec<_>, Vec<_>) = (names.difference(&expected).collect(), expected.difference(&names).collect());
    assert!(more.is_empty() && less.is_empty(), "new: {more:?}; gone: {less:?}; if meant, run with UPDATE=1");
    for heavy in ["prometheus", "statrs", "clap", "toml"] {
        assert!(!names.contains(heavy), "{heavy} belongs to the controller or the command");
    }
}

/// axum is a server, and the client serves nothing: it comes with tonic's default features, which etcd-client
/// chooses. It must not come in by any other way.
#[test]
fn the_thin_client_has_axum_through_tonic_alone() {
    let tree = cargo_tree(&["--prefix", "depth", "--invert", "axum"]);
    let dependents: BTreeSet<&str> =
        tree.lines().filter_map(|line| line.strip_prefix('1')?.split(' ').next()).collect();
    assert_eq!(dependents, BTreeSet::from(["tonic"]));
}
