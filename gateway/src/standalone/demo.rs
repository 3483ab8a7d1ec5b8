//! Invented markets with moving prices, for a first look.
//!
//! Four of them have only a moneyline. The other four also have a spread and a total, and are suspended now and then.

use std::{sync::Arc, time::Duration};

use backbone::{Append, Backbone};
use protocol::{MarketId, Payload};
use rand::{Rng, RngExt};

/// How often one market of each kind changes.
const EVERY: Duration = Duration::from_millis(400);
/// How many of its turns a suspended market stays suspended.
const SUSPENDED_TURNS: u32 = 3;
/// The mean number of turns before a market is suspended.
const TURNS_TO_SUSPENSION: f64 = 14.0;
/// The bookmaker's margin: fair odds are this many times the published ones.
const MARGIN: f64 = 1.05;

/// One invented market.
struct Market {
    id: u64,
    /// The chance that the home side wins.
    home: f64,
    /// The lines beside the moneyline.
    more: Option<More>,
}

struct More {
    /// The spread's points.
    spread: f64,
    /// The total's points.
    total: f64,
    /// The chance that the home side covers the spread.
    covers: f64,
    /// The chance of more points than the total.
    over: f64,
    in_play: bool,
    suspended_turns: u32,
}

/// All invented markets in their current state.
pub struct Demo {
    simple: Vec<Market>,
    full: Vec<Market>,
}

impl Default for Demo {
    fn default() -> Self {
        let simple = [(1001, 0.53), (1002, 0.63), (1003, 0.28), (1004, 0.49)];
        let full = [
            (1005, 0.66, -4.5, 221.5, true),
            (1006, 0.42, 2.5, 214.5, true),
            (1007, 0.51, -1.5, 48.5, false),
            (1008, 0.35, 6.5, 43.5, false),
        ];
        Self {
            simple: simple.map(|(id, home)| Market { id, home, more: None }).into(),
            full: full
                .map(|(id, home, spread, total, in_play)| {
                    let more = More { spread, total, covers: 0.5, over: 0.5, in_play, suspended_turns: 0 };
                    Market { id, home, more: Some(more) }
                })
                .into(),
        }
    }
}

impl Demo {
    /// Publishes the opening prices of all markets.
    pub async fn open(&self, backbone: &Arc<dyn Backbone>) {
        let all = self.simple.iter().chain(&self.full);
        backbone.append(all.filter_map(|market| append(market.id, &market.opening())).collect()).await;
    }

    /// Publishes changes until it is dropped.
    pub async fn run(mut self, backbone: Arc<dyn Backbone>) {
        let mut ticks = tokio::time::interval(EVERY);
        loop {
            ticks.tick().await;
            let changes = self.turn(&mut rand::rng());
            backbone.append(changes.iter().filter_map(|(id, payload)| append(*id, payload)).collect()).await;
        }
    }

    /// Changes one market of each kind. Returns their ids with the payloads to publish.
    fn turn(&mut self, rng: &mut impl Rng) -> Vec<(u64, String)> {
        [&mut self.simple, &mut self.full]
            .into_iter()
            .map(|markets| {
                let at = rng.random_range(0..markets.len());
                (markets[at].id, markets[at].turn(rng))
            })
            .collect()
    }
}

impl Market {
    fn opening(&self) -> String {
        match &self.more {
            None => format!("{{{}}}", self.moneyline()),
            Some(more) => {
                format!("{{{},{},{},{}}}", self.moneyline(), more.spread(), more.total(), more.status())
            }
        }
    }

    fn turn(&mut self, rng: &mut impl Rng) -> String {
        drift(&mut self.home, rng);
        let Some(more) = &mut self.more else { return format!("{{{}}}", self.moneyline()) };
        if more.suspended_turns > 0 {
            more.suspended_turns -= 1;
            // A market that opens again publishes all of its prices.
            return if more.suspended_turns == 0 { self.opening() } else { format!("{{{}}}", more.status()) };
        }
        if rng.random_bool(1.0 / TURNS_TO_SUSPENSION) {
            more.suspended_turns = SUSPENDED_TURNS;
            return format!("{{{}}}", more.status());
        }
        drift(&mut more.covers, rng);
        drift(&mut more.over, rng);
        // The points move once the chance is far from even.
        for (chance, points) in [(&mut more.covers, &mut more.spread), (&mut more.over, &mut more.total)] {
            if !(0.42..=0.58).contains(chance) {
                *points += if *chance > 0.5 { 1.0 } else { -1.0 };
                *chance = 0.5;
            }
        }
        let (spread, total) = (more.spread(), more.total());
        match rng.random_range(0..4) {
            0 => format!("{{{spread}}}"),
            1 => format!("{{{total}}}"),
            2 => format!("{{{},{spread},{total}}}", self.moneyline()),
            _ => format!("{{{}}}", self.moneyline()),
        }
    }

    fn moneyline(&self) -> String {
        format!(r#""moneyline":{{"home":{},"away":{}}}"#, price(self.home), price(1.0 - self.home))
    }
}

impl More {
    fn spread(&self) -> String {
        let Self { spread, covers, .. } = self;
        format!(r#""spread":{{"line":{spread:.1},"home":{},"away":{}}}"#, price(*covers), price(1.0 - covers))
    }

    fn total(&self) -> String {
        let Self { total, over, .. } = self;
        format!(r#""total":{{"line":{total:.1},"over":{},"under":{}}}"#, price(*over), price(1.0 - over))
    }

    fn status(&self) -> String {
        let state = if self.suspended_turns > 0 { "suspended" } else { "open" };
        format!(r#""status":{{"state":"{state}","inPlay":{}}}"#, self.in_play)
    }
}

fn drift(chance: &mut f64, rng: &mut impl Rng) {
    *chance = (*chance + rng.random_range(-0.015..=0.015)).clamp(0.1, 0.9);
}

fn price(chance: f64) -> String {
    format!("{:.2}", 1.0 / (chance * MARGIN))
}

fn append(market: u64, payload: &str) -> Option<Append> {
    Some(Append {
        market: MarketId::new(market).ok()?,
        payload: Payload::parse(payload).ok()?,
        expected_seq: None,
        idempotency: None,
        actor: "demo".to_owned(),
        reason: "invented".to_owned(),
        request_id: "demo".to_owned(),
        trace: None,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use protocol::overrides::Override;
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    #[test]
    fn a_trader_could_publish_every_invented_payload() {
        let mut demo = Demo::default();
        let mut rng = StdRng::seed_from_u64(1);
        let opening: Vec<_> =
            demo.simple.iter().chain(&demo.full).map(|market| (market.id, market.opening())).collect();
        let mut suspended = HashSet::new();
        for (id, payload) in
            opening.into_iter().chain((0..5000).flat_map(|_| demo.turn(&mut rng)).collect::<Vec<_>>())
        {
            let body = format!(r#"{{"marketId":{id},"payload":{payload}}}"#);
            assert!(Override::parse(&body).is_ok(), "{body}");
            assert!(append(id, &payload).is_some());
            if payload.contains("suspended") {
                suspended.insert(id);
            }
            let is_moneyline = payload.starts_with(r#"{"moneyline":{"#) && payload.matches('{').count() == 2;
            assert!(is_moneyline || id > 1004, "{body}");
        }
        assert_eq!(suspended, HashSet::from([1005, 1006, 1007, 1008]));
    }
}
