//! Circles of files.
//!
//! A file together with the children that it declares privately, as `mod child;`, is one unit: nothing outside can
//! name such a child but by what its parent re-exports, and a child is written against its parent's items
//! (`impl Shard` in several files, handlers of the router above them). So a child may use its parents, and they use
//! it. What is not allowed: a circle of units, and a circle inside a unit in which no step goes up. The root of a crate
//! is no such parent, or a whole binary would be one unit; and a child declared `pub` or `pub(crate)` is a unit of its
//! own.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::uses::{Names, Uses};

/// Which files or units a file or a unit uses, with the reasons.
type Graph<'a> = BTreeMap<&'a str, BTreeMap<&'a str, Vec<String>>>;

/// Describes each circle of units.
pub fn between_units(uses: &Uses) -> Vec<String> {
    let mut graph = Graph::new();
    for ((from, to), names) in &uses.names {
        if unit(uses, from) != unit(uses, to) {
            let reason = format!("{from} uses {to}: {}", few(names));
            graph.entry(unit(uses, from)).or_default().entry(unit(uses, to)).or_default().push(reason);
        }
    }
    circles(&graph)
}

/// Describes each circle inside a unit that does not go through a child's use of its parents.
pub fn inside_units(uses: &Uses) -> Vec<String> {
    let mut graph = Graph::new();
    for ((from, to), names) in &uses.names {
        if unit(uses, from) == unit(uses, to) && !parents(uses, from).any(|parent| parent == to) {
            let reason = format!("{from} uses {to}: {}", few(names));
            graph.entry(from).or_default().insert(to, vec![reason]);
        }
    }
    circles(&graph)
}

/// Describes what is allowed: a parent and a private child that use each other.
pub fn with_parents(uses: &Uses) -> Vec<String> {
    let edge = |from: &String, to: &String| uses.names.get(&(from.clone(), to.clone()));
    let both = |(child, parent)| Some((child, parent, edge(parent, child)?, edge(child, parent)?));
    let describe = |(child, parent, down, up)| format!("{parent} <-> {child}: {} <-> {}", few(up), few(down));
    uses.parents.iter().filter_map(both).map(describe).collect()
}

fn parents<'a>(uses: &'a Uses, file: &str) -> impl Iterator<Item = &'a String> {
    std::iter::successors(uses.parents.get(file), |parent| uses.parents.get(*parent))
}

fn unit<'a>(uses: &'a Uses, file: &'a str) -> &'a str {
    parents(uses, file).last().map_or(file, String::as_str)
}

/// Describes, for each edge that is part of a circle, the shortest circle that it is part of.
fn circles(graph: &Graph) -> Vec<String> {
    let mut found = BTreeSet::new();
    for (&from, uses) in graph {
        for mut circle in uses.keys().filter_map(|to| shortest(graph, to, from)) {
            let first = (0..circle.len()).min_by_key(|&at| circle[at]).unwrap_or_default();
            circle.rotate_left(first);
            found.insert((circle.len(), circle));
        }
    }
    let describe = |(_, mut circle): (usize, Vec<&str>)| {
        circle.push(circle[0]);
        let reasons = circle.windows(2).flat_map(|step| &graph[step[0]][step[1]]);
        reasons.fold(circle.join(" -> "), |text, reason| text + "\n    " + reason)
    };
    found.into_iter().map(describe).collect()
}

fn shortest<'a>(graph: &Graph<'a>, from: &'a str, to: &str) -> Option<Vec<&'a str>> {
    let mut paths = VecDeque::from([vec![from]]);
    let mut seen = BTreeSet::new();
    while let Some(path) = paths.pop_front() {
        let last = path[path.len() - 1];
        if last == to {
            return Some(path);
        }
        let further = graph.get(last).into_iter().flat_map(BTreeMap::keys);
        paths.extend(
            further.filter(|further| seen.insert(**further)).map(|further| [&path[..], &[*further]].concat()),
        );
    }
    None
}

fn few(names: &Names) -> String {
    let more = if names.len() > 6 { ", …" } else { "" };
    names.iter().take(6).map(String::as_str).collect::<Vec<_>>().join(", ") + more
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The files are named by letters; `ab` is a private child of `a`.
    fn uses(edges: &[&str]) -> Uses {
        let mut uses = Uses::default();
        for edge in edges {
            let (from, to) = edge.split_once(' ').expect("two files");
            uses.names.insert((from.to_owned(), to.to_owned()), Names::from([to.to_uppercase()]));
            let files = [from, to].into_iter().filter(|file| file.len() > 1);
            uses.parents.extend(files.map(|file| (file.to_owned(), file[..file.len() - 1].to_owned())));
        }
        uses
    }

    /// The first line of each circle: those of units, then those inside units.
    fn found(edges: &[&str]) -> Vec<String> {
        let uses = uses(edges);
        let circles = [between_units(&uses), inside_units(&uses)].concat();
        circles.iter().filter_map(|circle| circle.lines().next()).map(str::to_owned).collect()
    }

    #[test]
    fn circles_are_found_once_with_their_reasons() {
        assert_eq!(found(&["a b", "b c", "a c", "c d"]), Vec::<String>::new());
        assert_eq!(found(&["c a", "a b", "b c", "b d", "d b"]), ["b -> d -> b", "a -> b -> c -> a"]);
        assert_eq!(between_units(&uses(&["a b", "b a"])), ["a -> b -> a\n    a uses b: B\n    b uses a: A"]);
    }

    #[test]
    fn a_private_child_may_use_its_parents_but_not_its_siblings_in_a_circle() {
        assert_eq!(found(&["a ab", "ab a", "ab abc", "abc a"]), Vec::<String>::new());
        assert_eq!(with_parents(&uses(&["a ab", "ab a"])), ["a <-> ab: A <-> AB"]);
        assert_eq!(found(&["ab ac", "ac ab"]), ["ab -> ac -> ab"]);
        assert_eq!(found(&["ab c", "c a"]), ["a -> c -> a"]);
    }
}
