use std::sync::atomic::{AtomicUsize, Ordering};

use protocol::{
    Epoch, MarketState, Payload, Seq, TraceContext, client_message::Offset, server_message::SnapshotCause,
};

use super::*;
use crate::market::{Start, Wanted};

const BOUND: Bound = Bound { updates: 10, bytes: 10_000 };

fn id() -> MarketId {
    MarketId::new(1001).unwrap()
}

fn update(epoch: u64, seq: u64) -> Update {
    Update {
        position: Position::new(epoch, seq),
        ts: seq,
        payload: format!("{{\"l\":{{\"p\":{seq}.50}}}}").into(),
        trace: None,
    }
}

fn loaded(epoch: u64, updates: std::ops::RangeInclusive<u64>) -> Loaded {
    let updates: Vec<_> = updates.map(|seq| update(epoch, seq)).collect();
    let mut state = MarketState::default();
    for update in &updates {
        state.apply(update.position, update.ts, &Payload::parse(&update.payload).unwrap());
    }
    Loaded { state, updates }
}

fn resume(epoch: Option<u64>, seq: u64) -> Wanted {
    Wanted::new(id(), Start::After(Offset { epoch: epoch.map(Epoch::new), seq: Seq::new(seq) }))
}

#[test]
fn a_resume_waits_for_the_load_and_then_replays() {
    let markets = Markets::new(BOUND, 0, Box::new(|_| 0));
    let market = markets.follow(id());
    let mut wanted = resume(None, 3);
    assert_eq!(market.begin(&mut wanted, 500), None);
    assert_eq!(markets.take_loads(9), (vec![id()], true));
    markets.finish_load(id(), loaded(7, 1..=5), true);
    let begin = market.begin(&mut wanted, 500).unwrap();
    assert_eq!(
        (begin.cursor, begin.latest, begin.snapshot),
        (Position::new(7, 3), Position::new(7, 5), None)
    );
}

#[test]
fn history_is_read_once_and_joins_what_is_live() {
    let markets = Markets::new(BOUND, 0, Box::new(|_| 0));
    let market = markets.follow(id());
    let all = loaded(7, 1..=6);
    markets.finish_load(id(), Loaded { state: all.state.clone(), updates: Vec::new() }, false);
    assert_eq!(markets.finish_read(id(), &[update(7, 6), update(7, 7)]), 1);
    let mut wanted = resume(None, 2);
    assert_eq!(market.begin(&mut wanted, 500), None);
    markets.finish_load(id(), all, true);
    assert_eq!(market.begin(&mut wanted, 500).unwrap().cursor, Position::new(7, 2));
    assert_eq!(market.state().unwrap().position, Position::new(7, 7));
}

#[test]
fn history_that_was_loaded_ahead_of_the_tail_replaces_nothing() {
    let markets = Markets::new(BOUND, 0, Box::new(|_| 0));
    let market = markets.follow(id());
    let state = loaded(7, 1..=6).state;
    markets.finish_load(id(), Loaded { state, updates: Vec::new() }, false);
    let mut view = market.view();
    assert_eq!(market.begin(&mut resume(None, 2), 500), None);
    markets.finish_load(id(), loaded(7, 1..=8), true);
    assert!(!view.catch_up(&market.view()), "no client is reset");
    assert_eq!(markets.finish_read(id(), &[update(7, 7), update(7, 8)]), 2);
    assert_eq!(market.begin(&mut resume(None, 2), 500).unwrap().cursor, Position::new(7, 2));
    assert_eq!(market.state().unwrap().position, Position::new(7, 8));
}

#[test]
fn a_load_without_history_leaves_a_later_wish_for_it_open() {
    let markets = Markets::new(BOUND, 0, Box::new(|_| 0));
    let market = markets.follow(id());
    assert_eq!(market.begin(&mut Wanted::new(id(), Start::Live), 500), None);
    assert_eq!(markets.take_loads(9), (vec![id()], false));
    assert_eq!(market.begin(&mut resume(None, 2), 500), None);
    markets.finish_load(id(), Loaded { state: loaded(7, 1..=6).state, updates: Vec::new() }, false);
    assert_eq!(markets.take_loads(9), (vec![id()], true));
}

#[test]
fn a_client_ahead_is_reset_only_once_the_log_was_asked_after_it_came() {
    let markets = Markets::new(BOUND, 0, Box::new(|_| 0));
    let market = markets.follow(id());
    markets.finish_load(id(), loaded(7, 1..=5), true);
    let read = |updates: &[Update]| {
        markets.finish_read(id(), updates);
        markets.take_doubted([id()])
    };
    let _ = markets.begin_reads(9, &HashSet::new());
    let mut wanted = resume(Some(7), 6);
    assert_eq!(market.begin(&mut wanted, 500), None);
    assert_eq!(read(&[]), [id()]);
    markets.check(id(), Position::new(7, 5));
    assert_eq!(market.begin(&mut wanted, 500), None, "that read began before the request");
    assert_eq!(markets.begin_reads(9, &HashSet::new()), Some((0, vec![(id(), Position::new(7, 5))])));
    assert_eq!(read(&[]), [id()]);
    markets.check(id(), Position::new(7, 6));
    assert_eq!(market.begin(&mut wanted, 500), None, "the pod is behind");
    let _ = markets.begin_reads(9, &HashSet::new());
    read(&[update(7, 6)]);
    assert_eq!(market.begin(&mut wanted, 500).unwrap().snapshot, None);
    let mut wanted = resume(Some(7), 9);
    assert_eq!(market.begin(&mut wanted, 500), None);
    let _ = markets.begin_reads(9, &HashSet::new());
    assert_eq!(read(&[]), [id()]);
    markets.check(id(), Position::new(7, 6));
    assert_eq!(market.begin(&mut wanted, 500).unwrap().snapshot, Some(SnapshotCause::Reset));
}

#[test]
fn a_notification_that_came_too_late_for_a_watcher_does_not_silence_the_next() {
    #[derive(Default)]
    struct Notifications(AtomicUsize);

    impl Watcher for Notifications {
        fn notify(&self, _: MarketId) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }

        fn trace(&self, _: MarketId, _: Position, _: TraceContext) {}

        fn flush(&self) {}
    }

    let notifications = Arc::new(Notifications::default());
    let markets = Markets::new(BOUND, 1, Box::new(|_| 0));
    markets.set_watchers(vec![Arc::clone(&notifications) as Arc<dyn Watcher>]);
    let market = markets.follow(id());
    market.watches.set(0, true);
    markets.finish_load(id(), loaded(7, 1..=5), true);
    // Its last subscriber is gone before it looks, and the next one comes.
    market.watches.set(0, false);
    market.watches.set(0, true);
    markets.finish_read(id(), &[update(7, 6)]);
    assert_eq!(notifications.0.load(Ordering::SeqCst), 2);
}

#[test]
fn another_epoch_is_reloaded() {
    let markets = Markets::new(BOUND, 0, Box::new(|_| 0));
    let market = markets.follow(id());
    markets.finish_load(id(), loaded(7, 1..=5), true);
    assert_eq!(markets.finish_read(id(), &[update(8, 6)]), 0);
    assert_eq!(markets.take_loads(9), (vec![id()], true));
    markets.finish_load(id(), loaded(8, 6..=6), true);
    assert_eq!(market.state().unwrap().position, Position::new(8, 6));
    assert_eq!(market.begin(&mut resume(Some(7), 5), 500).unwrap().snapshot, Some(SnapshotCause::Reset));
}

#[test]
fn what_changed_is_read_before_what_the_sweep_marked_and_once() {
    let markets = Markets::new(BOUND, 0, Box::new(|_| 0));
    let ids = [1, 2, 3, 4].map(|id| MarketId::new(id).unwrap());
    for id in ids {
        let _ = markets.follow(id);
        markets.finish_load(id, loaded(7, 1..=5), true);
    }
    let taken = |max| {
        let (_, batch) = markets.begin_reads(max, &HashSet::new()).unwrap();
        batch.into_iter().map(|(id, _)| id.get()).collect::<Vec<_>>()
    };
    assert_eq!(taken(9), [1, 2, 3, 4], "a read follows each load");
    markets.sweep(Instant::now());
    markets.work.mark_changed([ids[2]]);
    assert_eq!(taken(2), [3, 1]);
    markets.work.mark_changed([ids[3]]);
    assert_eq!(taken(9), [4, 2]);
    assert!(markets.begin_reads(9, &HashSet::new()).is_none());
}

#[test]
fn a_market_without_holders_is_followed_for_a_grace_period() {
    let markets = Markets::new(BOUND, 0, Box::new(|_| 0));
    let held = markets.follow(id());
    let now = Instant::now();
    markets.sweep(now);
    markets.sweep(now + 2 * GRACE);
    assert_eq!(markets.len(), 1);
    drop(held);
    markets.sweep(now + 2 * GRACE);
    assert_eq!(markets.len(), 1);
    markets.sweep(now + 3 * GRACE);
    assert_eq!(markets.len(), 0);
}
