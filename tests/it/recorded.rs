//! Recordings: the generated race, and real ones that lie beside the checkout.

mod recorded_market;
mod recording;
mod replay;
