//! The conformance suite of the seam `backbone::Backbone`. It runs against each implementation and each topology of Redis.

use backbone::{
    Append, AppendError, Appended, AuditId, Backbone, ChangeListener, Changes, Idempotency, MemoryBackbone,
    RedisBackbone, Retention, RevokeError, Revoked, StreamId,
};

use protocol::{MarketId, Payload, Position, Seq, Update, server_message::odds_update};
use tests::{admin::numbered, eventually, fresh_market, within};

/// Small limits, so that the tests reach them.
const RETENTION: Retention = Retention {
    history_len: 100,
    audit_len: 1000,
    idempotency_ttl: std::time::Duration::from_hours(1),
    revocation_ttl: std::time::Duration::from_secs(3),
    revocations: 5,
};

/// Redis trims whole nodes of its radix tree, 100 entries each.
const TRIM_SLACK: usize = 100;

macro_rules! conformance {
    ($($sentence:ident),* $(,)?) => {
        conformance!(on single: tests::Redis = tests::Redis::start; $($sentence)*);
        conformance!(on tls: tests::Redis = tests::Redis::with_tls; $($sentence)*);
        conformance!(on acl_user: tests::Redis = tests::Redis::with_user; $($sentence)*);
        conformance!(on sentinels: tests::Sentinels = tests::Sentinels::start; $($sentence)*);
        conformance!(on cluster: tests::Cluster = tests::Cluster::start; $($sentence)*);

        mod memory {
            $(#[tokio::test]
            async fn $sentence() {
                super::$sentence(&super::MemoryBackbone::new(super::RETENTION)).await;
            })*
        }
    };
    (on $topology:ident: $set:ty = $start:expr; $($sentence:ident)*) => {
        pub mod $topology {
            pub static SET: tests::SharedSet<$set> = tests::SharedSet::new($start);

            $(#[tokio::test]
            async fn $sentence() {
                let set = SET.get();
                let config = tests::Access::from(&*set).config();
                let backbone = super::RedisBackbone::new(&config, super::RETENTION).unwrap();
                super::$sentence(&backbone).await;
            })*
        }
    };
}

conformance![
    appends_are_numbered_without_holes,
    an_append_that_expects_another_seq_changes_nothing,
    a_repeated_idempotency_key_appends_once,
    an_append_that_fails_does_not_affect_the_others,
    the_state_has_every_line_as_last_set,
    the_audit_has_former_values_and_is_newest_first,
    markets_are_listed_once_they_have_a_log,
    reading_after_a_seq_returns_the_next_updates,
    loading_returns_state_and_history_of_the_same_moment,
    tails_return_the_updates_after_each_cursor,
    the_log_keeps_about_history_len_updates,
    the_change_listener_reports_every_market_that_changes,
    a_ping_succeeds,
    revocations_are_kept_for_their_time_and_are_limited,
];

async fn appends_are_numbered_without_holes(backbone: &dyn Backbone) {
    let market = new_market();
    let first = publish(backbone, market, &numbered(1)).await;
    assert_eq!(first.position.seq, Seq::new(1));
    assert!(first.position.epoch.get() > 1_600_000_000, "Unix seconds");
    assert!(protocol::time::unix_ms().abs_diff(first.ts) < 5000);
    let rest = (2..=50).map(|seq| append(market, &numbered(seq))).collect();
    let results = backbone.append(rest).await;
    let mut before = first;
    for result in results {
        let appended = result.unwrap();
        assert!(appended.position.follows(before.position), "{appended:?} after {before:?}");
        assert!(appended.ts >= before.ts && !appended.replayed);
        assert_eq!(appended.audit_id.market, market);
        assert_ne!(appended.audit_id, before.audit_id);
        before = appended;
    }
}

async fn an_append_that_expects_another_seq_changes_nothing(backbone: &dyn Backbone) {
    let market = new_market();
    let expecting = |seq| Append { expected_seq: Some(Seq::new(seq)), ..append(market, &numbered(seq + 1)) };
    assert_eq!(one(backbone, expecting(0)).await.unwrap().position.seq, Seq::new(1));
    let before = backbone.load(&[market], 10).await.unwrap();
    for seq in [0, 2, 7] {
        match one(backbone, expecting(seq)).await {
            Err(AppendError::Conflict { current }) => assert_eq!(current, before[0].state.position),
            other => panic!("a conflict, not {other:?}"),
        }
    }
    assert_eq!(backbone.load(&[market], 10).await.unwrap(), before);
    assert_eq!(backbone.audit(market, None, 10).await.unwrap().len(), 1);
    assert_eq!(one(backbone, expecting(1)).await.unwrap().position.seq, Seq::new(2));
}

async fn a_repeated_idempotency_key_appends_once(backbone: &dyn Backbone) {
    let market = new_market();
    let keyed = |key: &str, fingerprint: &str| Append {
        idempotency: Some(Idempotency { key: key.into(), fingerprint: fingerprint.into() }),
        ..append(market, &numbered(1))
    };
    let first = one(backbone, keyed("k", "f")).await.unwrap();
    publish(backbone, market, &numbered(2)).await;
    let again = one(backbone, keyed("k", "f")).await.unwrap();
    assert_eq!(again, Appended { replayed: true, ..first });
    assert!(matches!(one(backbone, keyed("k", "other")).await, Err(AppendError::KeyReused)));
    let other_key = one(backbone, keyed("k2", "f")).await.unwrap();
    assert_eq!((other_key.position.seq, other_key.replayed), (Seq::new(3), false));
    let elsewhere = Append { market: new_market(), ..keyed("k", "other") };
    assert!(!one(backbone, elsewhere).await.unwrap().replayed, "a key belongs to its market");
    let both = backbone.append(vec![keyed("k3", "f"), keyed("k3", "f")]).await;
    let replayed: Vec<bool> = both.into_iter().map(|result| result.unwrap().replayed).collect();
    assert_eq!(replayed, [false, true]);
}

async fn an_append_that_fails_does_not_affect_the_others(backbone: &dyn Backbone) {
    let (a, b) = (new_market(), new_market());
    let stale = Append { expected_seq: Some(Seq::new(9)), ..append(a, &numbered(9)) };
    let appends = vec![append(a, &numbered(1)), stale, append(b, &numbered(1)), append(a, &numbered(2))];
    let results = backbone.append(appends).await;
    let seqs: Vec<Option<u64>> = results
        .iter()
        .map(|result| result.as_ref().ok().map(|appended| appended.position.seq.get()))
        .collect();
    assert_eq!(seqs, [Some(1), None, Some(1), Some(2)]);
    assert!(backbone.append(vec![]).await.is_empty());
}

async fn the_state_has_every_line_as_last_set(backbone: &dyn Backbone) {
    let (market, untouched) = (new_market(), new_market());
    publish(backbone, market, r#"{"b":{"x":1.10},"a \"é\n":{"y":2},"c":{"z":3}}"#).await;
    let last = publish(backbone, market, r#"{"b":{"x":1.200},"c":null,"never":null}"#).await;
    let loaded = backbone.load(&[untouched, market], 0).await.unwrap();
    assert_eq!(loaded[1].state.payload_json(), r#"{"a \"é\n":{"y":2},"b":{"x":1.200}}"#);
    assert_eq!((loaded[1].state.position, loaded[1].state.ts), (last.position, last.ts));
    assert_eq!((loaded[0].state.position, loaded[0].state.payload_json().as_str()), (Position::ORIGIN, "{}"));
}

async fn the_audit_has_former_values_and_is_newest_first(backbone: &dyn Backbone) {
    let market = new_market();
    publish(backbone, market, r#"{"a":{"x":1.10},"b":{"y":2}}"#).await;
    let payload = r#"{"a":{"x":1.200},"c":{"z":3},"b":null}"#;
    let second = Append {
        actor: "desk-2".into(),
        reason: "moved \"é\"".into(),
        request_id: "r-2".into(),
        ..append(market, payload)
    };
    let second = one(backbone, second).await.unwrap();
    for seq in 3..=5 {
        publish(backbone, market, &numbered(seq)).await;
    }
    let all = backbone.audit(market, None, 100).await.unwrap();
    let seqs: Vec<u64> = all.iter().map(|entry| entry.position.seq.get()).collect();
    assert_eq!(seqs, [5, 4, 3, 2, 1]);
    let entry = &all[3];
    assert_eq!((&entry.id, entry.position, entry.ts), (&second.audit_id, second.position, second.ts));
    assert_eq!((entry.actor.as_str(), entry.request_id.as_str()), ("desk-2", "r-2"));
    assert_eq!(entry.reason, "moved \"é\"");
    assert_eq!(entry.before, r#"{"a":{"x":1.10},"b":{"y":2}}"#);
    assert_eq!(entry.after, payload);
    assert_eq!(all[4].before, "{}");

    let first = AuditId { market, entry: StreamId::ZERO };
    assert!(backbone.audit(market, Some(first), 2).await.unwrap().is_empty());
    let page = backbone.audit(market, Some(all[1].id), 2).await.unwrap();
    assert_eq!(page, all[2..4]);
    let id: AuditId = all[0].id.to_string().parse().unwrap();
    assert_eq!(id, all[0].id);
}

async fn markets_are_listed_once_they_have_a_log(backbone: &dyn Backbone) {
    let (first, never) = (new_market(), new_market());
    let others: Vec<MarketId> = (0..20).map(|_| new_market()).collect();
    publish(backbone, first, &numbered(1)).await;
    let refused = Append { expected_seq: Some(Seq::new(7)), ..append(never, &numbered(1)) };
    assert!(one(backbone, refused).await.is_err());
    assert!(backbone.append(others.iter().map(|id| append(*id, &numbered(1))).collect()).await[19].is_ok());
    let listed = eventually("all markets", async || {
        let listed = backbone.markets().await.unwrap();
        (listed.contains(&first) && others.iter().all(|other| listed.contains(other))).then_some(listed)
    })
    .await;
    assert!(listed.is_sorted_by(|a, b| a < b), "ascending, each once: {listed:?}");
    assert!(!listed.contains(&never), "it has no log");
}

async fn reading_after_a_seq_returns_the_next_updates(backbone: &dyn Backbone) {
    let (market, untouched) = (new_market(), new_market());
    let mut appended = Vec::new();
    for seq in 1..=10 {
        appended.push(publish(backbone, market, &numbered(seq)).await);
    }
    for (after, limit, expected) in [(0, 100, 1..=10), (4, 100, 5..=10), (4, 3, 5..=7), (9, 1, 10..=10)] {
        let page = backbone.read_after(market, Seq::new(after), limit).await.unwrap();
        assert_eq!(page.latest, appended[9].position);
        assert!(page.updates.iter().map(|update| update.position.seq.get()).eq(expected), "{page:?}");
        for update in &page.updates {
            let seq = update.position.seq.get();
            let origin = &appended[usize::try_from(seq).unwrap() - 1];
            assert_eq!((update.position, update.ts), (origin.position, origin.ts));
            assert_eq!(&*update.payload, numbered(seq));
            assert!(odds_update(market, update).contains(&format!(r#""seq":{seq},"#)));
        }
    }
    for after in [10, 11, 1_000_000] {
        assert!(backbone.read_after(market, Seq::new(after), 10).await.unwrap().updates.is_empty());
    }
    assert_eq!(backbone.read_after(untouched, Seq::ZERO, 10).await.unwrap().latest, Position::ORIGIN);
}

async fn loading_returns_state_and_history_of_the_same_moment(backbone: &dyn Backbone) {
    let (market, other) = (new_market(), new_market());
    for seq in 1..=10 {
        publish(backbone, market, &numbered(seq)).await;
    }
    publish(backbone, other, &numbered(1)).await;
    let loaded = backbone.load(&[market, new_market(), other], 4).await.unwrap();
    let seqs = |index: usize| {
        loaded[index].updates.iter().map(|update| update.position.seq.get()).collect::<Vec<_>>()
    };
    assert_eq!(seqs(0), [7, 8, 9, 10]);
    assert_eq!((seqs(1), seqs(2)), (vec![], vec![1]));
    assert_eq!(loaded[0].updates[3].position, loaded[0].state.position);
    assert_eq!(loaded[0].state.payload_json(), numbered(10));
}

async fn tails_return_the_updates_after_each_cursor(backbone: &dyn Backbone) {
    let (a, b, quiet) = (new_market(), new_market(), new_market());
    let mut at = Vec::new();
    for seq in 1..=5 {
        at.push(publish(backbone, a, &numbered(seq)).await.position);
        publish(backbone, b, &numbered(seq)).await;
    }
    let end = publish(backbone, quiet, &numbered(1)).await.position;
    let cursors = [(a, at[1]), (b, Position::ORIGIN), (quiet, end), (new_market(), Position::ORIGIN)];
    let mut tails = read_tails(backbone, &cursors, 100).await;
    tails.sort_by_key(|(market, _)| *market);
    let seqs: Vec<(MarketId, Vec<u64>)> = tails
        .iter()
        .map(|(market, updates)| (*market, updates.iter().map(|update| update.position.seq.get()).collect()))
        .collect();
    assert_eq!(seqs, [(a, vec![3, 4, 5]), (b, vec![1, 2, 3, 4, 5])]);
    let limited = read_tails(backbone, &cursors[..1], 2).await;
    assert_eq!(limited[0].1.len(), 2);
    assert_eq!(limited[0].1[0].position, at[2]);
    // A cursor of an older epoch is before every update of the newer epoch.
    let older = Position::new(at[0].epoch.get() - 1, 4);
    assert_eq!(read_tails(backbone, &[(a, older)], 100).await[0].1.len(), 5);
    assert!(read_tails(backbone, &[], 100).await.is_empty());
}

/// Reads each partition separately.
async fn read_tails(
    backbone: &dyn Backbone,
    cursors: &[(MarketId, Position)],
    limit: usize,
) -> Vec<(MarketId, Vec<Update>)> {
    let partitions: std::collections::BTreeSet<usize> =
        cursors.iter().map(|(id, _)| backbone.partition(*id)).collect();
    let mut updates = Vec::new();
    for partition in partitions {
        let cursors: Vec<_> =
            cursors.iter().copied().filter(|(id, _)| backbone.partition(*id) == partition).collect();
        let tails = backbone.read_tails(&cursors, limit).await.unwrap();
        assert!(tails.unread.is_empty() && tails.error.is_none());
        updates.extend(tails.updates);
    }
    updates
}

async fn the_log_keeps_about_history_len_updates(backbone: &dyn Backbone) {
    let market = new_market();
    let appends = (1..=500).map(|seq| append(market, &numbered(seq))).collect();
    assert!(backbone.append(appends).await.iter().all(Result::is_ok));
    let kept = backbone.read_after(market, Seq::ZERO, 1000).await.unwrap();
    let length = kept.updates.len();
    assert!((RETENTION.history_len..=RETENTION.history_len + TRIM_SLACK).contains(&length), "{length}");
    let first = kept.updates[0].position.seq.get();
    assert!(kept.updates.iter().map(|update| update.position.seq.get()).eq(first..=500));
    let loaded = backbone.load(&[market], RETENTION.history_len).await.unwrap();
    assert_eq!(loaded[0].updates.len(), RETENTION.history_len);
}

async fn the_change_listener_reports_every_market_that_changes(backbone: &dyn Backbone) {
    let (a, b) = (new_market(), new_market());
    let mut listener = backbone.change_listener(std::sync::Arc::new(Vec::new));
    assert_eq!(within("the first report", listener.wait()).await.unwrap(), Changes::All);
    // The listener starts at each primary separately.
    let mut begun = 1;
    for market in [a, b, a, new_market(), new_market(), b] {
        publish(backbone, market, &numbered(1)).await;
        wait_for_changes(&mut *listener, vec![market], &mut begun).await;
    }
    // The listener keeps changes that arrive while no call waits.
    publish(backbone, a, &numbered(2)).await;
    publish(backbone, b, &numbered(2)).await;
    wait_for_changes(&mut *listener, vec![a, b], &mut begun).await;
}

async fn wait_for_changes(listener: &mut dyn ChangeListener, mut missing: Vec<MarketId>, begun: &mut usize) {
    while !missing.is_empty() {
        match within("a report", listener.wait()).await.unwrap() {
            Changes::Markets(markets) => missing.retain(|market| !markets.contains(market)),
            Changes::All => {
                *begun += 1;
                assert!(*begun <= tests::cluster::PRIMARIES, "the listener began again at a node");
                missing.clear();
            }
        }
    }
}

async fn a_ping_succeeds(backbone: &dyn Backbone) {
    backbone.ping().await.unwrap();
}

async fn revocations_are_kept_for_their_time_and_are_limited(backbone: &dyn Backbone) {
    assert_eq!(backbone.revocations(StreamId::ZERO).await.unwrap(), None, "no revocation yet");
    let user = backbone.revoke(Revoked::User("1 \"é".into()), "desk-1").await.unwrap();
    assert!(protocol::time::unix_ms().abs_diff(user.ts) < 5000);
    let token = backbone.revoke(Revoked::Token("a".into()), "desk-1").await.unwrap();
    let kept = backbone.revocations(StreamId::ZERO).await.unwrap().unwrap();
    assert_eq!(kept.all, [user, token]);
    assert_eq!(kept.newest.ms, kept.all[1].ts);
    assert_eq!(backbone.revocations(kept.newest).await.unwrap(), None, "nothing new");
    // A caller that knows another newest id, as after a loss, gets all revocations that are kept.
    let lost = StreamId { n: kept.newest.n + 1, ..kept.newest };
    assert_eq!(backbone.revocations(lost).await.unwrap(), Some(kept));

    // The loop revokes without a pause, so that no revocation expires before the limit is reached.
    let mut refused = false;
    for n in 0..1000 {
        match backbone.revoke(Revoked::User(n.to_string()), "desk-1").await {
            Ok(_) => {}
            Err(RevokeError::Full) => {
                refused = true;
                break;
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert!(refused, "the limit is never reached");
    assert_eq!(backbone.revocations(StreamId::ZERO).await.unwrap().unwrap().all.len(), RETENTION.revocations);
    let later = eventually("a revocation after the oldest expired", async || {
        backbone.revoke(Revoked::Token("later".into()), "desk-1").await.ok()
    })
    .await;
    let kept = backbone.revocations(StreamId::ZERO).await.unwrap().unwrap().all;
    assert!(kept.contains(&later) && !kept.iter().any(|kept| kept.revoked == Revoked::User("1 \"é".into())));
}

fn new_market() -> MarketId {
    MarketId::new(fresh_market()).unwrap()
}

fn append(market: MarketId, payload: &str) -> Append {
    Append {
        market,
        payload: Payload::parse(payload).unwrap(),
        expected_seq: None,
        idempotency: None,
        actor: "desk-1".into(),
        reason: "test".into(),
        request_id: "r-1".into(),
        trace: None,
    }
}

async fn one(backbone: &dyn Backbone, append: Append) -> Result<Appended, AppendError> {
    backbone.append(vec![append]).await.pop().unwrap()
}

async fn publish(backbone: &dyn Backbone, market: MarketId, payload: &str) -> Appended {
    one(backbone, append(market, payload)).await.unwrap()
}
