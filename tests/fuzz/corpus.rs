//! Runs the corpus of every fuzz target through its function, as a plain test.

#[path = "src/lib.rs"]
mod fuzz;

use std::{fs, path::Path};

/// Runs every file of a target's corpus, and names the file that fails.
fn replay(target: &str, check: fn(&[u8])) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut count = 0;
    for entry in fs::read_dir(&corpus).expect("the corpus is there") {
        let path = entry.expect("a file").path();
        let data = fs::read(&path).expect("it can be read");
        if let Err(panic) = std::panic::catch_unwind(|| check(&data)) {
            eprintln!("with {}", path.display());
            std::panic::resume_unwind(panic);
        }
        count += 1;
    }
    assert!(count > 0, "{} is empty", corpus.display());
}

#[test]
fn frames_are_read_alike_however_they_are_cut() {
    replay("frames", fuzz::frames);
}

#[test]
fn client_messages_are_answered_with_json() {
    replay("client_message", fuzz::client_message);
}

#[test]
fn overrides_that_are_accepted_keep_the_rules() {
    replay("override_body", fuzz::override_body);
}

#[test]
fn a_bad_line_of_a_feed_changes_nothing() {
    replay("replay_lines", fuzz::replay_lines);
}
