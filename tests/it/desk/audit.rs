//! `GET /admin/audit` (`docs/protocol.md#admin-api`).

use serde_json::json;
use service::token::Role;
use tests::{
    Admin, Http, Stack,
    admin::{Accepted, AuditPage, numbered},
    fresh_market, tokens,
};

#[tokio::test]
async fn the_audit_says_who_changed_what_newest_first() {
    let stack = Stack::shared();
    let (admin, market) = (stack.admin(), fresh_market());
    let with_reason = |payload: &str, reason: &str| {
        format!(r#"{{"marketId":{market},"payload":{payload},"reason":"{reason}"}}"#)
    };
    let opened = with_reason(r#"{"moneyline":{"home":1.90},"total":{"over":1.80}}"#, "opened");
    let first: Accepted = admin.send(&opened).await.ok();
    let moved = with_reason(r#"{"moneyline":{"home":2.10},"total":null,"new":{"x":1}}"#, "moved é");
    let second: Accepted = admin.send(&moved).await.ok();

    let answer = admin.audit(&format!("marketId={market}")).await;
    let AuditPage { market_id, entries, has_more, .. } = answer.ok();
    assert_eq!((market_id, has_more), (market, false));
    let [newer, older] = &entries[..] else { panic!("two entries, not {entries:?}") };
    for (entry, accepted) in [(newer, &second), (older, &first)] {
        assert_eq!((&entry.audit_id, entry.market_id), (&accepted.audit_id, market));
        assert_eq!((entry.epoch, entry.seq, entry.ts), (accepted.epoch, accepted.seq, accepted.ts));
        assert_eq!(entry.actor, "desk-1");
        assert!(entry.request_id.as_ref().is_some_and(|id| !id.is_empty()));
    }
    assert_ne!(newer.request_id, older.request_id);
    assert_eq!((newer.reason.as_deref(), older.reason.as_deref()), (Some("moved é"), Some("opened")));
    assert_eq!(older.before, json!({}));
    assert_eq!(newer.before, json!({"moneyline": {"home": 1.90}, "total": {"over": 1.80}}));
    assert_eq!(newer.after, json!({"moneyline": {"home": 2.10}, "total": null, "new": {"x": 1}}));
    assert!(answer.text.contains(r#"{"home":2.10}"#), "prices stay as they were written: {}", answer.text);
    assert!(answer.text.contains(r#"{"home":1.90}"#), "and so do former ones: {}", answer.text);
}

#[tokio::test]
async fn before_and_limit_page_through_the_audit() {
    let stack = Stack::shared();
    let (admin, market) = (stack.admin(), fresh_market());
    admin.publish_many(market, 0, 10).await;
    let mut seqs = Vec::new();
    let mut query = format!("marketId={market}&limit=4");
    loop {
        let page: AuditPage = admin.audit(&query).await.ok();
        assert!(page.entries.len() <= 4);
        seqs.extend(page.entries.iter().map(|entry| entry.seq));
        let Some(oldest) = page.entries.last().filter(|_| page.has_more) else { break };
        query = format!("marketId={market}&limit=4&before={}", oldest.audit_id);
    }
    assert!(seqs.iter().copied().eq((1..=10).rev()), "{seqs:?}");
    let untouched: AuditPage = admin.audit(&format!("marketId={}", fresh_market())).await.ok();
    assert_eq!((untouched.entries, untouched.has_more), (vec![], false));
}

#[tokio::test]
async fn what_was_refused_or_replayed_leaves_no_entry() {
    let stack = Stack::shared();
    let (admin, market) = (stack.admin(), fresh_market());
    let body = tests::admin::override_body(market, &numbered(1));
    for _ in 0..2 {
        assert_eq!(admin.send_with_key("k", &body).await.status, 200);
    }
    admin
        .send(&format!(r#"{{"marketId":{market},"payload":{{}}}}"#))
        .await
        .expect_error(422, "UNPROCESSABLE");
    let page: AuditPage = admin.audit(&format!("marketId={market}")).await.ok();
    assert_eq!(page.entries.len(), 1);
}

#[tokio::test]
async fn a_viewer_may_read_the_audit_and_a_bad_query_is_400_and_named() {
    let stack = Stack::shared();
    let viewer = Admin::with_token(stack.publisher().url(""), &tokens::admin(Role::Viewer));
    let market = fresh_market();
    assert_eq!(viewer.audit(&format!("marketId={market}")).await.status, 200);
    Http::default()
        .get(&stack.publisher().url("/admin/audit?marketId=1"))
        .await
        .expect_error(401, "UNAUTHORIZED");
    for (query, field) in [
        ("", "marketId"),
        ("marketId=x", "marketId"),
        ("marketId=1&limit=0", "limit"),
        ("marketId=1&before=x", "before"),
    ] {
        let message = viewer.audit(query).await.expect_error(400, "BAD_REQUEST");
        assert!(message.contains(field), "{query}: {message}");
    }
}
