//! A token for every user, asked for or signed here.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use protocol::Secret;
use serde::Deserialize;
use service::token::{Audience, Keyring, WsClaims};
use tokio::task::JoinSet;

use crate::http::{Asked, Endpoint, Http, refusal, runtime};
use crate::options::Sockets;
use crate::report;

/// Tokens for the users of these sockets, by user, that outlive a run of this length.
///
/// # Errors
/// With what to do, when a gateway refuses one.
pub(crate) fn tokens(sockets: &Sockets, run: Duration) -> Result<Vec<String>> {
    let users = sockets.connections.div_ceil(sockets.per_user);
    let life_s = (run.as_secs() + SLACK_S).clamp(600, 3600);
    match &sockets.jwt_secret {
        Some(secret) => sign(secret, sockets.first_user, users, life_s),
        None => runtime()?.block_on(ask(sockets, users, life_s)),
    }
}

/// Time for everything around the run itself: more tokens, the ramp, draining.
const SLACK_S: u64 = 10 * 60;

const ASKING_AT_ONCE: usize = 32;

/// Signs tokens for this many users, good for `life_s`.
///
/// # Errors
/// When the secret is not fit to be a gateway's.
pub(crate) fn sign(secret: &str, first_user: u64, users: usize, life_s: u64) -> Result<Vec<String>> {
    let keys = Keyring::parse(&Secret::new(secret), Audience::Ws).context("--jwt-secret")?;
    let iat = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let claims =
        |sub: u64| WsClaims { sub: sub.to_string(), markets: None, iat, exp: iat + life_s, jti: None };
    Ok((first_user..).take(users).map(|user| keys.sign(&claims(user))).collect())
}

async fn ask(sockets: &Sockets, users: usize, life_s: u64) -> Result<Vec<String>> {
    let progress = report::progress(users, "tokens");
    let next = Arc::new(AtomicUsize::new(0));
    let mut asking = JoinSet::new();
    for asker in 0..ASKING_AT_ONCE.min(users) {
        let gateway = sockets.gateway[asker % sockets.gateway.len()].clone();
        let (api_key, first_user) = (sockets.token_api_key.clone(), sockets.first_user);
        let (next, progress) = (Arc::clone(&next), progress.clone());
        asking.spawn(async move {
            let mut http = Http::new(&gateway, api_key);
            let mut tokens = Vec::new();
            loop {
                let user = next.fetch_add(1, Ordering::Relaxed);
                if user >= users {
                    return anyhow::Ok(tokens);
                }
                tokens.push((user, ask_one(&mut http, &gateway, first_user + user as u64, life_s).await?));
                progress.inc(1);
            }
        });
    }
    let mut tokens = Vec::with_capacity(users);
    while let Some(asked) = asking.join_next().await {
        tokens.extend(asked??);
    }
    progress.finish_and_clear();
    tokens.sort_unstable_by_key(|(user, _)| *user);
    Ok(tokens.into_iter().map(|(_, token)| token).collect())
}

async fn ask_one(http: &mut Http, gateway: &Endpoint, user: u64, life_s: u64) -> Result<String> {
    #[derive(Deserialize)]
    struct Issued {
        token: String,
    }

    let answer = http.post("/api/ws/token", format!(r#"{{"userId":{user},"ttlSeconds":{life_s}}}"#)).await?;
    if answer.status != 200 {
        return Err(refusal(Asked::Token, gateway, &answer));
    }
    let issued: Issued = serde_json::from_slice(&answer.body).context("an answer of the token endpoint")?;
    Ok(issued.token)
}
