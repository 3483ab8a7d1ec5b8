//! The settings of traces: where they go, and how many there are.

use axum::http::{Uri, uri::Authority};

use crate::settings::{FromSetting, Setting, Settings};

/// The port of a collector whose address names none.
const COLLECTOR_PORT: u16 = 4318;

/// The collector that traces are sent to.
pub const OTLP_ENDPOINT: Setting<Endpoint> = Setting::new(
    "OTLP_ENDPOINT",
    "",
    "OpenTelemetry collector that traces are sent to over HTTP, such as http://127.0.0.1:4318; not set = no traces",
);
/// The share of requests that begin a trace.
pub const OTLP_SAMPLE_RATIO: Setting<Ratio> = Setting::new(
    "OTLP_SAMPLE_RATIO",
    "0.01",
    "share of admin requests, from 0 to 1, that begin a trace; a request with a traceparent header follows that header instead",
);

/// The values of [`OTLP_ENDPOINT`] and [`OTLP_SAMPLE_RATIO`].
#[derive(Clone, Debug, PartialEq)]
pub struct TraceSettings {
    pub(super) endpoint: Endpoint,
    pub(super) ratio: f64,
}

impl TraceSettings {
    /// Reads both settings. Returns `None` without a collector: then there are no traces.
    pub fn read(settings: &mut Settings) -> Option<Self> {
        let Ratio(ratio) = settings.value(&OTLP_SAMPLE_RATIO);
        Some(Self { endpoint: settings.optional(&OTLP_ENDPOINT)?, ratio })
    }
}

/// A collector's address, without the path that OTLP adds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    authority: Authority,
    path: String,
}

impl Endpoint {
    pub(super) fn host(&self) -> &str {
        self.authority.host()
    }

    pub(super) fn port(&self) -> u16 {
        self.authority.port_u16().unwrap_or(COLLECTOR_PORT)
    }

    /// Returns the path that takes traces.
    pub(super) fn traces_path(&self) -> String {
        format!("{}/v1/traces", self.path)
    }
}

impl FromSetting for Endpoint {
    fn parse(text: &str) -> Result<Self, String> {
        // The text is not repeated: what a user writes before an @ is a password.
        let wrong = || "write http://host:4318".to_owned();
        let uri: Uri = text.parse().map_err(|_| wrong())?;
        let authority = uri.authority().filter(|authority| !authority.as_str().contains('@'));
        let authority = authority.ok_or_else(wrong)?.clone();
        if uri.scheme_str() != Some("http") || uri.query().is_some() {
            return Err(wrong());
        }
        Ok(Self { authority, path: uri.path().trim_end_matches('/').to_owned() })
    }
}

/// A share from 0 to 1.
#[derive(Clone, Copy, Debug)]
pub struct Ratio(f64);

impl FromSetting for Ratio {
    fn parse(text: &str) -> Result<Self, String> {
        match text.parse() {
            Ok(ratio) if (0.0..=1.0).contains(&ratio) => Ok(Self(ratio)),
            _ => Err(format!("{text:?} is not from 0 to 1")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_collector_is_named_by_host_and_port() {
        let url = |text| {
            let url = |to: Endpoint| format!("http://{}:{}{}", to.host(), to.port(), to.traces_path());
            Endpoint::parse(text).map(url)
        };
        assert_eq!(url("http://otel:4318").unwrap(), "http://otel:4318/v1/traces");
        assert_eq!(url("http://otel/in/").unwrap(), "http://otel:4318/in/v1/traces");
        assert_eq!(url("http://[::1]:9").unwrap(), "http://[::1]:9/v1/traces");
        for wrong in ["", "otel:4318", "https://otel:4318", "http://u:secret@otel", "http://otel?x=secret"] {
            let problem = url(wrong).unwrap_err();
            assert!(!problem.contains("secret"), "{problem}");
        }
    }

    #[test]
    fn a_ratio_is_from_0_to_1() {
        for (text, good) in
            [("0", true), ("1", true), ("0.01", true), ("1.1", false), ("-1", false), ("NaN", false)]
        {
            assert_eq!(Ratio::parse(text).is_ok(), good, "{text}");
        }
    }
}
