//! A token for every user, issued by a gateway or signed here.

use std::{ops::Range, time::Duration};

use ::tests::tokens::{made, signed_for};
use anyhow::{Context, Result};
use protocol::Secret;
use serde::Deserialize;
use service::token::{Audience, Keyring, MAX_TTL_S};

use crate::client::{Asked, Endpoint, Http, refusal, runtime};
use crate::{options::Sockets, report};

/// Tokens of these users for the gateways of a bench, which have the tests' secret.
pub(crate) fn of_users(users: Range<usize>) -> Vec<String> {
    users.map(|user| made(user as u64, None, MAX_TTL_S)).collect()
}

/// Tokens of the users of these flags, by user, that outlive a run of this length.
pub(crate) fn for_run(sockets: &Sockets, gateways: &[Endpoint], run: Duration) -> Result<Vec<String>> {
    let users = sockets.connections().div_ceil(sockets.per_user);
    let life_s = (run.as_secs() + SLACK_S).clamp(600, MAX_TTL_S);
    match &sockets.jwt_secret {
        Some(secret) => {
            let keys = Keyring::parse(&Secret::new(secret), Audience::Ws).context("--jwt-secret")?;
            Ok((sockets.first_user..).take(users).map(|user| signed_for(&keys, user, life_s)).collect())
        }
        None => runtime()?.block_on(ask(sockets, gateways, users, life_s)),
    }
}

/// Time for everything around the run itself: more tokens, the ramp, the end.
const SLACK_S: u64 = 10 * 60;

async fn ask(sockets: &Sockets, gateways: &[Endpoint], users: usize, life_s: u64) -> Result<Vec<String>> {
    #[derive(Deserialize)]
    struct Issued {
        token: String,
    }

    let progress = report::progress(users, "tokens");
    let mut http = Http::new(&gateways[0], sockets.token_api_key.clone());
    let mut tokens = Vec::with_capacity(users);
    for user in (sockets.first_user..).take(users) {
        let body = format!(r#"{{"userId":{user},"ttlSeconds":{life_s}}}"#);
        let response = http.post("/api/ws/token", body).await?;
        if response.status != 200 {
            return Err(refusal(Asked::Token, &gateways[0], &response));
        }
        let issued: Issued = serde_json::from_slice(&response.body).context("the token endpoint")?;
        tokens.push(issued.token);
        progress.inc(1);
    }
    progress.finish_and_clear();
    Ok(tokens)
}
