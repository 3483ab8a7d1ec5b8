//! Flags that several commands share, and how their values are read.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use clap::Args;

use crate::client::{Endpoint, Plan};
use crate::markets::{FIRST_MARKET, Markets};
use crate::report::listening_on;

/// Tokens live an hour at most, and connections here do not renew theirs.
const MAX_RUN: Duration = Duration::from_mins(50);

/// Which connections to open, and where.
#[derive(Args, Debug, Clone)]
pub(crate) struct Sockets {
    /// A gateway; repeat to spread the connections over several
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8080")]
    pub(crate) gateway: Vec<Endpoint>,

    #[command(flatten)]
    subscriptions: Subscriptions,

    /// Lowest market id; keep away from markets that people bet on
    #[arg(long, value_name = "ID", default_value_t = FIRST_MARKET)]
    first_market: u64,

    /// Lowest user id
    #[arg(long, value_name = "ID", default_value_t = 900_000_001)]
    pub(crate) first_user: u64,

    /// Connections of each user (a gateway allows 10)
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = counted(1, 100_000))]
    pub(crate) per_user: usize,

    /// Key for POST /api/ws/token, if the gateway has a TOKEN_API_KEY
    #[arg(long, value_name = "KEY", env = "TOKEN_API_KEY", hide_env_values = true)]
    pub(crate) token_api_key: Option<String>,

    /// Sign tokens here with the gateways' JWT_SECRET instead of asking for each
    #[arg(long, value_name = "SECRET", env = "JWT_SECRET", hide_env_values = true)]
    pub(crate) jwt_secret: Option<String>,

    /// Handshakes at the same time
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = counted(1, 10_000))]
    pub(crate) in_flight: usize,

    /// New connections per second, 0 = as fast as the gateway accepts them
    #[arg(long, value_name = "RATE", default_value_t = 0.0, value_parser = rate)]
    pub(crate) connect_rate: f64,

    /// Source addresses 127.0.0.1, .2, … to connect from (loopback only): each has about 28 000 ports.
    /// 0 = as many as needed
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = counted(0, 200))]
    pub(crate) sources: usize,
}

/// How many connections, and what they subscribe to.
#[derive(Args, Debug, Clone, Copy)]
pub(crate) struct Subscriptions {
    /// Connections to open
    #[arg(long, short = 'n', value_name = "N", default_value_t = 1000, value_parser = counted(1, 100_000))]
    pub(crate) connections: usize,

    /// Markets to use, each with as many subscribers as any other
    #[arg(long, value_name = "M", default_value_t = 1, value_parser = counted(1, 1_000_000))]
    markets: usize,

    /// Markets that each connection subscribes to
    #[arg(long, value_name = "K", default_value_t = 1, value_parser = counted(0, 200))]
    per_connection: usize,
}

impl Subscriptions {
    /// Fails if there are fewer markets than a connection is to subscribe to.
    pub(crate) fn markets(&self) -> Result<Markets> {
        let Self { markets, per_connection, .. } = *self;
        ensure!(per_connection <= markets, "--per-connection is at most --markets");
        Ok(Markets::new(markets, per_connection))
    }
}

impl Sockets {
    pub(crate) fn markets(&self) -> Result<Markets> {
        Ok(Markets { first: self.first_market, ..self.subscriptions.markets()? })
    }

    pub(crate) fn connections(&self) -> usize {
        self.subscriptions.connections
    }

    /// The clients to open at these gateways, with a token of each user.
    pub(crate) fn plan(&self, gateways: Vec<Endpoint>, tokens: Vec<String>) -> Plan {
        let Self { per_user, in_flight, connect_rate, sources, .. } = *self;
        Plan { per_user, in_flight, connect_rate, sources, ..Plan::all_at_once(gateways, tokens) }
    }
}

/// Where to publish.
#[derive(Args, Debug, Clone)]
pub(crate) struct Publisher {
    /// The admin API; a gateway without REDIS_URL serves it too
    #[arg(long, value_name = "URL")]
    pub(crate) publisher: Option<Endpoint>,

    /// Admin token with role trader
    #[arg(long, value_name = "JWT", env = "ADMIN_TOKEN", hide_env_values = true)]
    pub(crate) admin_token: Option<String>,
}

/// The processes whose CPU and memory to read.
#[derive(Args, Debug, Clone)]
pub(crate) struct Watched {
    /// Process of a gateway; repeatable. Default: found through the listening port, when that is on loopback
    #[arg(long, value_name = "PID")]
    gateway_pid: Vec<u32>,

    /// Process of the publisher. Default: as for --gateway-pid
    #[arg(long, value_name = "PID")]
    publisher_pid: Option<u32>,
}

impl Watched {
    /// The processes to watch by role and pid: as given, or found.
    pub(crate) fn find(
        &self,
        gateways: &[Endpoint],
        publisher: Option<&Endpoint>,
    ) -> Vec<(&'static str, u32)> {
        let found = |endpoint: &Endpoint| listening_on(endpoint.address);
        let mut pids = self.gateway_pid.clone();
        if pids.is_empty() {
            pids.extend(gateways.iter().filter_map(found));
        }
        let publisher = self.publisher_pid.or_else(|| publisher.and_then(found));
        pids.into_iter().map(|pid| ("gateway", pid)).chain(publisher.map(|pid| ("publisher", pid))).collect()
    }
}

/// Reads `10s`, `500ms`, `2m`; a bare number is seconds.
pub(crate) fn duration(text: &str) -> Result<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u32 = text[..digits].parse()?;
    let duration = match &text[digits..] {
        "ms" => Duration::from_millis(number.into()),
        "" | "s" => Duration::from_secs(number.into()),
        "m" => Duration::from_mins(number.into()),
        unit => bail!("unknown unit {unit:?}: write 10s, 500ms or 2m"),
    };
    ensure!(duration <= MAX_RUN, "at most {} minutes, since tokens live an hour", MAX_RUN.as_secs() / 60);
    Ok(duration)
}

/// Reads a rate per second, 0 … 100 000.
pub(crate) fn rate(text: &str) -> Result<f64> {
    let rate: f64 = text.parse()?;
    ensure!((0.0..=100_000.0).contains(&rate), "0 to 100000 per second");
    Ok(rate)
}

/// A parser for a number within bounds.
pub(crate) fn counted(least: usize, most: usize) -> impl Fn(&str) -> Result<usize> + Clone + Send + Sync {
    move |text| {
        let number: usize = text.parse()?;
        ensure!((least..=most).contains(&number), "{least} to {most}");
        Ok(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units_and_an_end() {
        assert_eq!(duration("10s").unwrap(), Duration::from_secs(10));
        assert_eq!(duration("500ms").unwrap(), Duration::from_millis(500));
        assert_eq!(duration("2m").unwrap(), Duration::from_mins(2));
        assert_eq!(duration("7").unwrap(), Duration::from_secs(7));
        for bad in ["", "s", "-1", "1h", "51m"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn rates_and_counts_have_bounds() {
        assert!((rate("2.5").unwrap() - 2.5).abs() < f64::EPSILON);
        assert!(rate("NaN").is_err() && rate("-1").is_err() && rate("1e9").is_err());
        assert!(counted(1, 5)("0").is_err() && counted(1, 5)("5").is_ok() && counted(1, 5)("6").is_err());
    }
}
