//! How the repository is laid out and written: no circles of files, references that lead somewhere, plain words,
//! every file named in ARCHITECTURE.md and none too long, and crates that know only what is below them.
//!
//! Each failure lists all places. Nothing here starts a service.

mod circles;
mod layout;
mod references;
mod repo;
mod uses;
mod words;

use std::sync::LazyLock;

use repo::{Package, Sources};
use uses::Uses;

/// What the paths have of files that others wrote or a tool makes, and of these checks, whose tests have what they look
/// for.
const NOT_OURS: [&str; 6] =
    ["Cargo.lock", "LICENSE", "package-lock.json", ".ndjson", "tests/fuzz/corpus/", "tests/structure/"];
/// In a sentence of ARCHITECTURE.md.
const MOST_WORDS: usize = 30;

static SOURCES: LazyLock<Sources> = LazyLock::new(repo::sources);
static PACKAGES: LazyLock<Vec<Package>> = LazyLock::new(repo::packages);
static USES: LazyLock<Uses> =
    LazyLock::new(|| uses::uses(PACKAGES.iter().flat_map(|package| &package.targets), &SOURCES));

fn assert_none(problems: impl IntoIterator<Item = String>) {
    let problems: Vec<_> = problems.into_iter().collect();
    assert!(problems.is_empty(), "{} problems:\n{}", problems.len(), problems.join("\n"));
}

fn ours() -> impl Iterator<Item = (&'static str, &'static str)> {
    let files = SOURCES.iter().map(|(file, text)| (file.as_str(), text.as_str()));
    files.filter(|(file, _)| !NOT_OURS.iter().any(|not_ours| file.contains(not_ours)))
}

#[test]
fn no_units_of_files_form_a_circle() {
    assert_none(circles::between_units(&USES));
}

#[test]
fn no_files_of_a_unit_form_a_circle() {
    println!("A parent and a private child may:\n{}", circles::with_parents(&USES).join("\n"));
    assert_none(circles::inside_units(&USES));
}

#[test]
fn every_reference_leads_somewhere() {
    assert_none(ours().flat_map(|(file, text)| references::dead(file, text, &SOURCES)));
}

#[test]
fn no_forbidden_phrase_is_left() {
    let english = ours().filter(|(file, _)| !file.ends_with(".zh-CN.md"));
    assert_none(english.flat_map(|(file, text)| words::forbidden(file, text)));
}

#[test]
fn no_sentence_of_the_architecture_is_too_long() {
    assert_none(words::long_sentences("ARCHITECTURE.md", &SOURCES["ARCHITECTURE.md"], MOST_WORDS));
}

#[test]
fn the_architecture_names_every_file_by_its_full_path() {
    assert_none(layout::names(&SOURCES["ARCHITECTURE.md"], &SOURCES));
}

#[test]
fn no_file_is_too_long() {
    assert_none(layout::sizes(&SOURCES));
}

#[test]
fn crates_use_only_what_they_may() {
    assert_none(layout::crates(&PACKAGES, &USES));
}
