//! The origins of pages that are let in.

use axum::http::HeaderValue;
use service::settings::{FromSetting, Setting};

/// The origins whose pages may read REST responses.
pub const CORS_ORIGINS: Setting<Origins> =
    Setting::new("CORS_ORIGINS", "", "origins of pages that may read REST responses, comma-separated, or *");
/// The origins whose pages may open sockets. A client without an `Origin` always may.
pub const ALLOWED_ORIGINS: Setting<Origins> =
    Setting::new("ALLOWED_ORIGINS", "*", "origins of pages that may open sockets, comma-separated, or *");

/// A list of origins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origins {
    /// `*`.
    Any,
    /// Exactly these.
    Only(Vec<HeaderValue>),
}

impl FromSetting for Origins {
    fn parse(text: &str) -> Result<Self, String> {
        if text == "*" {
            return Ok(Self::Any);
        }
        let parse = |origin: &str| {
            let good = origin.contains("://")
                && !origin.ends_with('/')
                && origin.bytes().all(|b| b.is_ascii_graphic());
            let value = if good { HeaderValue::from_str(origin).ok() } else { None };
            value.ok_or_else(|| {
                format!(
                    "{origin:?} is not an origin: write https://example.com, without a slash at the end, or *"
                )
            })
        };
        text.split(',')
            .map(str::trim)
            .filter(|origin| !origin.is_empty())
            .map(parse)
            .collect::<Result<_, _>>()
            .map(Self::Only)
    }
}
