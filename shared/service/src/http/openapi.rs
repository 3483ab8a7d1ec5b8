//! Builds OpenAPI 3.1 documents: operations around schemas that are derived from the types of requests and responses.
//!
//! The one table of [`ErrorCode`] describes each error, so that an operation only names its codes.

use std::sync::LazyLock;

use axum::{
    http::header::CONTENT_TYPE,
    response::{IntoResponse, Response},
};
use protocol::error::{ErrorBody, ErrorCode};
use serde_json::{Map, Value, json};
use utoipa::{ToSchema, openapi::path::Parameter};

/// A document that is being built.
pub struct Document {
    root: Value,
    /// The headers of every response that a handler makes.
    headers: Value,
}

/// A request and its responses.
pub struct Operation {
    value: Value,
    schemas: Vec<(String, Value)>,
}

/// Responds with a document's text.
#[must_use]
pub fn serve(text: &'static LazyLock<String>) -> Response {
    ([(CONTENT_TYPE, "application/json")], text.as_str()).into_response()
}

impl Document {
    /// Makes a document without operations. `headers` are those of every response, `security` the schemes by name.
    #[must_use]
    pub fn new(title: &str, description: &str, headers: Value, security: &Value) -> Self {
        let root = json!({
            "openapi": "3.1.0",
            "info": {
                "title": title,
                "version": env!("CARGO_PKG_VERSION"),
                "description": description,
                "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
            },
            "paths": {},
            "components": { "schemas": {}, "responses": {}, "securitySchemes": security },
        });
        let mut document = Self { root, headers };
        document.schemas(schemas_of::<ErrorBody<'_>>());
        document
    }

    /// Adds the operation of `method`, in lower case, at `path`.
    #[must_use]
    pub fn with(mut self, method: &str, path: &str, operation: Operation) -> Self {
        let Operation { mut value, schemas } = operation;
        self.schemas(schemas);
        for (_, response) in value["responses"].as_object_mut().into_iter().flatten() {
            if let Some(name) = response["$ref"].as_str().and_then(|name| name.strip_prefix(RESPONSES)) {
                let code = ErrorCode::ALL.into_iter().find(|code| code.as_str() == name);
                let mut refusal = code.map(refusal::<ErrorBody<'_>>).unwrap_or_default();
                let mut headers = self.headers.clone();
                for (_, header) in headers.as_object_mut().into_iter().flatten() {
                    header["required"] = code.is_some_and(|code| !LISTENER_ERRORS.contains(&code)).into();
                }
                extend(&mut refusal["headers"], &headers);
                self.root["components"]["responses"][name] = refusal;
            } else {
                extend(&mut response["headers"], &self.headers);
            }
        }
        self.root["paths"][path][method] = value;
        self
    }

    /// Returns the document as text.
    #[must_use]
    pub fn text(&self) -> String {
        format!("{:#}\n", self.root)
    }

    fn schemas(&mut self, schemas: Vec<(String, Value)>) {
        for (name, schema) in schemas {
            self.root["components"]["schemas"][name] = schema;
        }
    }
}

impl Operation {
    /// Makes an operation. `id` is for generated clients, `summary` is one line, `description` may be Markdown.
    #[must_use]
    pub fn new(id: &str, summary: &str, description: &str) -> Self {
        let value = json!({
            "operationId": id,
            "summary": summary,
            "description": description,
            "responses": {},
        });
        Self { value, schemas: Vec::new() }.refuses(&LISTENER_ERRORS)
    }

    /// Requires one of `alternatives`; `{}` requires nothing.
    #[must_use]
    pub fn security(mut self, alternatives: Value) -> Self {
        self.value["security"] = alternatives;
        self
    }

    /// Makes the operation that responds with the document itself.
    #[must_use]
    pub fn document(id: &str) -> Self {
        let schema = json!({ "type": "object", "required": ["openapi", "info", "paths"] });
        Self::new(id, "This document", "OpenAPI 3.1.").security(json!([])).response(
            200,
            json!({ "description": "The document.", "content": { "application/json": { "schema": schema } } }),
        )
    }

    /// Adds parameters that are derived from a type.
    #[must_use]
    pub fn parameters(self, parameters: Vec<Parameter>) -> Self {
        parameters.into_iter().fold(self, |operation, parameter| operation.parameter(json!(parameter)))
    }

    /// Adds a parameter, as JSON of the document.
    #[must_use]
    pub fn parameter(mut self, parameter: Value) -> Self {
        match self.value["parameters"].as_array_mut() {
            Some(parameters) => parameters.push(parameter),
            None => self.value["parameters"] = json!([parameter]),
        }
        self
    }

    /// Adds a JSON body.
    #[must_use]
    pub fn body<T: ToSchema>(self, example: &Value) -> Self {
        let media_type = json!({ "schema": reference::<T>(), "example": example });
        self.body_as("application/json", media_type).schemas::<T>()
    }

    /// Adds a body of another type, as JSON of the document.
    #[must_use]
    pub fn body_as(mut self, content_type: &str, media_type: Value) -> Self {
        self.value["requestBody"]["required"] = true.into();
        self.value["requestBody"]["content"][content_type] = media_type;
        self
    }

    /// Adds a 200 with JSON.
    #[must_use]
    pub fn ok<T: ToSchema>(self, description: &str, headers: &Value, example: &Value) -> Self {
        let content = json!({ "application/json": { "schema": reference::<T>(), "example": example } });
        self.response(200, json!({ "description": description, "headers": headers, "content": content }))
            .schemas::<T>()
    }

    /// Adds any response, as JSON of the document.
    #[must_use]
    pub fn response(mut self, status: u16, response: Value) -> Self {
        self.value["responses"][status.to_string()] = response;
        self
    }

    /// Adds error responses.
    #[must_use]
    pub fn refuses(self, codes: &[ErrorCode]) -> Self {
        codes.iter().fold(self, |operation, code| {
            operation.response(code.status(), json!({ "$ref": format!("{RESPONSES}{}", code.as_str()) }))
        })
    }

    /// Adds a schema that the operation refers to.
    #[must_use]
    pub fn schemas<T: ToSchema>(mut self) -> Self {
        self.schemas.extend(schemas_of::<T>());
        self
    }
}

/// The place of responses that several operations make.
const RESPONSES: &str = "#/components/responses/";
/// The errors that the listener itself responds with, without the headers that handlers add: the header is too long, or the
/// listener is full or about to end.
const LISTENER_ERRORS: [ErrorCode; 2] = [ErrorCode::HeaderTooLarge, ErrorCode::ServiceUnavailable];

/// Returns `{"$ref":…}` to a type's schema.
#[must_use]
pub fn reference<T: ToSchema>() -> Value {
    json!({ "$ref": format!("#/components/schemas/{}", T::name()) })
}

/// Returns a type's schema, and those that it refers to, by name.
fn schemas_of<T: ToSchema>() -> Vec<(String, Value)> {
    let mut schemas = vec![(T::name().into_owned(), T::schema())];
    T::schemas(&mut schemas);
    schemas.into_iter().map(|(name, schema)| (name, json!(schema))).collect()
}

/// Returns an error response as [`super::refuse`] makes it, with a body that has the members of `T`.
#[must_use]
pub fn refusal<T: ToSchema>(code: ErrorCode) -> Value {
    let headers = match code {
        ErrorCode::Unauthorized => json!({ "WWW-Authenticate": header(&json!({ "const": "Bearer" })) }),
        ErrorCode::RateLimited | ErrorCode::ServiceUnavailable => {
            let seconds = json!({ "type": "integer", "minimum": 1, "description": "Seconds to wait." });
            json!({ "Retry-After": header(&seconds) })
        }
        _ => json!({}),
    };
    let own = json!({ "properties": { "code": { "const": code.as_str() } } });
    json!({
        "description": format!("`{}`: {}", code.as_str(), code.meaning()),
        "headers": headers,
        "content": { "application/json": { "schema": { "allOf": [reference::<T>(), own] } } },
    })
}

/// Returns a header that a response always has.
#[must_use]
pub fn header(schema: &Value) -> Value {
    json!({ "required": true, "schema": schema })
}

fn extend(object: &mut Value, more: &Value) {
    let mut all: Map<String, Value> = object.as_object().cloned().unwrap_or_default();
    all.extend(more.as_object().cloned().unwrap_or_default());
    *object = all.into();
}
