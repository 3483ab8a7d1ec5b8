//! User ids, in requests and in tokens.

use serde_json::Value;
use utoipa::openapi::{Object, RefOr, Schema, Type, schema::AnyOf};

use crate::schema::text;

/// The longest user id, characters.
const MAX_USER_ID_CHARS: usize = 128;

/// Reads a user id from a request. It is an integer or a string there, and text in tokens.
///
/// # Errors
/// A sentence with what is expected.
pub fn read_user_id(value: &Value) -> Result<String, String> {
    match value {
        Value::Number(number) if number.is_u64() || number.is_i64() => Ok(number.to_string()),
        Value::String(text) if is_name(text) => Ok(text.clone()),
        Value::Null => Err("userId: required, an integer or a string".to_owned()),
        _ => Err(format!("userId: an integer, or a string of 1 to {MAX_USER_ID_CHARS} characters")),
    }
}

/// Returns the schema of what [`read_user_id`] accepts.
#[must_use]
pub fn user_id_schema() -> RefOr<Schema> {
    let number = Object::builder().schema_type(Type::Integer).minimum(Some(i64::MIN)).maximum(Some(u64::MAX));
    AnyOf::builder().item(number).item(name_schema()).description(Some("The user.")).into()
}

/// Returns the schema of a text that [`is_name`] accepts.
#[must_use]
pub fn name_schema() -> RefOr<Schema> {
    text(1, MAX_USER_ID_CHARS).into()
}

/// Returns true if a text can be a user id or a token's id.
#[must_use]
pub fn is_name(text: &str) -> bool {
    (1..=MAX_USER_ID_CHARS).contains(&text.chars().count()) && !text.contains(char::is_control)
}
