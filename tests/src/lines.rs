//! A market's state as a client adds it up.

use std::collections::BTreeMap;

use serde_json::value::RawValue;

/// Line name → that line's JSON text, byte for byte as it came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lines(BTreeMap<String, String>);

impl Lines {
    /// The lines of a snapshot's payload.
    #[must_use]
    pub fn of(payload: &str) -> Self {
        let mut lines = Self::default();
        lines.apply(payload);
        lines
    }

    /// Applies an update's payload: each line replaces the one of its name, `null` removes it.
    pub fn apply(&mut self, payload: &str) {
        let carried: BTreeMap<String, &RawValue> =
            serde_json::from_str(payload).unwrap_or_else(|error| panic!("payload {payload}: {error}"));
        for (name, line) in carried {
            match line.get() {
                "null" => self.0.remove(&name),
                text => self.0.insert(name, text.to_owned()),
            };
        }
    }

    /// The JSON text of one line.
    #[must_use]
    pub fn get(&self, line: &str) -> Option<&str> {
        self.0.get(line).map(String::as_str)
    }

    /// How many lines there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
