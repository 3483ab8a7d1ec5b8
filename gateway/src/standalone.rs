//! The whole system in one process: memory instead of Redis, and the admin API on the gateway's own listener.

mod demo;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use axum::Router;
use backbone::{Backbone, MemoryBackbone, Retention};
use protocol::Secret;
use publisher::state::Admin;
use service::{
    rotation::SecretFile,
    settings::{Setting, Settings},
    telemetry::LogFormat,
    token::{self, AdminClaims, Audience, Keyring, Role},
};

pub use self::demo::Demo;

/// The keys of admin tokens.
pub const ADMIN_JWT_SECRET: Setting<Secret> = token::ADMIN_JWT_SECRET.with(
    "",
    "embedded only: signs and verifies admin tokens; not set = random, and the gateway prints a token",
);
/// Whether there are markets to look at.
pub const DEMO: Setting<bool> =
    Setting::new("DEMO", "false", "embedded only: publish the invented markets 1001 to 1008");

/// The lifetime of the printed admin token.
const ADMIN_TOKEN_TTL: Duration = Duration::from_hours(12);

/// The settings of the parts that only an embedded system has.
#[derive(Clone, Debug)]
pub struct StandaloneSettings {
    /// Signs and verifies admin tokens.
    pub admin_keys: Keyring,
    /// Publish invented markets.
    pub demo: bool,
}

impl StandaloneSettings {
    /// Reads the settings. Keys from a file go into `files`: they follow the file.
    pub fn read(settings: &mut Settings, files: &mut Vec<SecretFile>) -> Self {
        let keys = Keyring::read(settings, &ADMIN_JWT_SECRET, Audience::Admin, files);
        Self {
            admin_keys: keys.unwrap_or_else(|| Keyring::random(Audience::Admin)),
            demo: settings.value(&DEMO),
        }
    }
}

/// Returns an empty backbone in memory, and the admin API over it.
pub fn embed(settings: &StandaloneSettings, retention: Retention) -> (Arc<dyn Backbone>, Router) {
    publisher::metrics::describe();
    let backbone: Arc<dyn Backbone> = Arc::new(MemoryBackbone::new(retention));
    let admin = Admin { backbone: Arc::clone(&backbone), copy: None, keys: settings.admin_keys.clone() };
    (backbone, publisher::http::router(admin))
}

/// Tells a new user which pages to open, the token for the admin API, and that no data lasts.
pub fn introduce(settings: &StandaloneSettings, address: SocketAddr, has_board: bool, format: LogFormat) {
    let here = format!("http://{}", reachable(address));
    let token = settings.admin_keys.sign(&AdminClaims::new("local", Role::Admin, ADMIN_TOKEN_TTL));
    // Browsers do not send the fragment to any server.
    let (board, console) = (has_board.then(|| format!("{here}/")), format!("{here}/console#token={token}"));
    tracing::warn!(
        adminToken = token,
        board,
        console,
        "embedded: all data is in memory and does not survive a restart; set REDIS_URL to keep it"
    );
    if format == LogFormat::Text {
        let board = board.map(|board| format!("  Live board       {board}\n")).unwrap_or_default();
        eprintln!(
            "\n{board}  Trading console  {console}\n\n  Open them in a browser. Ctrl-C ends the gateway.\n"
        );
    }
}

/// Returns an address that a browser on this machine can open.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    address
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_of_all_interfaces_is_shown_as_this_machine() {
        for (listens, shown) in
            [("0.0.0.0:80", "127.0.0.1:80"), ("[::]:80", "[::1]:80"), ("10.0.0.1:80", "10.0.0.1:80")]
        {
            assert_eq!(reachable(listens.parse().unwrap()).to_string(), shown);
        }
    }
}
