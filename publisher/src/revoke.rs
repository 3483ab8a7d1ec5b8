//! Taking clients' tokens back (contract, section 5).

use std::{borrow::Cow, time::Duration};

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

/// The longest request body, bytes: a user id, each of its characters escaped.
pub const MAX_REVOKE_BYTES: usize = 4096;
/// How long the backbone may take.
const REVOKE_TIMEOUT: Duration = Duration::from_secs(5);

/// What is wrong with a request. Shows nothing of it: somebody may send a token instead of its id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRevocation {
    /// Not one of the two members, alone.
    #[error(r#"the body must be {{"userId":…}} or {{"jti":"…"}}, and nothing else"#)]
    Shape,
    /// Not a user id.
    #[error("{0}")]
    User(String),
    /// Not a token's id.
    #[error("jti: a string of 1 to 128 characters: the token's claim, not the token")]
    Token,
}

/// Why tokens are not revoked, or may not be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotRevoked {
    /// As many revocations as may be.
    #[error(
        "not revoked: as many revocations are kept as may be; retry when the oldest is over, or change the keys"
    )]
    Full,
    /// No answer.
    #[error("outcome unknown: revoke again")]
    Unknown,
}

/// `200`: it is kept, and on its way to every gateway.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Revocation, description = "A revocation that is kept, and on its way to every gateway.")]
pub struct Answer {
    /// Whose tokens, if a user's.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    user_id: Option<String>,
    /// Which token, if one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    jti: Option<String>,
    /// Unix milliseconds.
    revoked_at: u64,
    /// Unix milliseconds at which it is forgotten, since every token that it is about has expired.
    expires_at: u64,
}

/// Whose tokens a request's body is about.
///
/// # Errors
/// [`InvalidRevocation`].
pub fn parse(body: &[u8]) -> Result<Revoked, InvalidRevocation> {
    match serde_json::from_slice(body).map_err(|_| InvalidRevocation::Shape)? {
        Asked { user_id: Some(id), jti: None } => {
            read_user_id(&id).map(Revoked::User).map_err(InvalidRevocation::User)
        }
        Asked { user_id: None, jti: Some(Value::String(id)) } if is_name(&id) => Ok(Revoked::Token(id)),
        Asked { user_id: None, jti: Some(_) } => Err(InvalidRevocation::Token),
        _ => Err(InvalidRevocation::Shape),
    }
}

/// A request's body, of whose members one is there.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Asked {
    user_id: Option<Value>,
    jti: Option<Value>,
}

impl PartialSchema for Asked {
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
            .description(Some("All tokens of a user that were issued up to now, or the one with this id."))
            .into()
    }
}

impl ToSchema for Asked {
    fn name() -> Cow<'static, str> {
        "RevocationRequest".into()
    }
}

/// Keeps the revocation, and says in the log who did it.
///
/// # Errors
/// [`NotRevoked`].
pub async fn run(
    backbone: &dyn Backbone,
    whom: Revoked,
    actor: &str,
    request_id: &str,
) -> Result<Answer, NotRevoked> {
    match timeout(REVOKE_TIMEOUT, backbone.revoke(whom, actor)).await {
        Ok(Ok(revocation)) => {
            let Revocation { revoked, ts } = &revocation;
            tracing::info!(actor, request_id, whom = ?revoked, ts, "tokens are revoked");
            Ok(Answer::from(revocation))
        }
        Ok(Err(RevokeError::Full)) => {
            tracing::error!(actor, request_id, "tokens are not revoked: too many revocations are kept");
            Err(NotRevoked::Full)
        }
        Ok(Err(RevokeError::Backbone(error))) => {
            tracing::error!(actor, request_id, %error, "tokens may not be revoked");
            Err(NotRevoked::Unknown)
        }
        Err(_) => {
            tracing::error!(actor, request_id, "tokens may not be revoked: no answer");
            Err(NotRevoked::Unknown)
        }
    }
}

impl From<Revocation> for Answer {
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
        for (body, answer) in [
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
            assert_eq!(parse(body.as_bytes()), answer, "{body}");
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
    async fn without_an_answer_the_outcome_is_unknown() {
        for failure in [Failure::NoReply, Failure::ConnectionRefused, Failure::ConnectionLost] {
            let answer = run(&FailingBackbone(failure), Revoked::User("1".into()), "desk-1", "r-1").await;
            assert_eq!(answer, Err(NotRevoked::Unknown), "{failure:?}");
        }
    }
}
