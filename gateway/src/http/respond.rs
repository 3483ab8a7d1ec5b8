//! JSON responses with payloads. The payloads are written byte for byte, and the bytes of all long responses have a bound.

use axum::{body::Bytes, response::Response};
use protocol::error::ErrorCode;
use serde::{Serialize, Serializer, ser::Error};
use serde_json::value::RawValue;
use service::http::json_text;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::problem::Problem;

/// Responses up to this length are not counted.
const SHORT_BYTES: usize = 64 * 1024;
/// The bytes of all longer responses that are not sent yet. A single one has at most about 16 MiB.
const MAX_UNSENT_BYTES: usize = 128 * 1024 * 1024;
static UNSENT: Semaphore = Semaphore::const_new(MAX_UNSENT_BYTES);

/// Responds with `body` as JSON. A long response is a 503 unless there is room for it until the kernel has accepted all
/// of it.
///
/// The number of responses under construction has a bound as well. Between its read and this call none of the runtime's
/// threads waits, and reads from Redis are bounded by its connections.
pub(super) fn respond(body: &impl Serialize) -> Result<Response, Problem> {
    let mut json = serde_json::to_string(body).map_err(|error| {
        tracing::error!(%error, "a market in the backbone is not JSON");
        Problem::unreadable("the market")
    })?;
    if json.len() <= SHORT_BYTES {
        return Ok(json_text(json));
    }
    json.shrink_to_fit();
    let room = u32::try_from(json.len()).ok().and_then(|bytes| UNSENT.try_acquire_many(bytes).ok());
    let room = room.ok_or_else(|| {
        let message = "too many long answers are on their way: retry, or ask for less";
        Problem::new(ErrorCode::ServiceUnavailable, message)
    })?;
    Ok(json_text(Bytes::from_owner(Unsent { json, _room: room })))
}

/// A long response. The connection drops it once it is sent, or when the connection ends.
struct Unsent {
    json: String,
    _room: SemaphorePermit<'static>,
}

impl AsRef<[u8]> for Unsent {
    fn as_ref(&self) -> &[u8] {
        self.json.as_bytes()
    }
}

/// JSON text that goes into a response byte for byte. Text that is not JSON makes serialising fail.
pub(super) struct JsonText<'a>(pub(super) &'a str);

impl Serialize for JsonText<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serde_json::from_str::<&RawValue>(self.0).map_err(S::Error::custom)?.serialize(serializer)
    }
}

/// Returns true for `false`: such a member is left out.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
pub(super) const fn is_false(value: &bool) -> bool {
    !*value
}
