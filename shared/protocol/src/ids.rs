//! Market ids, and the integers that every client can read.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, de};
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{Object, RefOr, Schema, Type},
};

/// The largest integer that every client's number type holds exactly: 2^53 − 1.
pub const MAX_SAFE_INTEGER: u64 = (1 << 53) - 1;

/// A market's id: an integer 1 … 2^53 − 1 (`docs/protocol.md#terms`).
///
/// It parses from a JSON number, or a decimal string without sign, leading zeros, fraction or exponent. It is written as a
/// number, and as a decimal string where it is an object's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct MarketId(u64);

/// Why something is not a market id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a market id is an integer from 1 to 9007199254740991, as a number or a decimal string")]
pub struct InvalidMarketId;

impl MarketId {
    /// Makes an id of a number.
    ///
    /// # Errors
    /// [`InvalidMarketId`] outside 1 … 2^53 − 1.
    pub const fn new(value: u64) -> Result<Self, InvalidMarketId> {
        if value == 0 || value > MAX_SAFE_INTEGER { Err(InvalidMarketId) } else { Ok(Self(value)) }
    }

    /// Returns the number, 1 … 2^53 − 1.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for MarketId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for MarketId {
    type Err = InvalidMarketId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse_decimal(text).ok_or(InvalidMarketId).and_then(Self::new)
    }
}

impl<'de> Deserialize<'de> for MarketId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl de::Visitor<'_> for Visitor {
            type Value = MarketId;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(
                    "a market id (integer from 1 to 9007199254740991, as a number or a decimal string)",
                )
            }

            fn visit_u64<E: de::Error>(self, value: u64) -> Result<MarketId, E> {
                MarketId::new(value).map_err(E::custom)
            }

            fn visit_str<E: de::Error>(self, value: &str) -> Result<MarketId, E> {
                value.parse().map_err(E::custom)
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

impl PartialSchema for MarketId {
    fn schema() -> RefOr<Schema> {
        Object::builder()
            .schema_type(Type::Integer)
            .minimum(Some(1_u64))
            .maximum(Some(MAX_SAFE_INTEGER))
            .description(Some("A market's id: an integer from 1 to 2^53 - 1."))
            .examples([1001])
            .into()
    }
}

impl ToSchema for MarketId {}

/// Reads a decimal without sign and leading zeros, so that each number has exactly one spelling.
#[must_use]
pub fn parse_decimal(text: &str) -> Option<u64> {
    let canonical = text == "0" || (!text.starts_with('0') && text.bytes().all(|b| b.is_ascii_digit()));
    if canonical { text.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_market_id_has_one_spelling() {
        for text in
            ["0", "-1", "+1", "01", "0001", "1e3", "1.0", "", "9007199254740992", "99999999999999999999"]
        {
            assert!(text.parse::<MarketId>().is_err(), "{text:?} must be refused");
            assert!(serde_json::from_str::<MarketId>(text).is_err(), "{text:?} must be refused as a number");
        }
        assert!(" 1".parse::<MarketId>().is_err());
        assert!("9007199254740991".parse::<MarketId>().is_ok());
        assert!(serde_json::from_str::<MarketId>("true").is_err());
        assert!(serde_json::from_str::<MarketId>("1001.0").is_err());
    }

    proptest! {
        #[test]
        fn number_and_string_mean_the_same_id(value in 1..=MAX_SAFE_INTEGER) {
            let id = MarketId::new(value).unwrap();
            prop_assert_eq!(serde_json::from_str::<MarketId>(&value.to_string()).unwrap(), id);
            prop_assert_eq!(serde_json::from_str::<MarketId>(&format!("\"{value}\"")).unwrap(), id);
            prop_assert_eq!(serde_json::to_string(&id).unwrap(), value.to_string());
            prop_assert_eq!(id.to_string().parse::<MarketId>().unwrap(), id);
        }
    }
}
