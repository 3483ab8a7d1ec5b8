//! Words that must not come back, and sentences that are too long.

/// Phrases that no source and no English document has, in any case and across the ends of lines.
const FORBIDDEN: [&str; 6] =
    ["contract, section", "contract, sections", "rung", "for ever", "be it nothing", "of whose messages"];

/// A public name that has one of them: a metric's name is stable.
const EXEMPT: &str = "gateway_tail_rung_total";

/// What begins a line of a comment, a quotation or an item of a list.
const LEADERS: [&str; 10] = ["//!", "///", "//", "#", "--", "/**", "/*", "*", ">", "<!--"];

/// Describes each forbidden phrase in a file.
pub fn forbidden(file: &str, text: &str) -> Vec<String> {
    let mut flow = String::new();
    let mut starts = Vec::new();
    for line in text.lines() {
        starts.push(flow.len());
        let line = line.trim();
        let line = LEADERS.iter().find_map(|leader| line.strip_prefix(leader)).unwrap_or(line);
        flow.extend([line.trim(), " "]);
    }
    let lower = flow.to_ascii_lowercase().replace(EXEMPT, &" ".repeat(EXEMPT.len()));
    let found = FORBIDDEN.iter().flat_map(|phrase| lower.match_indices(phrase)).filter(|&(at, phrase)| {
        // A word may be a part of a name: `is_rung`, `RungMarket`, `isRung`.
        let (before, after) = (flow[..at].chars().next_back(), flow[at + phrase.len()..].chars().next());
        let is_capital = flow[at..].starts_with(char::is_uppercase);
        let begins =
            !before.is_some_and(char::is_alphabetic) || is_capital && before.is_some_and(char::is_lowercase);
        begins && !after.is_some_and(char::is_lowercase)
    });
    let describe =
        |(at, phrase)| format!("{file}:{}: \"{phrase}\"", starts.partition_point(|&start| start <= at));
    found.map(describe).collect()
}

/// Describes each sentence of a Markdown file that has more than `most` words.
///
/// A sentence ends at a full stop, a colon, a semicolon, a question or an exclamation mark, and where its paragraph,
/// its item of a list or its table cell ends. Headings and code blocks do not count.
pub fn long_sentences(file: &str, text: &str, most: usize) -> Vec<String> {
    let mut sentences: Vec<(usize, Vec<&str>)> = vec![(0, Vec::new())];
    let mut is_code = false;
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        is_code ^= line.starts_with("```");
        let is_row = line.starts_with('|');
        let is_numbered = line.trim_start_matches(|c: char| c.is_ascii_digit()).starts_with(". ");
        let starts = |start: &&str| line.starts_with(*start);
        if line.is_empty() || is_numbered || ["|", "- ", "* ", "#", "```"].iter().any(starts) {
            sentences.push((number, Vec::new()));
        }
        if is_code || line.starts_with('#') || line.starts_with("```") {
            continue;
        }
        for word in line.split(' ') {
            let last = sentences.last_mut().expect("the first is there");
            if last.1.is_empty() {
                last.0 = number;
            }
            if word.contains(char::is_alphanumeric) {
                last.1.push(word);
            }
            let is_end =
                word.trim_end_matches([')', '"', '*', '_', '”']).ends_with(['.', ':', ';', '?', '!']);
            if is_end || is_row && word == "|" {
                sentences.push((number, Vec::new()));
            }
        }
    }
    let long = sentences.into_iter().filter(|(_, words)| words.len() > most);
    long.map(|(number, words)| format!("{file}:{number}: {} words: {}", words.len(), words.join(" ")))
        .collect()
}

#[test]
fn forbidden_phrases_are_found_in_names_and_across_lines() {
    for text in [
        "It has Rung.",
        "is_rung()",
        "struct RungMarket;",
        "isRung",
        "/// kept for\n    /// ever",
        "# (contract, section 3)",
        "(contract,\n// sections 3 and 4)",
    ] {
        assert_eq!(forbidden("a.rs", text).len(), 1, "{text}");
    }
    assert_eq!(forbidden("a.rs", "one\ntwo, for\never"), ["a.rs:2: \"for ever\""]);
    for text in ["It was wrung.", "the rungs of a ladder", "for every market", "PRUNG"] {
        assert!(forbidden("a.rs", text).is_empty(), "{text}");
    }
}

#[test]
fn long_sentences_are_found_where_they_begin() {
    let text = "# A heading of many words that nobody counts\n\nOne two three. Four\nfive six seven (eight).\n\n\
        | a b c | d e f |\n- a b c\n- d e f\n\n```sh\na b c d e f g\n```\none two: three four; five — six: `a.b` c";
    assert_eq!(long_sentences("a.md", text, 3), ["a.md:3: 5 words: Four five six seven (eight)."]);
}
