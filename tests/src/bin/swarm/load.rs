//! What publishes or asks for how much, and when.

mod append;
pub(crate) mod deliver;
mod overrides;
mod schedule;
pub(crate) mod tokens;

pub(crate) use self::append::{APPEND, Appender, Way, script_args};
pub(crate) use self::overrides::{AdminApi, Sent, closed_loop};
pub(crate) use self::schedule::{Schedule, Window, measure};
