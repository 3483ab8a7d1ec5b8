//! The parameters of a query.

use std::{collections::HashMap, ops::RangeInclusive};

use axum::{extract::Query as Pairs, http::Uri};
use protocol::error::ErrorCode;

use super::problem::Problem;

/// Updates, or markets, in a response to a request without `limit`.
pub(super) const DEFAULT_LIMIT: usize = 200;
/// The most updates, or markets, in a response.
pub(super) const MAX_LIMIT: usize = 1000;

/// The parameters of a query, each of them once.
pub(super) struct Query(HashMap<String, String>);

impl Query {
    /// Parses the query of `uri`. A parameter that appears twice is a [`Problem`].
    pub(super) fn of(uri: &Uri) -> Result<Self, Problem> {
        let Pairs(pairs) = Pairs::<Vec<(String, String)>>::try_from_uri(uri)
            .map_err(|_| Problem::new(ErrorCode::BadRequest, "the query is not name=value pairs"))?;
        let count = pairs.len();
        let query: HashMap<String, String> = pairs.into_iter().collect();
        if query.len() < count {
            return Err(Problem::new(ErrorCode::BadRequest, "a parameter of the query stands twice"));
        }
        Ok(Self(query))
    }

    /// Returns a parameter's text.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// Returns a parameter as a number in `range`. An absent parameter is `default`; without one it is a [`Problem`].
    pub(super) fn number(
        &self,
        name: &str,
        range: RangeInclusive<u64>,
        default: Option<u64>,
    ) -> Result<u64, Problem> {
        let value = match self.get(name) {
            Some(text) => text
                .parse()
                .ok()
                .filter(|value| range.contains(value) && text.bytes().all(|b| b.is_ascii_digit())),
            None => default,
        };
        value.ok_or_else(|| {
            let message = format!("{name}: an integer from {} to {}", range.start(), range.end());
            Problem::new(ErrorCode::BadRequest, message)
        })
    }

    /// Returns `limit`, or [`DEFAULT_LIMIT`].
    pub(super) fn limit(&self) -> Result<usize, Problem> {
        let limit = self.number("limit", 1..=MAX_LIMIT as u64, Some(DEFAULT_LIMIT as u64))?;
        Ok(usize::try_from(limit).unwrap_or(MAX_LIMIT))
    }
}
