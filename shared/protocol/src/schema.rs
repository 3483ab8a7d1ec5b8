//! JSON schemas that several messages and both OpenAPI documents use.

use utoipa::{
    ToSchema,
    openapi::{
        Object, Ref, RefOr, Schema, Type,
        schema::{AnyOf, ObjectBuilder},
    },
};

use crate::ids::MarketId;

/// Returns the schema of a market id in a request: a number or a decimal string.
#[must_use]
pub fn market_id() -> RefOr<Schema> {
    let text = Object::builder()
        .schema_type(Type::String)
        .pattern(Some("^[1-9][0-9]{0,15}$"))
        .description(Some("The same in decimal, without sign or leading zeros; at most 9007199254740991."));
    AnyOf::builder().item(Ref::from_schema_name(MarketId::name())).item(text).into()
}

/// Returns the schema of what `schema` allows, or `null`.
#[must_use]
pub fn nullable(schema: impl Into<RefOr<Schema>>, description: &str) -> RefOr<Schema> {
    AnyOf::builder().item(schema).item(Object::with_type(Type::Null)).description(Some(description)).into()
}

/// Returns the schema of a string of `min` to `max` characters without control characters.
#[must_use]
pub fn text(min: usize, max: usize) -> ObjectBuilder {
    Object::builder()
        .schema_type(Type::String)
        .min_length(Some(min))
        .max_length(Some(max))
        .pattern(Some(r"^[^\u0000-\u001f\u007f-\u009f]*$"))
}

/// Returns the schema of a page size from 1 to `most`.
#[must_use]
pub fn limit(default: usize, most: usize) -> RefOr<Schema> {
    Object::builder()
        .schema_type(Type::Integer)
        .minimum(Some(1_u64))
        .maximum(Some(most))
        .default(Some(default.into()))
        .into()
}

/// Returns the schema of the one boolean `VALUE`.
#[must_use]
pub fn always<const VALUE: bool>() -> RefOr<Schema> {
    Object::builder().schema_type(Type::Boolean).enum_values(Some([VALUE])).into()
}
