//! The keys in Redis (`docs/protocol.md#redis-keys`). Other programs read them too.

use std::collections::BTreeMap;

use redis::{AsyncCommands, streams::StreamRangeReply};
use tests::{Stack, admin::override_body, fresh_market};

#[tokio::test]
async fn a_market_s_keys_are_a_log_a_state_and_an_audit_on_one_slot() {
    let stack = Stack::shared();
    let (admin, market) = (stack.admin(), fresh_market());
    let mut redis = stack.redis().connection().await;
    let payload = r#"{"moneyline":{"home":1.85,"away":2.10},"total":{"over":1.90}}"#;
    let first = admin.publish(market, payload).await;
    let answer = admin.send_with_key("the-key", &override_body(market, r#"{"total":null}"#)).await;
    let second: tests::admin::Accepted = answer.ok();

    let mut keys: Vec<String> = redis.keys(format!("*{market}*")).await.unwrap();
    keys.sort();
    let expected = ["odds:audit:{M}", "odds:idem:{M}:the-key", "odds:log:{M}", "odds:state:{M}"];
    assert_eq!(keys, expected.map(|key| key.replace('M', &market.to_string())));

    let log: StreamRangeReply = redis.xrange_all(format!("odds:log:{{{market}}}")).await.unwrap();
    let ids: Vec<_> = log.ids.iter().map(|entry| entry.id.clone()).collect();
    assert_eq!(ids, [format!("{}-1", first.epoch), format!("{}-2", first.epoch)]);
    for (entry, accepted, payload) in
        [(&log.ids[0], &first, payload), (&log.ids[1], &second, r#"{"total":null}"#)]
    {
        assert_eq!(entry.map.len(), 3, "ts, p and a");
        assert_eq!(entry.get::<u64>("ts"), Some(accepted.ts));
        assert_eq!(entry.get::<String>("p").as_deref(), Some(payload), "as received");
        assert!(accepted.audit_id.ends_with(&entry.get::<String>("a").unwrap()));
    }

    let state: BTreeMap<String, String> = redis.hgetall(format!("odds:state:{{{market}}}")).await.unwrap();
    let expected = [
        ("epoch", first.epoch.to_string()),
        ("l:moneyline", r#"{"home":1.85,"away":2.10}"#.to_owned()),
        ("seq", "2".to_owned()),
        ("ts", second.ts.to_string()),
    ];
    assert_eq!(state, expected.map(|(field, value)| (field.to_owned(), value)).into());

    let audit: StreamRangeReply = redis.xrange_all(format!("odds:audit:{{{market}}}")).await.unwrap();
    assert_eq!(audit.ids.len(), 2);
    let entry = &audit.ids[1];
    assert_eq!(entry.get::<String>("actor").as_deref(), Some("desk-1"));
    assert_eq!(entry.get::<String>("reason").as_deref(), Some("test"));
    assert_eq!(entry.get::<String>("before").as_deref(), Some(r#"{"total":{"over":1.90}}"#));
    assert_eq!(entry.get::<String>("after").as_deref(), Some(r#"{"total":null}"#));
    assert_eq!(entry.get::<u64>("seq"), Some(2));

    let day_s: i64 = redis.ttl(format!("odds:idem:{{{market}}}:the-key")).await.unwrap();
    assert!((86_000..=86_400).contains(&day_s), "24 h: {day_s}");
}

#[tokio::test]
async fn the_log_is_trimmed_to_about_history_len() {
    let stack = Stack::shared();
    let publisher = stack.another_publisher(&[("HISTORY_LEN", "50")]);
    let (admin, market) = (tests::Admin::new(publisher.url("")), fresh_market());
    admin.publish_many(market, 0, 500).await;
    let length: u64 = stack.redis().connection().await.xlen(format!("odds:log:{{{market}}}")).await.unwrap();
    // Redis trims whole nodes of its radix tree, 100 entries each.
    assert!((50..=150).contains(&length), "{length}");
}
