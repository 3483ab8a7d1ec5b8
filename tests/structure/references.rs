//! Whether references lead somewhere: links and anchors in Markdown, and paths and RFCs that any file names.

use std::collections::{BTreeMap, BTreeSet};

use crate::repo::{Sources, extension};

/// What begins the paths that a build or a command makes, or that are of a reader's own project.
const ELSEWHERE: [&str; 8] = [
    "app.js",
    "docker/secrets",
    "docker/tls",
    "gateway/gateway_bin.cdx.json",
    "k8s/overlays/dev/secrets",
    "publisher/publisher_bin.cdx.json",
    "sdk/miniprogram_dist",
    "tests/fuzz/artifacts",
];

/// Describes each reference in `text` that leads nowhere.
pub fn dead(file: &str, text: &str, sources: &Sources) -> Vec<String> {
    let mut problems = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let mut dead = |what: &str| problems.push(format!("{file}:{}: {what}", number + 1));
        if extension(file) == "md" {
            for target in line.split("](").skip(1).filter_map(|rest| rest.split([')', ' ']).next()) {
                if !target.contains(':') && !is_beside(file, target, sources) {
                    dead(target);
                }
            }
        }
        for (path, is_quoted) in paths(line) {
            let is_elsewhere = ELSEWHERE.iter().any(|elsewhere| path.starts_with(elsewhere));
            let is_end = || sources.keys().any(|file| file.ends_with(&format!("/{path}")));
            let is_alive =
                || is_there(path, sources) || is_beside(file, path, sources) || is_quoted && is_end();
            if is_reference(path, is_quoted, sources) && !is_elsewhere && !is_alive() {
                dead(path);
            }
        }
        for rest in line.split("RFC ").skip(1) {
            let rest = rest.trim_start_matches(|c: char| c.is_ascii_digit());
            let behind = rest.strip_prefix(", ").unwrap_or_default();
            if rest.starts_with(" §") || behind.starts_with("section") || behind.starts_with(char::is_numeric)
            {
                dead("write \"RFC N section N.N\"");
            }
        }
    }
    problems.dedup();
    problems
}

/// Returns what looks like a path in a line, and whether it stands alone in backticks.
fn paths(line: &str) -> impl Iterator<Item = (&str, bool)> {
    // Patterns and variables are no paths: what makes them joins a word.
    let joins = |c: char| c.is_ascii_alphanumeric() || "._/-#*{}$<>@%+=~\\".contains(c);
    line.split(move |c| !joins(c)).map(|word| {
        let path = word.trim_end_matches(['.', '#', '/']);
        let start = word.as_ptr() as usize - line.as_ptr() as usize;
        let around = (line[..start].ends_with('`'), line[start + word.len()..].starts_with('`'));
        (path, around == (true, true))
    })
}

/// Whether a word means a file of the repository: a Markdown file; a file below a directory at the root; in backticks
/// also a directory there, or code by the end of its path.
fn is_reference(path: &str, is_quoted: bool, sources: &Sources) -> bool {
    let (path, _) = path.split_once('#').unwrap_or((path, ""));
    let is_plain =
        path.chars().all(|c| c.is_ascii_alphanumeric() || "._/-".contains(c)) && !path.starts_with('/');
    let is_placeholder = path.split('/').any(|name| name.chars().all(|c| c.is_ascii_uppercase()));
    let is_below_root = path.split_once('/').is_some_and(|(first, _)| is_directory(first, sources));
    let is_file = path.rsplit('/').next().is_some_and(|name| name.trim_start_matches('.').contains('.'));
    let (is_page, is_code) = (extension(path) == "md", ["rs", "js", "lua", "py"].contains(&extension(path)));
    is_plain
        && !is_placeholder
        && (is_page || is_below_root && (is_quoted || is_file) || is_quoted && is_code)
}

/// Whether a reference leads somewhere from the directory of the file that has it, as links do.
fn is_beside(file: &str, reference: &str, sources: &Sources) -> bool {
    let mut names: Vec<&str> = file.split('/').collect();
    if !reference.starts_with('#') {
        names.pop();
    }
    for name in reference.trim_end_matches('/').split('/') {
        match name {
            "." => {}
            ".." => drop(names.pop()),
            _ => names.push(name),
        }
    }
    is_there(&names.join("/").replace("/#", "#"), sources)
}

/// Whether a file or a directory is there, and has the anchor if one is given.
fn is_there(reference: &str, sources: &Sources) -> bool {
    let (path, anchor) = reference.split_once('#').unwrap_or((reference, ""));
    let has_anchor = |text: &String| anchor.is_empty() || anchors(text).contains(anchor);
    sources.get(path).map_or_else(|| anchor.is_empty() && is_directory(path, sources), has_anchor)
}

fn is_directory(path: &str, sources: &Sources) -> bool {
    let inside = format!("{path}/");
    sources.range(inside.clone()..).next().is_some_and(|(file, _)| file.starts_with(&inside))
}

/// Returns the anchors of a Markdown file as GitHub makes them from its headings, and those written as `id="…"`.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut times = BTreeMap::new();
    let mut anchors = BTreeSet::new();
    let mut is_code = false;
    for line in text.lines() {
        is_code ^= line.trim_start().starts_with("```");
        anchors
            .extend(line.split("id=\"").skip(1).filter_map(|rest| rest.split('"').next()).map(str::to_owned));
        let heading = line.trim_start_matches('#');
        if is_code || heading.len() == line.len() || !heading.starts_with(' ') {
            continue;
        }
        let kept = heading.trim().chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        let anchor = kept.collect::<String>().to_lowercase().replace(' ', "-");
        let before = times.entry(anchor.clone()).or_insert(0);
        anchors.insert(if *before == 0 { anchor } else { format!("{anchor}-{before}") });
        *before += 1;
    }
    anchors
}

#[test]
fn dead_references_are_found() {
    let sources = [
        (
            "docs/protocol.md",
            "# Close codes, `4429`\n## Ack\n## Ack\n```\n# no heading\n```\n<a id=\"own\"></a>",
        ),
        ("gateway/src/log.rs", ""),
        ("README.md", ""),
    ];
    let sources = sources.map(|(file, text)| (file.to_owned(), text.to_owned())).into();
    for alive in [
        "see docs/protocol.md#close-codes-4429.",
        "docs/protocol.md#ack, docs/protocol.md#ack-1, docs/protocol.md#own: README.md",
        "`gateway/src/log.rs` `gateway/src/` gateway/DIR/log.rs gateway/src/*.rs ./gateway/a.js https://x.org/docs/other.md",
        "`log.rs` `src/log.rs` ring.rs",
        "[here](protocol.md#ack) [there](../README.md) [web](https://x.org) gateway/nothing",
        "RFC 6455 section 5.5.1, RFC 6455, and RFC 4180.",
    ] {
        assert_eq!(dead("docs/page.md", alive, &sources), Vec::<String>::new());
    }
    for gone in [
        "docs/protocol.md#close-codes",
        "docs/protocol.md#no-heading",
        "docs/protocol.md#ack-2",
        "docs/other.md",
        "ARCHITECTURE.md",
        "gateway/src/ring.rs",
        "`gateway/other`",
        "`ring.rs`",
        "[here](README.md)",
        "[here](#ack)",
        "RFC 6455, section 5.2",
        "RFC 6455, 5.2",
    ] {
        assert_eq!(dead("docs/page.md", gone, &sources).len(), 1, "{gone}");
    }
}
