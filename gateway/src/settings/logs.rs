//! The settings of the markets' logs in memory.

use service::{
    redis_settings,
    settings::{Setting, Settings},
};

/// The updates that a log keeps.
pub const HISTORY_LEN: Setting<usize> =
    redis_settings::HISTORY_LEN.with("1000", "updates kept in memory per market");
/// The updates that a resume replays.
pub const RESUME_MAX: Setting<usize> =
    Setting::new("RESUME_MAX", "500", "the most updates that a resume replays");

/// How long the logs are.
#[derive(Clone, Copy, Debug)]
pub struct Logs {
    /// Updates kept per market.
    pub history_len: usize,
    /// The most updates that a resume replays.
    pub resume_max: usize,
}

impl Logs {
    /// Reads the settings.
    pub fn read(settings: &mut Settings) -> Self {
        Self { history_len: settings.at_least_one(&HISTORY_LEN), resume_max: settings.value(&RESUME_MAX) }
    }
}
