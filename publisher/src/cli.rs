//! The publisher's commands at the terminal that need no settings of their own kind: `check`, `inspect`, `override`.

pub mod check;
pub mod inspect;
pub mod send;
