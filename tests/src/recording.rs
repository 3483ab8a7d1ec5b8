//! Generates the recorded horse race in `tests/feeds`, in the format of Betfair's historical exchange streams.
//!
//! The race, its runners and its prices are invented. The generator is seeded and calculates with integers, so it
//! writes the same bytes on every machine. `tests/it/recorded/recording.rs` compares them with the committed file.

#![expect(
    clippy::inconsistent_digit_grouping,
    reason = "prices are hundredths, grouped as they are read: 4_40"
)]

use std::{collections::BTreeSet, ops::RangeInclusive};

use serde::Serialize;

/// The recording's file name in `tests/feeds`.
pub const FILE: &str = "horse-race-1.201000001.ndjson";
/// The recorded market `1.201000001` as this system's market id.
pub const MARKET: u64 = 201_000_001;
/// Messages in the recording, one per line.
pub const LINES: u64 = 480;
/// Updates that a replay appends: two market definitions change neither a price nor the status.
pub const UPDATES: u64 = 478;

const MARKET_ID: &str = "1.201000001";
/// 2026-05-15 06:40 UTC, Unix milliseconds.
const START_MS: u64 = 1_778_827_200_000;
const SEED: u64 = 14;
/// Id, name and opening price in hundredths, by chance of winning.
const RUNNERS: [(u64, &str, u64); 14] = [
    (30_000_214, "Teapot Semaphore", 4_40),
    (9_100_377, "Gravel Sonata", 6_60),
    (30_000_518, "Marmalade Clause", 8_00),
    (8_400_129, "Brisk Umbrella", 9_40),
    (30_000_733, "Polite Comet", 12_00),
    (21_500_846, "Second Biscuit", 14_50),
    (9_100_905, "Velvet Turnstile", 17_00),
    (30_001_062, "Lantern Arithmetic", 22_00),
    (30_001_187, "Mostly Harbour", 27_00),
    (21_501_244, "Thistle Engine", 34_00),
    (8_400_391, "Woolly Parallax", 44_00),
    (30_001_470, "Copper Minuet", 60_00),
    (30_001_529, "Late Almanac", 95_00),
    (21_501_683, "Paper Gasket", 180_00),
];
/// The index in [`RUNNERS`] of the runner that is withdrawn.
const WITHDRAWN: usize = 2;
/// The index in [`RUNNERS`] of the winner.
const WINNER: usize = 1;

/// Returns the recording: [`LINES`] messages over 32 hours, each ended by a line feed.
#[must_use]
pub fn generate() -> String {
    let mut race = Race::new();
    race.define();

    race.trade(200, minutes(1_300));
    race.wait_until(minutes(1_300));
    race.market.status = "SUSPENDED";
    race.define();
    race.wait_until(minutes(1_305));
    race.market.status = "OPEN";
    race.withdraw(WITHDRAWN);

    race.trade(110, minutes(1_850));
    race.wait_until(minutes(1_850));
    race.market.suspend_time = "2026-05-16T14:34:00.000Z";
    race.define();

    race.trade(138, minutes(1_914));
    race.wait_until(minutes(1_914));
    race.market.status = "SUSPENDED";
    race.define();
    race.wait_until(minutes(1_914) + 4_000);
    race.market.bsp_reconciled = true;
    race.define();
    race.wait_until(minutes(1_914) + 9_000);
    race.market.status = "OPEN";
    race.market.in_play = true;
    race.market.bet_delay = 1;
    race.define();

    race.run(23, minutes(1_916));
    race.wait_until(minutes(1_916));
    race.market.status = "SUSPENDED";
    race.define();
    race.wait_until(minutes(1_920));
    race.settle();
    race.text
}

/// The market as it stands, and the messages written so far.
struct Race {
    random: Random,
    now_ms: u64,
    clock: u64,
    market: Definition,
    text: String,
}

impl Race {
    fn new() -> Self {
        Self {
            random: Random(SEED),
            now_ms: START_MS,
            clock: 7_000_000_000,
            market: Definition::new(),
            text: String::new(),
        }
    }

    /// Lets time pass until up to a second after `time_ms`.
    fn wait_until(&mut self, time_ms: u64) {
        self.now_ms = time_ms + self.random.within(0..=999);
    }

    /// Writes `count` messages with new prices of one to three runners, spread over the time until `end_ms`.
    fn trade(&mut self, count: u64, end_ms: u64) {
        let active = self.market.active();
        for left in (1..=count).rev() {
            self.wait_a_share(left, end_ms);
            let count = [1, 1, 1, 2, 3][self.random.below(5)];
            let traded: BTreeSet<usize> =
                (0..count).map(|_| active[self.random.below(active.len())]).collect();
            for &at in &traded {
                self.market.runners[at].trade(&mut self.random);
            }
            self.write(false, traded);
        }
    }

    /// Removes a runner. The other prices fall by its adjustment factor: the others share its chance of winning.
    fn withdraw(&mut self, withdrawn: usize) {
        let runner = &mut self.market.runners[withdrawn];
        runner.status = "REMOVED";
        runner.adjustment_factor = ladder::chance(runner.tick);
        let factor = runner.adjustment_factor;
        let others = self.market.active();
        for &at in &others {
            let Runner { home, tick, .. } = &mut self.market.runners[at];
            for tick in [home, tick] {
                *tick = ladder::tick(ladder::price(*tick) * (100_00 - factor) / 100_00);
            }
        }
        self.market.revise();
        self.write(true, others);
    }

    /// Writes `count` messages of the race itself: the winner's price falls to the lowest, the others rise.
    fn run(&mut self, count: u64, end_ms: u64) {
        for left in (1..=count).rev() {
            self.wait_a_share(left, end_ms);
            let mut traded = self.market.active();
            traded.retain(|&at| {
                let before = self.market.runners[at].tick;
                let after = if at == WINNER {
                    before - before / left
                } else {
                    let step = self.random.within(0..=2 * (ladder::LAST - before) / left);
                    (before + step).min(ladder::LAST)
                };
                self.market.runners[at].tick = after;
                after != before
            });
            self.write(false, traded);
        }
    }

    /// Closes the market and says which runner won.
    fn settle(&mut self) {
        self.market.status = "CLOSED";
        for at in self.market.active() {
            self.market.runners[at].status = if at == WINNER { "WINNER" } else { "LOSER" };
        }
        self.define();
    }

    /// Lets about one of `left` shares of the time until `end_ms` pass, always less than all of it.
    fn wait_a_share(&mut self, left: u64, end_ms: u64) {
        let share = (end_ms - self.now_ms) / (left + 1);
        self.now_ms += self.random.within(share / 2..=share * 3 / 2);
    }

    /// Writes a message with the market's definition.
    fn define(&mut self) {
        self.market.revise();
        self.write(true, []);
    }

    /// Writes a message: the definition if `defines`, and the prices of the runners that traded.
    fn write(&mut self, defines: bool, traded: impl IntoIterator<Item = usize>) {
        self.clock += self.random.within(1_000..=90_000);
        let prices = traded.into_iter().map(|at| &self.market.runners[at]);
        let change = MarketChange {
            id: MARKET_ID,
            market_definition: defines.then_some(&self.market),
            rc: prices
                .map(|runner| RunnerChange { ltp: ladder::price(runner.tick), id: runner.id })
                .collect(),
        };
        let message = Message { op: "mcm", clk: self.clock.to_string(), pt: self.now_ms, mc: [change] };
        self.text += &serde_json::to_string(&message).expect("it has no maps");
        self.text.push('\n');
    }
}

/// Returns the time so many minutes after the recording's first message, Unix milliseconds.
const fn minutes(minutes: u64) -> u64 {
    START_MS + minutes * 60_000
}

/// Prices at which the exchange trades, in hundredths, numbered from 0 (1.01) to [`ladder::LAST`] (1000).
mod ladder {
    /// How far each step goes, from the price that the line before ends at.
    const STEPS: [(u64, u64); 10] = [
        (2_00, 1),
        (3_00, 2),
        (4_00, 5),
        (6_00, 10),
        (10_00, 20),
        (20_00, 50),
        (30_00, 1_00),
        (50_00, 2_00),
        (100_00, 5_00),
        (1000_00, 10_00),
    ];
    const LOWEST: u64 = 1_01;
    /// The number of the highest price.
    pub const LAST: u64 = 349;

    /// Returns the price with this number.
    pub fn price(mut tick: u64) -> u64 {
        let mut from = LOWEST;
        for (to, step) in STEPS {
            let ticks = (to - from) / step;
            if tick <= ticks {
                return from + tick * step;
            }
            tick -= ticks;
            from = to;
        }
        from
    }

    /// Returns the number of the highest price that is not above `price`.
    pub fn tick(price: u64) -> u64 {
        (0..=LAST).rev().find(|&tick| self::price(tick) <= price).unwrap_or(0)
    }

    /// Returns the chance of winning that the price with this number implies, in hundredths of a percent.
    pub fn chance(tick: u64) -> u64 {
        100_00 * 1_00 / price(tick)
    }
}

/// Generates random numbers by SplitMix64: <https://prng.di.unimi.it/splitmix64.c>.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Returns a number in a range. The bias of the remainder does not matter here.
    fn within(&mut self, range: RangeInclusive<u64>) -> u64 {
        range.start() + self.next() % (range.end() - range.start() + 1)
    }

    /// Returns an index below `count`.
    fn below(&mut self, count: usize) -> usize {
        usize::try_from(self.within(0..=count as u64 - 1)).expect("it is an index")
    }
}

#[derive(Serialize)]
struct Message<'a> {
    op: &'static str,
    clk: String,
    /// When it was published, Unix milliseconds.
    pt: u64,
    mc: [MarketChange<'a>; 1],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct MarketChange<'a> {
    id: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    market_definition: Option<&'a Definition>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    rc: Vec<RunnerChange>,
}

#[derive(Serialize)]
struct RunnerChange {
    #[serde(serialize_with = "as_decimal")]
    ltp: u64,
    id: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
#[expect(clippy::struct_excessive_bools, reason = "the format has them")]
struct Definition {
    bsp_market: bool,
    turn_in_play_enabled: bool,
    persistence_enabled: bool,
    market_base_rate: f64,
    event_id: &'static str,
    event_type_id: &'static str,
    number_of_winners: u64,
    betting_type: &'static str,
    market_type: &'static str,
    market_time: &'static str,
    suspend_time: &'static str,
    bsp_reconciled: bool,
    complete: bool,
    in_play: bool,
    cross_matching: bool,
    runners_voidable: bool,
    number_of_active_runners: usize,
    bet_delay: u64,
    status: &'static str,
    runners: Vec<Runner>,
    regulators: [&'static str; 1],
    venue: &'static str,
    country_code: &'static str,
    discount_allowed: bool,
    timezone: &'static str,
    open_date: &'static str,
    version: u64,
    name: &'static str,
    event_name: &'static str,
}

impl Definition {
    fn new() -> Self {
        let runners = (1..).zip(RUNNERS).map(|(sort_priority, (id, name, opening))| {
            let home = ladder::tick(opening);
            Runner { adjustment_factor: 0, status: "ACTIVE", sort_priority, id, name, home, tick: home }
        });
        Self {
            bsp_market: true,
            turn_in_play_enabled: true,
            persistence_enabled: true,
            market_base_rate: 5.0,
            event_id: "39000001",
            event_type_id: "7",
            number_of_winners: 1,
            betting_type: "ODDS",
            market_type: "WIN",
            market_time: "2026-05-16T14:30:00.000Z",
            suspend_time: "2026-05-16T14:30:00.000Z",
            bsp_reconciled: false,
            complete: true,
            in_play: false,
            cross_matching: false,
            runners_voidable: false,
            number_of_active_runners: 0,
            bet_delay: 0,
            status: "OPEN",
            runners: runners.collect(),
            regulators: ["MR_INT"],
            venue: "Fennimere",
            country_code: "GB",
            discount_allowed: true,
            timezone: "Europe/London",
            open_date: "2026-05-16T12:50:00.000Z",
            version: 6_000_000_000,
            name: "1m2f Hcap",
            event_name: "Fenni 16th May",
        }
    }

    /// Returns the indices of the runners that still take part.
    fn active(&self) -> Vec<usize> {
        (0..self.runners.len()).filter(|&at| self.runners[at].status == "ACTIVE").collect()
    }

    /// Gives the definition its next version. Before the race, the adjustment factors follow the prices.
    fn revise(&mut self) {
        self.version += 1;
        let active = self.active();
        self.number_of_active_runners = active.len();
        if !self.in_play {
            for at in active {
                let runner = &mut self.runners[at];
                runner.adjustment_factor = ladder::chance(runner.tick);
            }
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Runner {
    /// [`ladder::chance`] of the price, by which other prices fall if the runner is withdrawn.
    #[serde(serialize_with = "as_decimal")]
    adjustment_factor: u64,
    status: &'static str,
    sort_priority: u64,
    id: u64,
    name: &'static str,
    /// The tick of the ladder that the price stays near before the race.
    #[serde(skip)]
    home: u64,
    /// The tick of the last traded price.
    #[serde(skip)]
    tick: u64,
}

impl Runner {
    /// Trades one to three ticks away, back towards `home` when it is 10 ticks off.
    fn trade(&mut self, random: &mut Random) {
        let step = random.within(1..=3);
        let rises = match self.tick {
            tick if tick + 10 <= self.home => true,
            tick if tick >= self.home + 10 => false,
            _ => random.within(0..=1) == 1,
        };
        self.tick = if rises { self.tick + step } else { self.tick - step };
    }
}

/// Writes hundredths as a decimal number.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it")]
#[expect(clippy::cast_precision_loss, reason = "they are far below 2^52")]
fn as_decimal<S: serde::Serializer>(hundredths: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(*hundredths as f64 / 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ladder_goes_from_1_01_to_1000() {
        assert_eq!((ladder::price(0), ladder::price(ladder::LAST)), (1_01, 1000_00));
        for (below, price, above) in
            [(1_99, 2_00, 2_02), (2_98, 3_00, 3_05), (9_80, 10_00, 10_50), (95_00, 100_00, 110_00)]
        {
            let tick = ladder::tick(price);
            assert_eq!([tick - 1, tick, tick + 1].map(ladder::price), [below, price, above]);
        }
        assert_eq!(ladder::price(ladder::tick(10_49)), 10_00);
    }

    /// The first numbers of the seed 1234567, as the reference implementation gives them.
    #[test]
    fn random_numbers_are_split_mix_64() {
        let mut random = Random(1_234_567);
        assert_eq!([random.next(), random.next()], [6_457_827_717_110_365_317, 3_203_168_211_198_807_973]);
    }
}
