//! Revokes clients' tokens (`docs/protocol.md#post-admintokensrevoke--admin`).

use std::time::Duration;

use backbone::{Backbone, REVOCATION_TTL, Revocation, RevokeError, Revoked};
use protocol::user::{is_name, name_schema, read_user_id, user_id_schema};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::time::timeout;
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{
        Object, RefOr, Schema, Type,
        schema::{AdditionalProperties, OneOf},
    },
};

/// The longest request body, bytes: a user id with every character escaped.
pub(crate) const MAX_REVOKE_BYTES: usize = 4096;
/// How long the backbone may take to reply.
const REVOKE_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a request is invalid. The message repeats nothing of the body, which may wrongly hold a token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InvalidRevocation {
    /// The body does not have exactly one of the two members.
    #[error(r#"the body must be {{"userId":…}} or {{"jti":"…"}}, and nothing else"#)]
    Shape,
    #[error("{0}")]
    User(String),
    #[error("jti: a string of 1 to 128 characters: the token's claim, not the token")]
    Token,
}

/// Why tokens are not revoked, or why that is unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotRevoked {
    /// The most revocations that are kept are still in force.
    #[error(
        "not revoked: no further revocation can be kept; retry when the oldest has expired, or change the keys"
    )]
    Full,
    /// The backbone did not reply.
    #[error("outcome unknown: revoke again")]
    Unknown,
}

/// The response to a request that revoked tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Revocation, description = "A revocation that is stored, and on its way to every gateway.")]
pub(crate) struct RevocationBody {
    /// The user whose tokens are revoked, if the request named one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    user_id: Option<String>,
    /// The id of the revoked token, if the request named one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    jti: Option<String>,
    /// When the tokens were revoked, in Unix milliseconds.
    revoked_at: u64,
    /// When the revocation is forgotten, in Unix milliseconds. Every token concerned has expired by then.
    expires_at: u64,
}

/// Reads which tokens to revoke from `{"userId":…}` or `{"jti":"…"}`.
///
/// # Errors
/// [`InvalidRevocation`].
pub(crate) fn parse(body: &[u8]) -> Result<Revoked, InvalidRevocation> {
    match serde_json::from_slice(body).map_err(|_| InvalidRevocation::Shape)? {
        RevocationRequest { user_id: Some(id), jti: None } => {
            read_user_id(&id).map(Revoked::User).map_err(InvalidRevocation::User)
        }
        RevocationRequest { user_id: None, jti: Some(Value::String(id)) } if is_name(&id) => {
            Ok(Revoked::Token(id))
        }
        RevocationRequest { user_id: None, jti: Some(_) } => Err(InvalidRevocation::Token),
        _ => Err(InvalidRevocation::Shape),
    }
}

/// A request's body. Exactly one of the members must be there.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct RevocationRequest {
    user_id: Option<Value>,
    jti: Option<Value>,
}

impl PartialSchema for RevocationRequest {
    fn schema() -> RefOr<Schema> {
        let nothing = || Object::with_type(Type::Null).into();
        let either = |user_id: RefOr<Schema>, jti: RefOr<Schema>| {
            Object::builder()
                .property("userId", user_id)
                .property("jti", jti)
                .additional_properties(Some(AdditionalProperties::FreeForm(false)))
        };
        OneOf::builder()
            .item(either(user_id_schema(), nothing()).required("userId"))
            .item(either(nothing(), name_schema()).required("jti"))
            .description(Some("All tokens of a user that were issued up to now, or the token with this id."))
            .into()
    }
}

impl ToSchema for RevocationRequest {}

/// Stores the revocation, and logs the actor.
///
/// # Errors
/// [`NotRevoked`].
pub(crate) async fn run(
    backbone: &dyn Backbone,
    revoked: Revoked,
    actor: &str,
    request_id: &str,
) -> Result<RevocationBody, NotRevoked> {
    match timeout(REVOKE_TIMEOUT, backbone.revoke(revoked, actor)).await {
        Ok(Ok(revocation)) => {
            let Revocation { revoked, ts } = &revocation;
            tracing::info!(actor, request_id, whom = ?revoked, ts, "tokens are revoked");
            Ok(RevocationBody::from(revocation))
        }
        Ok(Err(RevokeError::Full)) => {
            tracing::error!(actor, request_id, "tokens are not revoked: no further revocation can be kept");
            Err(NotRevoked::Full)
        }
        Ok(Err(RevokeError::Backbone(error))) => {
            tracing::error!(actor, request_id, %error, "it is unknown whether tokens are revoked: the backbone failed");
            Err(NotRevoked::Unknown)
        }
        Err(_) => {
            tracing::error!(
                actor,
                request_id,
                "it is unknown whether tokens are revoked: the backbone did not reply"
            );
            Err(NotRevoked::Unknown)
        }
    }
}

impl From<Revocation> for RevocationBody {
    fn from(Revocation { revoked, ts }: Revocation) -> Self {
        let (user_id, jti) = match revoked {
            Revoked::User(id) => (Some(id), None),
            Revoked::Token(id) => (None, Some(id)),
        };
        let ttl_ms = u64::try_from(REVOCATION_TTL.as_millis()).unwrap_or(u64::MAX);
        Self { user_id, jti, revoked_at: ts, expires_at: ts.saturating_add(ttl_ms) }
    }
}

#[cfg(test)]
mod tests {
    use backbone::{
        MemoryBackbone, Retention,
        failing::{FailingBackbone, Failure},
    };

    use super::*;

    #[test]
    fn a_request_names_one_user_or_one_token() {
        let user = |id: &str| Ok(Revoked::User(id.to_owned()));
        let long = "x".repeat(129);
        for (body, parsed) in [
            (r#"{"userId":42}"#.to_owned(), user("42")),
            (r#"{"userId":"42"}"#.to_owned(), user("42")),
            (r#"{"jti":"a"}"#.to_owned(), Ok(Revoked::Token("a".to_owned()))),
            (r#"{"jti":7}"#.to_owned(), Err(InvalidRevocation::Token)),
            (r#"{"jti":""}"#.to_owned(), Err(InvalidRevocation::Token)),
            (format!(r#"{{"jti":"{long}"}}"#), Err(InvalidRevocation::Token)),
            (String::new(), Err(InvalidRevocation::Shape)),
            ("{}".to_owned(), Err(InvalidRevocation::Shape)),
            (r#"{"userId":null}"#.to_owned(), Err(InvalidRevocation::Shape)),
            (r#"{"userId":1,"jti":"a"}"#.to_owned(), Err(InvalidRevocation::Shape)),
            (r#"{"userId":1,"userId":2}"#.to_owned(), Err(InvalidRevocation::Shape)),
            (r#"{"userId":1,"reason":"x"}"#.to_owned(), Err(InvalidRevocation::Shape)),
        ] {
            assert_eq!(parse(body.as_bytes()), parsed, "{body}");
        }
        for body in [r#"{"userId":1.5}"#.to_owned(), format!(r#"{{"userId":"{long}"}}"#)] {
            let Err(InvalidRevocation::User(message)) = parse(body.as_bytes()) else { panic!("{body}") };
            assert!(message.starts_with("userId") && !message.contains(&long));
        }
    }

    #[tokio::test]
    async fn one_revocation_too_many_is_refused() {
        let backbone = MemoryBackbone::new(Retention { revocations: 1, ..Retention::default() });
        let revoke = async |id: &str| run(&backbone, Revoked::User(id.into()), "desk-1", "r-1").await;
        let first = revoke("1").await.unwrap();
        assert_eq!(first.expires_at - first.revoked_at, 3_665_000);
        assert_eq!(revoke("2").await, Err(NotRevoked::Full));
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_reply_the_outcome_is_unknown() {
        for way in [Failure::NoReply, Failure::ConnectionRefused, Failure::ConnectionLost] {
            let result = run(&FailingBackbone(way), Revoked::User("1".into()), "desk-1", "r-1").await;
            assert_eq!(result, Err(NotRevoked::Unknown), "{way:?}");
        }
    }
}
