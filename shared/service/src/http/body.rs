//! Reads a request's body within bounds of size and time.

use std::time::Duration;

use axum::body::{Body, Bytes};
use http_body_util::BodyExt;
use tokio::time::timeout;

/// How long a body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// How many bytes of a body that is too large are read and discarded. A client that writes all of it before it reads then
/// gets the response, and not a broken connection.
const MAX_DISCARDED: usize = 32 * 1024 * 1024;

/// Why a body cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// The body is too long.
    #[error("the body has at most {max} bytes here")]
    TooLarge {
        /// The longest body that is accepted, bytes.
        max: usize,
    },
    /// The connection ended before the body did.
    #[error("the body broke off")]
    Broken,
    /// The client took too long to send it.
    #[error("the body did not arrive within {} s", BODY_TIMEOUT.as_secs())]
    TooSlow,
}

/// Reads a whole body of at most `max` bytes.
///
/// # Errors
/// [`BodyError`]. A body that is too large is read to its end first, up to 32 MiB.
pub async fn read(mut body: Body, max: usize) -> Result<Bytes, BodyError> {
    let whole = async {
        let mut kept = Vec::new();
        let mut length = 0_usize;
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(|_| BodyError::Broken)?.into_data() else { continue };
            length = length.saturating_add(data.len());
            if length <= max {
                kept.extend_from_slice(&data);
            } else if length > MAX_DISCARDED {
                break;
            } else {
                kept = Vec::new();
            }
        }
        if length > max { Err(BodyError::TooLarge { max }) } else { Ok(kept.into()) }
    };
    timeout(BODY_TIMEOUT, whole).await.unwrap_or(Err(BodyError::TooSlow))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_body_may_be_as_long_as_the_limit() {
        assert_eq!(read(Body::from("12345"), 5).await.unwrap(), "12345");
        assert_eq!(read(Body::from("123456"), 5).await, Err(BodyError::TooLarge { max: 5 }));
        assert_eq!(read(Body::empty(), 0).await.unwrap(), "");
    }
}
