//! The whole system in one process: memory instead of Redis, and the admin API on the gateway's own listener.

pub mod demo;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use axum::Router;
use backbone::{Backbone, MemoryBackbone, Retention};
use publisher::state::Admin;
use service::{
    telemetry::LogFormat,
    token::{AdminClaims, Role},
};

use crate::settings::Settings;

/// How long the printed admin token is good for.
const ADMIN_TOKEN_TTL: Duration = Duration::from_hours(12);

/// An empty backbone in memory, and the admin API over it.
pub fn embed(settings: &Settings) -> (Arc<dyn Backbone>, Router) {
    publisher::metrics::describe();
    let retention = Retention { history_len: settings.history_len, ..Retention::default() };
    let backbone: Arc<dyn Backbone> = Arc::new(MemoryBackbone::new(retention));
    let admin = Admin { backbone: Arc::clone(&backbone), copy: None, keys: settings.admin_keys.clone() };
    (backbone, publisher::http::router(admin))
}

/// Says what a new user needs to know: where to look, a token for the admin API, and what does not last.
pub fn introduce(settings: &Settings, address: SocketAddr) {
    let here = format!("http://{}", reachable(address));
    let token = settings.admin_keys.sign(&AdminClaims::new("local", Role::Admin, ADMIN_TOKEN_TTL));
    // In the fragment, which browsers send to nobody.
    let (board, console) =
        (settings.board.then(|| format!("{here}/")), format!("{here}/console#token={token}"));
    tracing::warn!(
        adminToken = token,
        board,
        console,
        "embedded: everything is in memory and nothing survives a restart; set REDIS_URL for the real thing"
    );
    if settings.log_format == LogFormat::Text {
        let board = board.map(|board| format!("  Live board       {board}\n")).unwrap_or_default();
        eprintln!("\n{board}  Trading console  {console}\n\n  Open them in a browser. Ctrl-C ends it.\n");
    }
}

/// An address that a browser on this machine can open.
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
    fn what_listens_everywhere_is_shown_as_this_machine() {
        for (listens, shown) in
            [("0.0.0.0:80", "127.0.0.1:80"), ("[::]:80", "[::1]:80"), ("10.0.0.1:80", "10.0.0.1:80")]
        {
            assert_eq!(reachable(listens.parse().unwrap()).to_string(), shown);
        }
    }
}
