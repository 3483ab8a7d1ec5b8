//! What a run prints: sections of rows of figures, and the verdict. As a table, or as one JSON object.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Write as _};

use serde::{Serialize, Serializer};

use super::figure::{Figure, Labelled};
use super::{times::Times, usage::Used};

/// The result of a run, in the order in which it is printed.
#[derive(Default, Serialize)]
pub(crate) struct Report {
    sections: Vec<Section>,
    bounds: Vec<Bound>,
    #[serde(skip)]
    failures: Vec<String>,
}

#[derive(Serialize)]
struct Section {
    title: String,
    rows: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    name: String,
    #[serde(serialize_with = "as_map")]
    figures: Vec<Labelled>,
    /// Only JSON has it.
    #[serde(skip)]
    is_detail: bool,
}

impl Report {
    pub(crate) fn titled(title: String) -> Self {
        let mut report = Self::default();
        report.section(title);
        report
    }

    pub(crate) fn section(&mut self, title: impl Into<String>) {
        self.sections.push(Section { title: title.into(), rows: Vec::new() });
    }

    /// Adds a row of labelled figures to the last section.
    pub(crate) fn row(&mut self, name: impl Into<String>, figures: impl Into<Vec<Labelled>>) {
        self.add(name.into(), figures.into(), false);
    }

    /// Like [`Self::row`], but for JSON only.
    pub(crate) fn detail(&mut self, name: impl Into<String>, figures: impl Into<Vec<Labelled>>) {
        self.add(name.into(), figures.into(), true);
    }

    fn add(&mut self, name: String, figures: Vec<Labelled>, is_detail: bool) {
        let section = self.sections.last_mut().expect("a report begins with a section");
        section.rows.push(Row { name, figures, is_detail });
    }

    pub(crate) fn times(&mut self, name: &str, times: &Times) {
        self.row(name, times.figures());
    }

    /// Adds a row of counts by kind, unless there are none.
    pub(crate) fn counts(&mut self, name: &str, counts: &BTreeMap<String, u64>) {
        if !counts.is_empty() {
            self.row(name, [("", Figure::Counts(counts.clone()))]);
        }
    }

    /// Adds a row for each process.
    pub(crate) fn processes(&mut self, used: &[Used]) {
        for used in used {
            self.row(used.role, used.figures());
        }
        if used.is_empty() {
            let why = "no process of this machine, or ended; --gateway-pid shows CPU and memory";
            self.row("server", [("", why.into())]);
        }
    }

    /// Adds bounds, which are failures unless they hold.
    pub(crate) fn bounds(&mut self, bounds: impl IntoIterator<Item = Bound>) {
        self.bounds.extend(bounds);
    }

    pub(crate) fn fail(&mut self, failures: impl IntoIterator<Item = String>) {
        self.failures.extend(failures);
    }

    pub(crate) fn fail_if(&mut self, failed: bool, failure: impl Display) {
        self.fail(failed.then(|| failure.to_string()));
    }

    /// Every check that did not hold, in words; none means success.
    pub(crate) fn failures(&self) -> Vec<String> {
        self.failures.iter().cloned().chain(self.bounds.iter().filter_map(Bound::failure)).collect()
    }

    /// The report as one JSON object, with `ok` and `failures` added.
    pub(crate) fn json(&self) -> String {
        #[derive(Serialize)]
        struct Whole<'a> {
            ok: bool,
            failures: Vec<String>,
            #[serde(flatten)]
            report: &'a Report,
        }
        let failures = self.failures();
        let whole = Whole { ok: failures.is_empty(), failures, report: self };
        serde_json::to_string(&whole).expect("plain fields have a JSON form")
    }
}

impl Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let row = |f: &mut fmt::Formatter<'_>, name: &str, text: &str| {
            write!(f, "\n  {name:<22} {}", text.trim_end())
        };
        for (index, Section { title, rows }) in self.sections.iter().enumerate() {
            write!(f, "{}{title}", if index == 0 { "" } else { "\n\n" })?;
            for Row { name, figures, .. } in rows.iter().filter(|row| !row.is_detail) {
                let mut text = String::new();
                for (label, figure) in figures {
                    let space = if label.is_empty() { "" } else { " " };
                    write!(text, "{label}{space}{:<9} ", figure.to_string())?;
                }
                row(f, name, &text)?;
            }
        }
        if !self.bounds.is_empty() {
            f.write_str("\n\nbounds")?;
        }
        for bound in &self.bounds {
            row(f, if bound.holds() { "holds" } else { "DOES NOT HOLD" }, &bound.to_string())?;
        }
        let failures = self.failures();
        if failures.is_empty() {
            f.write_str("\n\nOK: all checks hold")?;
        }
        failures.iter().try_for_each(|failure| write!(f, "\n\nFAILED: {failure}"))
    }
}

fn as_map<S: Serializer>(figures: &[Labelled], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(figures.iter().map(|(label, figure)| (*label, figure)))
}

#[derive(Debug, Serialize)]
pub(crate) struct Bound {
    what: String,
    is: f64,
    #[serde(flatten)]
    limit: Limit,
}

#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
enum Limit {
    AtMost(f64),
    AtLeast(f64),
}

impl Bound {
    pub(crate) fn at_most(what: impl Into<String>, is: f64, at_most: f64) -> Self {
        Self { what: what.into(), is, limit: Limit::AtMost(at_most) }
    }

    pub(crate) fn at_least(what: impl Into<String>, is: f64, at_least: f64) -> Self {
        Self { what: what.into(), is, limit: Limit::AtLeast(at_least) }
    }

    /// The bound in words, if it does not hold.
    pub(crate) fn failure(&self) -> Option<String> {
        (!self.holds()).then(|| self.to_string())
    }

    fn holds(&self) -> bool {
        match self.limit {
            Limit::AtMost(most) => self.is <= most,
            Limit::AtLeast(least) => self.is >= least,
        }
    }
}

impl Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (word, limit) = match self.limit {
            Limit::AtMost(most) => ("most", most),
            Limit::AtLeast(least) => ("least", least),
        };
        write!(f, "{}: {:.2}, at {word} {limit:.2}", self.what, self.is)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_that_does_not_hold_says_so() {
        assert!(Bound::at_most("x", 2.5, 2.5).failure().is_none());
        assert_eq!(Bound::at_most("x", 2.51, 2.5).failure().as_deref(), Some("x: 2.51, at most 2.50"));
        assert!(Bound::at_most("not measured", f64::NAN, 1.0).failure().is_some());
        assert!(Bound::at_least("x", 0.95, 0.95).failure().is_none());
        assert_eq!(Bound::at_least("x", 0.9, 0.95).failure().as_deref(), Some("x: 0.90, at least 0.95"));
        assert!(Bound::at_least("not measured", f64::NAN, 1.0).failure().is_some());
    }

    #[test]
    fn json_has_bare_numbers_and_says_whether_it_is_ok() {
        let mut report = Report::titled("one".into());
        report.row("a", [("", 1_u64.into()), ("took", Figure::Time(1500))]);
        report.detail("b", [("share", Figure::Share(0.5))]);
        assert_eq!(
            report.to_string(),
            format!("one\n  a{}1         took 1.50 ms\n\nOK: all checks hold", " ".repeat(22))
        );
        report.fail_if(true, "x");
        assert_eq!(
            report.json(),
            r#"{"ok":false,"failures":["x"],"sections":[{"title":"one","rows":[{"name":"a","figures":{"":1,"took":1500}},{"name":"b","figures":{"share":0.5}}]}],"bounds":[]}"#
        );
        assert!(report.to_string().ends_with("\n\nFAILED: x"));
    }
}
