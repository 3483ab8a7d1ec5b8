//! JSON text: an object's members as written, strings, and what is wrong with a text.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess},
};
use serde_json::value::RawValue;

/// Returns a JSON object's members in order. A name that appears twice is there twice.
///
/// # Errors
/// If the text is not a JSON object.
pub fn members(text: &str) -> Result<Vec<(String, &RawValue)>, serde_json::Error> {
    struct Members<'a>(Vec<(String, &'a RawValue)>);

    impl<'de> Deserialize<'de> for Members<'de> {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            struct Visitor;

            impl<'de> de::Visitor<'de> for Visitor {
                type Value = Members<'de>;

                fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                    f.write_str("an object")
                }

                fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                    let mut members = Vec::new();
                    while let Some(member) = map.next_entry()? {
                        members.push(member);
                    }
                    Ok(Members(members))
                }
            }

            deserializer.deserialize_map(Visitor)
        }
    }

    serde_json::from_str(text).map(|Members(members)| members)
}

/// Returns `text` as a JSON string literal.
#[must_use]
pub fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// Returns what is wrong with a JSON text, without the strings of the text that serde shows: one may be a token.
#[must_use]
pub fn json_problem(error: &serde_json::Error) -> String {
    let problem = error.to_string();
    match (problem.find('"'), problem.rfind('"')) {
        (Some(first), Some(last)) if first < last => {
            format!("{}…{}", &problem[..first], &problem[last + 1..])
        }
        _ => problem,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_json_problem_shows_no_string_of_the_text() {
        for (text, problem) in [
            (r#""hush, \" hush""#, "invalid type: string …, expected u64 at line 1 column 15"),
            ("[]", "invalid type: sequence, expected u64 at line 1 column 0"),
            ("{", "invalid type: map, expected u64 at line 1 column 0"),
        ] {
            let error = serde_json::from_str::<u64>(text).unwrap_err();
            assert_eq!(json_problem(&error), problem);
        }
    }
}
