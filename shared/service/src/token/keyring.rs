//! The keys of one audience: read from settings, and replaced while the process runs.

use std::fmt;

use protocol::{Secret, time::unix_ms};
use serde::Serialize;
use serde_json::Value;

use super::{
    claims::{AllClaims, Audience, Audiences, Claims, ISSUER},
    key::Key,
    verification::{self, TokenError},
};
use crate::{
    rotation::{Live, SecretFile},
    settings::{Setting, Settings},
};

/// The shortest secret, bytes: as long as an HS256 signature, RFC 7518 section 3.2.
const MIN_SECRET_BYTES: usize = 32;

/// Signs and verifies clients' tokens.
pub const JWT_SECRET: Setting<Secret> = Setting::new(
    "JWT_SECRET",
    "",
    "signs and verifies clients' tokens, 32 bytes or more; several: kid1:secret1,kid2:secret2, the first signs; embedded: random",
);
/// Signs and verifies admin tokens.
pub const ADMIN_JWT_SECRET: Setting<Secret> = Setting::new(
    "ADMIN_JWT_SECRET",
    "",
    "required: signs and verifies admin tokens, 32 bytes or more; several: kid1:secret1,kid2:secret2, the first signs",
);

/// Signs and verifies the tokens of one audience. The first key signs. Keys with names verify only tokens whose `kid` is
/// that name. Clones share the keys, also after [`Keyring::replace`].
#[derive(Clone)]
pub struct Keyring {
    keys: Live<Vec<Key>>,
    audience: Audience,
}

/// Why a text is not a keyring.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidKeys {
    /// A secret is too short.
    #[error("each secret must have at least {MIN_SECRET_BYTES} bytes; make one with: openssl rand -hex 32")]
    TooShort,
    /// There are several keys, and one has no name, or two have the same.
    #[error("several keys are written kid1:secret1,kid2:secret2, each with its own name")]
    BadNames,
}

impl Keyring {
    /// Reads `secret`, or `kid1:secret1,kid2:secret2` (`docs/operations.md#secrets-and-tokens`).
    ///
    /// # Errors
    /// [`InvalidKeys`] for a short secret or unclear names.
    pub fn parse(secrets: &Secret, audience: Audience) -> Result<Self, InvalidKeys> {
        Ok(Self { keys: Live::new(parse_keys(secrets)?), audience })
    }

    /// Reads the keyring of `setting`. Returns `None` if it is not set, or invalid, which is a problem.
    /// If the keys come from a file, `files` gets that file: the keyring is replaced when the file changes.
    #[must_use]
    pub fn read(
        settings: &mut Settings,
        setting: &Setting<Secret>,
        audience: Audience,
        files: &mut Vec<SecretFile>,
    ) -> Option<Self> {
        match Self::parse(&settings.optional(setting)?, audience) {
            Ok(keys) => {
                let followed = keys.clone();
                files.extend(settings.secret_file(setting, move |secrets| {
                    followed.replace(secrets).map_err(|error| error.to_string())
                }));
                Some(keys)
            }
            Err(error) => {
                settings.problem(setting.name(), &error.to_string());
                None
            }
        }
    }

    /// Reads the keyring as [`Keyring::read`] does. A missing one is a problem.
    #[must_use]
    pub fn required(
        settings: &mut Settings,
        setting: &Setting<Secret>,
        audience: Audience,
        files: &mut Vec<SecretFile>,
    ) -> Option<Self> {
        settings.required(setting)?;
        Self::read(settings, setting, audience, files)
    }

    /// Makes a keyring of one random key without a name, for a system whose tokens need not outlive the process.
    #[must_use]
    pub fn random(audience: Audience) -> Self {
        Self { keys: Live::new(vec![Key::hs256(None, &rand::random::<[u8; 32]>())]), audience }
    }

    /// Replaces the keys of this keyring and of all its clones. Invalid keys change nothing.
    ///
    /// # Errors
    /// [`InvalidKeys`], as [`Keyring::parse`].
    pub fn replace(&self, secrets: &Secret) -> Result<(), InvalidKeys> {
        self.keys.set(parse_keys(secrets)?);
        Ok(())
    }

    /// Returns a token with these claims for this keyring's audience.
    #[must_use]
    pub fn sign(&self, claims: &impl Serialize) -> String {
        let aud = Audiences::One(self.audience().to_owned());
        self.keys.get()[0].sign(&AllClaims { claims, iss: ISSUER.to_owned(), aud, nbf: None })
    }

    /// Returns the claims of a token that one of these keys signed for this audience, if it is valid now.
    ///
    /// # Errors
    /// [`TokenError`], but never [`TokenError::Revoked`].
    pub fn verify<C: Claims>(&self, token: &str) -> Result<C, TokenError> {
        self.verify_at(token, unix_ms())
    }

    /// Does the same at a time of the caller's, Unix milliseconds.
    pub(super) fn verify_at<C: Claims>(&self, token: &str, now_ms: u64) -> Result<C, TokenError> {
        verification::verify(&self.keys.get(), self.audience, token, now_ms)
    }

    /// Returns the audience, as `aud` has it.
    #[must_use]
    pub const fn audience(&self) -> &'static str {
        self.audience.as_str()
    }

    /// Returns true if there is a key for tokens with this `kid`.
    #[must_use]
    pub fn has_key(&self, kid: Option<&str>) -> bool {
        self.keys.get().iter().any(|key| key.verifies(kid))
    }

    /// Returns true if one of these keys signed the token, whatever the token's claims are.
    #[must_use]
    pub fn has_signed(&self, token: &str) -> bool {
        self.keys.get().iter().any(|key| key.claims::<Value>(token).is_some())
    }
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keyring({} keys, {:?})", self.keys.get().len(), self.audience)
    }
}

/// Reads at least one key.
fn parse_keys(secrets: &Secret) -> Result<Vec<Key>, InvalidKeys> {
    let entries: Vec<&str> = secrets.expose().split(',').collect();
    let mut keys: Vec<Key> = Vec::with_capacity(entries.len());
    for entry in &entries {
        let (kid, secret) = match entry.split_once(':') {
            Some((kid, secret)) if is_kid(kid) => (Some(kid.to_owned()), secret),
            _ if entries.len() > 1 => return Err(InvalidKeys::BadNames),
            _ => (None, *entry),
        };
        if secret.len() < MIN_SECRET_BYTES {
            return Err(InvalidKeys::TooShort);
        }
        if keys.iter().any(|key| key.kid() == kid.as_deref()) {
            return Err(InvalidKeys::BadNames);
        }
        keys.push(Key::hs256(kid, secret.as_bytes()));
    }
    Ok(keys)
}

fn is_kid(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}
