use proptest::prelude::*;

use super::*;
use crate::frame;

const BOUND: Bound = Bound { updates: 5, bytes: 10_000 };

fn encoded(seq: u64) -> EncodedUpdate {
    EncodedUpdate { frame: frame::text(&seq.to_string()), ts: seq }
}

fn log(epoch: u64, start: u64, latest: u64, bound: Bound) -> Log {
    let mut log = Log::at(Position::new(epoch, start), bound);
    for seq in start + 1..=latest {
        log.push(Position::new(epoch, seq), encoded(seq)).unwrap();
    }
    log
}

fn seqs(log: &Log, after: Position) -> Option<Vec<u64>> {
    match log.after(after) {
        After::Updates(updates) => {
            Some(updates.map(|update| frame::json(&update.frame).parse().unwrap()).collect())
        }
        After::CaughtUp => Some(Vec::new()),
        _ => None,
    }
}

#[test]
fn the_first_update_follows_the_origin() {
    let mut log = Log::at(Position::ORIGIN, BOUND);
    assert!(matches!(log.after(Position::ORIGIN), After::CaughtUp));
    log.push(Position::new(7, 1), encoded(1)).unwrap();
    assert_eq!(seqs(&log, Position::ORIGIN), Some(vec![1]));
    assert_eq!(log.push(Position::new(7, 3), encoded(3)).unwrap_err().next, Position::new(7, 3));
    assert!(log.push(Position::new(8, 2), encoded(2)).is_err());
}

#[test]
fn a_log_that_began_above_the_origin_is_another_history_for_a_client_at_the_origin() {
    let log = log(8, 30, 32, BOUND);
    assert!(matches!(log.after(Position::ORIGIN), After::OtherEpoch));
}

#[test]
fn recovery_follows_the_protocol_s_rule_3() {
    let log = log(7, 0, 20, BOUND);
    let recover = |epoch: Option<u64>, seq, max| log.recover(epoch.map(Epoch::new), Seq::new(seq), max);
    assert_eq!(recover(None, 18, 500), Recovery::Replay(Position::new(7, 18)));
    assert_eq!(recover(Some(7), 20, 500), Recovery::Replay(Position::new(7, 20)));
    assert_eq!(recover(Some(6), 18, 500), Recovery::Reset);
    assert_eq!(recover(Some(8), 18, 500), Recovery::NeedsFresh);
    assert_eq!(recover(None, 21, 500), Recovery::NeedsFresh);
    assert_eq!(recover(None, 14, 500), Recovery::NeedsHistory);
    assert_eq!(recover(None, 16, 3), Recovery::Reset);
    assert_eq!(recover(None, 17, 3), Recovery::Replay(Position::new(7, 17)));
}

proptest! {
    /// After any pushes and trims, a cursor gets exactly the updates that follow it, or none.
    #[test]
    fn a_cursor_gets_exactly_what_follows(start in 0u64..50, count in 0u64..30, cursor in 0u64..90, updates in 1usize..10, bytes in 1usize..60) {
        let log = log(7, start, start + count, Bound { updates, bytes });
        let latest = start + count;
        prop_assert!(log.frames.len() <= updates);
        prop_assert!(log.bytes <= bytes || log.frames.len() == 1);
        prop_assert_eq!(log.bytes, log.frames.iter().map(|update| update.frame.len()).sum::<usize>());
        let expected = (cursor >= log.start().get() && cursor <= latest).then(|| (cursor + 1..=latest).collect::<Vec<_>>());
        prop_assert_eq!(seqs(&log, Position::new(7, cursor)), expected);
    }

    /// A shard's view that catches up from time to time equals its source.
    #[test]
    fn a_view_that_catches_up_equals_its_source(steps in proptest::collection::vec((0u64..8, any::<bool>()), 1..12), epochs in proptest::collection::vec(any::<bool>(), 12)) {
        let mut source = Log::at(Position::ORIGIN, BOUND);
        let mut view = source.clone();
        for ((pushes, look), new_epoch) in steps.into_iter().zip(epochs) {
            let latest = source.latest();
            if new_epoch && latest != Position::ORIGIN {
                source = Log::at(Position::new(latest.epoch.get() + 1, latest.seq.get() + 1), BOUND);
            }
            for _ in 0..pushes {
                let epoch = source.latest().epoch.get().max(7);
                let seq = source.latest().seq.next().get();
                source.push(Position::new(epoch, seq), encoded(seq)).unwrap();
            }
            if look {
                view.catch_up(&source);
                prop_assert_eq!(view.latest(), source.latest());
                prop_assert_eq!(&view.frames, &source.frames);
                prop_assert_eq!(view.bytes, source.bytes);
            }
        }
    }

    /// History that is loaded later joins the log, and changes no update of it.
    #[test]
    fn older_updates_join_without_a_hole(older_start in 0u64..10, older_latest in 0u64..20, start in 0u64..20, latest in 0u64..25) {
        prop_assume!(older_start <= older_latest && start <= latest);
        let bound = Bound { updates: 100, bytes: 10_000 };
        let mut joined = log(7, start, latest, bound);
        joined.prepend(&log(7, older_start, older_latest, bound));
        let expected = if older_latest >= start { older_start.min(start) } else { start };
        prop_assert_eq!(joined.start().get(), expected);
        prop_assert_eq!(seqs(&joined, Position::new(7, expected)), Some((expected + 1..=latest).collect()));
    }
}
