//! Decides which requests are let in: rate limits, origins of pages, the token endpoint's key, and whether reads need a
//! token.

mod address;
mod origins;

use std::time::Instant;

use axum::http::{HeaderMap, header::ORIGIN};
use protocol::Secret;
use service::{
    http::serve::Peer,
    rotation::{Live, SecretFile},
    settings::{FromSetting, Setting, Settings},
    token::same_secret,
};

use self::address::ClientKey;
pub use self::{
    address::{Proxies, TRUSTED_PROXIES},
    origins::{ALLOWED_ORIGINS, CORS_ORIGINS, Origins},
};
use crate::limits::{KeyedRate, Rate};

/// The key of the token endpoint.
pub const TOKEN_API_KEY: Setting<Secret> =
    Setting::new("TOKEN_API_KEY", "", "the bearer key that POST /api/ws/token requires");
/// Confirms that the token endpoint is meant to be open.
pub const ALLOW_OPEN_TOKENS: Setting<bool> = Setting::new(
    "ALLOW_OPEN_TOKENS",
    "false",
    "let anyone request tokens on a listener that is not loopback",
);
/// The rate of tokens.
pub const TOKEN_RATE_LIMIT: Setting<u32> =
    Setting::new("TOKEN_RATE_LIMIT", "10", "tokens per minute and user, 0 = no limit");
/// Whether REST reads need a token.
pub const READ_AUTH: Setting<ReadAuth> = Setting::new(
    "READ_AUTH",
    "none",
    "none, or token: REST reads need a client token with the market in its scope",
);
/// The rate of handshakes, and, counted apart, of requests for tokens.
pub const HANDSHAKE_RATE_LIMIT: Setting<u32> = Setting::new(
    "HANDSHAKE_RATE_LIMIT",
    "20",
    "handshakes per second and client address, and requests for tokens without a valid TOKEN_API_KEY; 0 = no limit",
);

/// Decides which requests are let in.
#[derive(Debug)]
pub struct Access {
    token_api_key: Option<Live<Secret>>,
    read_auth: ReadAuth,
    allowed_origins: Origins,
    trusted_proxies: Proxies,
    handshakes: Option<KeyedRate<ClientKey>>,
    /// Requests for tokens without the right key.
    keyless_requests: Option<KeyedRate<ClientKey>>,
    /// Tokens per user.
    tokens: Option<KeyedRate<String>>,
    /// The rates count milliseconds from here.
    started: Instant,
}

/// Whether a request has the token endpoint's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApiKey {
    /// The request has the right key.
    Right,
    /// The request has no key, or another one.
    Wrong,
    /// The endpoint is open.
    NotNeeded,
}

impl Access {
    /// Begins with full rates.
    #[must_use]
    pub fn new(settings: AccessSettings) -> Self {
        Self {
            token_api_key: settings.token_api_key,
            read_auth: settings.read_auth,
            allowed_origins: settings.allowed_origins,
            trusted_proxies: settings.trusted_proxies,
            handshakes: settings.handshake_rate.map(KeyedRate::new),
            keyless_requests: settings.handshake_rate.map(KeyedRate::new),
            tokens: settings.token_rate.map(KeyedRate::new),
            started: Instant::now(),
        }
    }

    /// Counts a handshake. Returns false if the client's address has had too many.
    pub fn allows_handshake(&self, peer: Peer, headers: &HeaderMap) -> bool {
        self.allows_client(self.handshakes.as_ref(), peer, headers)
    }

    /// Counts a request for a token without the right key. Returns false if the client's address has had too many.
    pub fn allows_keyless_request(&self, peer: Peer, headers: &HeaderMap) -> bool {
        self.allows_client(self.keyless_requests.as_ref(), peer, headers)
    }

    /// Counts a token for `user`. Returns false if the user has had too many.
    pub fn allows_token(&self, user: &String) -> bool {
        self.tokens.as_ref().is_none_or(|rate| rate.take(user, self.now_ms()))
    }

    /// Compares the bearer key of a request for a token with the endpoint's.
    pub fn check_api_key(&self, given: Option<&str>) -> ApiKey {
        match &self.token_api_key {
            None => ApiKey::NotNeeded,
            Some(key) if given.is_some_and(|given| same_secret(given, &key.get())) => ApiKey::Right,
            Some(_) => ApiKey::Wrong,
        }
    }

    /// Returns false if the request comes from a page that may not open sockets.
    pub fn allows_origin(&self, headers: &HeaderMap) -> bool {
        match &self.allowed_origins {
            Origins::Any => true,
            Origins::Only(allowed) => headers.get_all(ORIGIN).iter().all(|origin| allowed.contains(origin)),
        }
    }

    /// Returns what REST reads need.
    pub fn read_auth(&self) -> ReadAuth {
        self.read_auth
    }

    /// Drops rates that are whole again, so that they do not pile up.
    pub fn forget_old_rates(&self) {
        let now_ms = self.now_ms();
        for rate in [&self.handshakes, &self.keyless_requests].into_iter().flatten() {
            rate.forget(now_ms);
        }
        if let Some(rate) = &self.tokens {
            rate.forget(now_ms);
        }
    }

    fn allows_client(&self, rate: Option<&KeyedRate<ClientKey>>, peer: Peer, headers: &HeaderMap) -> bool {
        let client = || self.trusted_proxies.client(peer.0.ip(), headers);
        rate.is_none_or(|rate| rate.take(&client(), self.now_ms()))
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// The settings of [`Access`].
#[derive(Clone, Debug)]
pub struct AccessSettings {
    /// `None`: the token endpoint needs no key.
    pub token_api_key: Option<Live<Secret>>,
    /// True if the token endpoint may be open on any listener.
    pub allow_open_tokens: bool,
    /// `None`: no limit.
    pub token_rate: Option<Rate>,
    /// What REST reads need.
    pub read_auth: ReadAuth,
    /// The origins whose pages may open sockets.
    pub allowed_origins: Origins,
    /// The proxies that are trusted to name their clients.
    pub trusted_proxies: Proxies,
    /// `None`: no limit.
    pub handshake_rate: Option<Rate>,
}

impl AccessSettings {
    /// Reads the settings. A key from a file goes into `files`: it follows the file.
    pub fn read(settings: &mut Settings, files: &mut Vec<SecretFile>) -> Self {
        let rate = |limit: u32, per: fn(u32) -> Rate| (limit > 0).then(|| per(limit));
        Self {
            token_api_key: token_api_key(settings, files),
            allow_open_tokens: settings.value(&ALLOW_OPEN_TOKENS),
            token_rate: rate(settings.value(&TOKEN_RATE_LIMIT), Rate::per_minute),
            read_auth: settings.value(&READ_AUTH),
            allowed_origins: settings.value(&ALLOWED_ORIGINS),
            trusted_proxies: settings.value(&TRUSTED_PROXIES),
            handshake_rate: rate(settings.value(&HANDSHAKE_RATE_LIMIT), Rate::per_second),
        }
    }
}

/// What a REST read needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadAuth {
    /// Nothing.
    None,
    /// A client token with the market in its scope.
    Token,
}

impl FromSetting for ReadAuth {
    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(Self::None),
            "token" => Ok(Self::Token),
            _ => Err(format!("{text:?} is neither none nor token")),
        }
    }
}

fn token_api_key(settings: &mut Settings, files: &mut Vec<SecretFile>) -> Option<Live<Secret>> {
    // A request with an empty key would have the right one.
    let check = |key: &Secret| match key.expose().trim() {
        "" => Err("must not be empty".to_owned()),
        _ => Ok(()),
    };
    let key: Secret = settings.optional(&TOKEN_API_KEY)?;
    if let Err(problem) = check(&key) {
        settings.problem(TOKEN_API_KEY.name(), &problem);
    }
    let key = Live::new(key);
    let in_use = key.clone();
    files.extend(settings.secret_file(&TOKEN_API_KEY, move |key| {
        check(key)?;
        in_use.set(key.clone());
        Ok(())
    }));
    Some(key)
}
