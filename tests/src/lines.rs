//! A market's state, as a client adds it up from updates.

use std::collections::BTreeMap;

use serde_json::value::RawValue;

/// Each line's name and its JSON text, byte for byte as received.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lines(BTreeMap<String, String>);

impl Lines {
    /// Returns the lines of a snapshot's payload.
    #[must_use]
    pub fn of(payload: &str) -> Self {
        let mut lines = Self::default();
        lines.apply(payload);
        lines
    }

    /// Applies an update's payload: each line replaces the line of the same name, and `null` removes it.
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

    /// Returns the number of lines.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns true if there are no lines.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
