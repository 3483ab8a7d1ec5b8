//! What the admin API's handlers share.

use std::sync::Arc;

use backbone::Backbone;
use service::token::Keyring;

use crate::export::AuditCopy;

/// What the admin API stands on.
#[derive(Clone)]
pub struct Admin {
    /// Where overrides go.
    pub backbone: Arc<dyn Backbone>,
    /// Where the audit is copied to.
    pub copy: Option<AuditCopy>,
    /// Who is let in; of [`service::token::Audience::Admin`].
    pub keys: Keyring,
}
