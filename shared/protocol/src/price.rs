//! Decimal odds as text (`docs/protocol.md#rules-of-an-override`). A price never becomes a float: its digits are checked, and
//! its text passes through unchanged.

/// Why a text is not decimal odds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidOdds {
    /// It is not a plain decimal number: it is a string, or has a sign or an exponent.
    #[error("must be decimal odds: a plain decimal number such as 1.85")]
    NotDecimal,
    /// It has too many digits after the point.
    #[error("must be decimal odds with at most {MAX_DECIMALS} decimals")]
    TooPrecise,
    /// It is outside 1 < x ≤ 10000.
    #[error("must be decimal odds above 1 and at most {MAX_ODDS}")]
    OutOfRange,
}

/// The highest price.
pub(crate) const MAX_ODDS: u32 = 10_000;
/// The most digits after the point.
pub(crate) const MAX_DECIMALS: usize = 4;

/// Checks the JSON text of a price: 1 < x ≤ 10000, with at most 4 decimals.
///
/// # Errors
/// [`InvalidOdds`] names the rule that the text breaks.
pub fn check_decimal_odds(text: &str) -> Result<(), InvalidOdds> {
    let (whole, decimals) = match text.split_once('.') {
        Some((_, "")) => return Err(InvalidOdds::NotDecimal),
        Some(parts) => parts,
        None => (text, ""),
    };
    let digits = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(decimals) || (whole.starts_with('0') && whole != "0") {
        return Err(InvalidOdds::NotDecimal);
    }
    if decimals.len() > MAX_DECIMALS {
        return Err(InvalidOdds::TooPrecise);
    }
    let whole = whole.parse::<u32>().map_err(|_| InvalidOdds::OutOfRange)?;
    let has_fraction = decimals.bytes().any(|b| b != b'0');
    let above_one = whole > 1 || (whole == 1 && has_fraction);
    let at_most_max = whole < MAX_ODDS || (whole == MAX_ODDS && !has_fraction);
    if above_one && at_most_max { Ok(()) } else { Err(InvalidOdds::OutOfRange) }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_limits_are_exact() {
        for good in ["1.0001", "1.01", "2", "2.10", "9999.9999", "10000", "10000.0000"] {
            assert_eq!(check_decimal_odds(good), Ok(()), "{good}");
        }
        for (bad, why) in [
            ("1", InvalidOdds::OutOfRange),
            ("1.0000", InvalidOdds::OutOfRange),
            ("0.5", InvalidOdds::OutOfRange),
            ("10000.0001", InvalidOdds::OutOfRange),
            ("10001", InvalidOdds::OutOfRange),
            ("99999999999", InvalidOdds::OutOfRange),
            ("1.00001", InvalidOdds::TooPrecise),
            ("-2", InvalidOdds::NotDecimal),
            ("1e1", InvalidOdds::NotDecimal),
            ("\"2\"", InvalidOdds::NotDecimal),
            ("null", InvalidOdds::NotDecimal),
            ("true", InvalidOdds::NotDecimal),
            ("{}", InvalidOdds::NotDecimal),
            ("", InvalidOdds::NotDecimal),
            (".5", InvalidOdds::NotDecimal),
            ("2.", InvalidOdds::NotDecimal),
            ("02", InvalidOdds::NotDecimal),
            ("２", InvalidOdds::NotDecimal),
        ] {
            assert_eq!(check_decimal_odds(bad), Err(why), "{bad}");
        }
    }

    /// `publisher/console/decimal.js` is tested with the same file.
    #[test]
    fn odds_are_valid_or_not_as_the_vectors_say() {
        let vectors = include_str!("../../../docs/vectors/prices.json");
        let vectors: HashMap<&str, Vec<String>> = serde_json::from_str(vectors).unwrap();
        let (valid, invalid) = (&vectors["valid"], &vectors["invalid"]);
        assert!(vectors.len() == 2 && !valid.is_empty() && !invalid.is_empty());
        for text in valid {
            assert_eq!(check_decimal_odds(text), Ok(()), "{text:?}");
        }
        for text in invalid {
            assert!(check_decimal_odds(text).is_err(), "{text:?}");
        }
    }

    proptest! {
        /// Compares with an integer number of ten-thousandths.
        #[test]
        fn agrees_with_exact_integers(ten_thousandths in 0u64..110_000_000, decimals in 0usize..=4) {
            let scale = 10_u64.pow(4 - u32::try_from(decimals).unwrap());
            let value = ten_thousandths / scale * scale;
            let text = format!("{}.{:04}", value / 10_000, value % 10_000);
            let text = if decimals == 0 { &text[..text.len() - 5] } else { &text[..text.len() - (4 - decimals)] };
            prop_assert_eq!(check_decimal_odds(text).is_ok(), value > 10_000 && value <= 100_000_000, "{}", text);
        }

        #[test]
        fn never_panics(text in ".*") {
            let _ = check_decimal_odds(&text);
        }
    }
}
