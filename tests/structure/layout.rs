//! Where code is: files that ARCHITECTURE.md names, files that are not too long, and crates that know only what is
//! below them.

use std::collections::BTreeSet;

use crate::{
    repo::{Package, Sources, extension},
    uses::Uses,
};

const MOST_LINES: usize = 400;
const MOST_TEST_LINES: usize = 100;

/// What a file says in its first lines to be allowed more than [`MOST_LINES`].
const STATE_MACHINE: &str = "state machine";

/// Each crate, the crates of the workspace that it may use, and others that it must not use.
const CRATES: [(&str, &[&str], &[&str]); 7] = [
    (
        "protocol",
        &[],
        &[
            "axum",
            "clap",
            "deadpool-redis",
            "futures-util",
            "hyper",
            "mio",
            "redis",
            "reqwest",
            "sqlx",
            "tokio",
            "tracing",
        ],
    ),
    ("backbone", &["protocol"], &["axum", "clap", "hyper", "jsonwebtoken", "mio", "sqlx"]),
    (
        "service",
        &["backbone", "protocol"],
        &["clap", "deadpool-redis", "indicatif", "mio", "redis", "sqlx", "tokio-tungstenite"],
    ),
    ("commands", &["backbone", "protocol", "service"], &["mio", "sqlx"]),
    (
        "publisher",
        &["backbone", "commands", "protocol", "service"],
        &["clap", "deadpool-redis", "indicatif", "mio", "redis", "tokio-tungstenite"],
    ),
    (
        "gateway",
        &["backbone", "commands", "protocol", "publisher", "service"],
        &["clap", "deadpool-redis", "indicatif", "redis", "sqlx", "tokio-tungstenite"],
    ),
    ("tests", &["backbone", "commands", "protocol", "service"], &[]),
];

/// Files of the first directory may use files of the second only in the file named third.
const ONLY_IN: [(&str, &str, &str); 3] = [
    ("gateway/", "shared/commands/", "gateway/src/main.rs"),
    ("publisher/", "shared/commands/", "publisher/src/main.rs"),
    ("gateway/", "publisher/", "gateway/src/standalone.rs"),
];

/// Describes each dependency that the rules above do not allow.
pub fn crates(packages: &[Package], uses: &Uses) -> Vec<String> {
    let mut problems = Vec::new();
    for package in packages {
        let Some((_, allowed, forbidden)) = CRATES.iter().find(|(name, ..)| *name == package.name) else {
            problems.push(format!("{} has no row in CRATES", package.name));
            continue;
        };
        for used in &package.dependencies {
            let is_member = packages.iter().any(|member| member.name == *used);
            if is_member && !allowed.contains(&used.as_str()) || forbidden.contains(&used.as_str()) {
                problems.push(format!("{} must not depend on {used}", package.name));
            }
        }
    }
    for ((from, to), names) in &uses.names {
        for (users, used, file) in ONLY_IN {
            if from.starts_with(users) && to.starts_with(used) && from != file {
                problems.push(format!("{from} uses {names:?} of {to}: only {file} may"));
            }
        }
    }
    problems
}

/// Describes each source file that ARCHITECTURE.md does not name, and each name there that is not a full path.
pub fn names(architecture: &str, sources: &Sources) -> Vec<String> {
    let mut named = BTreeSet::new();
    let mut problems = Vec::new();
    for line in architecture.lines() {
        for name in line.split('`').skip(1).step_by(2) {
            if is_source(name) && !name.contains(' ') && !sources.contains_key(name) {
                problems.push(format!("`{name}` is not the full path of a file"));
            }
            // A directory counts where a table describes it.
            if !name.ends_with('/') || line.starts_with('|') {
                named.insert(name);
            }
        }
    }
    for file in sources.keys().filter(|file| is_source(file) && !is_test(file)) {
        let directory = &file[..=file.rfind('/').unwrap_or_default()];
        if !named.contains(file.as_str()) && !named.contains(directory) {
            problems.push(format!("{file} is not named"));
        }
    }
    problems
}

/// Describes each file that is too long or has a name that is not ours.
pub fn sizes(sources: &Sources) -> Vec<String> {
    let mut problems = Vec::new();
    for (file, text) in sources.iter().filter(|(file, _)| is_source(file) && !is_test(file)) {
        let (code, tests) = text.split_once("#[cfg(test)]\nmod tests").unwrap_or((text, ""));
        let [code_lines, test_lines] =
            [code, tests].map(|text| text.lines().filter(|line| !line.trim().is_empty()).count());
        let mut head = code.lines().take_while(|line| line.trim_start().starts_with(['/', '*']));
        if code_lines > MOST_LINES && !head.any(|line| line.contains(STATE_MACHINE)) {
            problems.push(format!("{file} has {code_lines} lines before its tests, more than {MOST_LINES}"));
        }
        if test_lines > MOST_TEST_LINES {
            problems.push(format!("{file} has {test_lines} lines of tests: a file tests.rs of their own"));
        }
        if file.ends_with("/mod.rs") {
            problems.push(format!("{file} is named mod.rs instead of after its module"));
        }
    }
    problems
}

fn is_source(file: &str) -> bool {
    ["rs", "js", "lua"].contains(&extension(file))
}

fn is_test(file: &str) -> bool {
    let in_tests = file.starts_with("tests/") && !file.starts_with("tests/src/");
    in_tests
        || file.ends_with("/tests.rs")
        || file.contains("/test/")
        || file.contains("/tests/")
        || file.ends_with(".test.js")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sources(files: &[(&str, String)]) -> Sources {
        files.iter().map(|(file, text)| ((*file).to_owned(), text.clone())).collect()
    }

    fn package(name: &str, dependencies: &[&str]) -> Package {
        let dependencies = dependencies.iter().map(|&name| name.to_owned()).collect();
        Package { name: name.to_owned(), targets: Vec::new(), dependencies }
    }

    #[test]
    fn crates_use_what_their_row_allows() {
        let packages = [
            package("protocol", &["serde", "tokio"]),
            package("backbone", &["protocol", "service"]),
            package("service", &["protocol"]),
            package("other", &[]),
        ];
        let edge = |from: &str, to: &str| ((from.to_owned(), to.to_owned()), BTreeSet::new());
        let names = [
            edge("gateway/src/main.rs", "shared/commands/src/lib.rs"),
            edge("gateway/src/http.rs", "shared/commands/src/lib.rs"),
        ];
        let uses = Uses { names: names.into(), ..Uses::default() };
        assert_eq!(
            crates(&packages, &uses),
            [
                "protocol must not depend on tokio",
                "backbone must not depend on service",
                "other has no row in CRATES",
                "gateway/src/http.rs uses {} of shared/commands/src/lib.rs: only gateway/src/main.rs may",
            ]
        );
    }

    #[test]
    fn every_file_is_named_by_its_full_path() {
        let files =
            ["gateway/src/log.rs", "gateway/src/http.rs", "gateway/src/tests.rs", "gateway/board/a.js"];
        let sources = sources(&files.map(|file| (file, String::new())));
        let text = "`gateway/src/` has `log.rs`.\n| `gateway/board/` | `gateway/src/log.rs` | `/livez` |";
        assert_eq!(
            names(text, &sources),
            ["`log.rs` is not the full path of a file", "gateway/src/http.rs is not named"]
        );
    }

    #[test]
    fn long_files_are_found() {
        let many = "a\n\n".repeat(401);
        let files = [
            ("a/long.rs", many.clone()),
            ("a/one.rs", format!("//! A state machine.\n{many}")),
            ("a/tested.rs", format!("a\n#[cfg(test)]\nmod tests {{\n{many}")),
            ("a/tests.rs", many),
            ("a/mod.rs", "a".to_owned()),
        ];
        let problems = sizes(&sources(&files));
        let found: Vec<_> = problems.iter().filter_map(|problem| problem.split(' ').next()).collect();
        assert_eq!(found, ["a/long.rs", "a/mod.rs", "a/tested.rs"]);
    }
}
