//! What the handlers of the admin API share.

use std::sync::Arc;

use backbone::Backbone;
use service::token::Keyring;

use crate::export::AuditCopy;

/// What the admin API needs.
#[derive(Clone)]
pub struct Admin {
    /// Holds the markets' logs and the audit.
    pub backbone: Arc<dyn Backbone>,
    /// The audit's copy in Postgres, if there is one.
    pub copy: Option<AuditCopy>,
    /// Verifies admin tokens; of [`service::token::Audience::Admin`].
    pub keys: Keyring,
}
