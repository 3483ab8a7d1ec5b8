//! The client already in the field keeps working. It knows no snapshots, epochs or acks, and yet converges.

use tests::{FieldClient, Lines, Rest, Stack, admin::numbered, fresh_market, fresh_user, tokens};

#[tokio::test]
async fn the_field_client_converges_while_it_goes_from_pod_to_pod_and_updates_flow() {
    const UPDATES: u64 = 300;
    let stack = Stack::shared();
    let (admin, market) = (stack.admin(), fresh_market());
    let publishing = tokio::spawn(async move {
        for seq in 1..=UPDATES {
            let payload = format!(r#"{{"line {}":{{"home":{}.10}}}}"#, seq % 7, 2 + seq);
            assert_eq!(admin.publish(market, &payload).await.seq, seq);
        }
    });
    let mut field = FieldClient::new(tokens::for_user(fresh_user()), market);
    for visit in 0.. {
        field.connect(stack.gateway(visit % 2).api).await;
        field.reach((field.last() + 23).min(UPDATES)).await;
        if field.last() == UPDATES {
            break;
        }
    }
    publishing.await.unwrap();
    let applied: Vec<u64> = field.applied().iter().map(|update| update.seq).collect();
    assert!(applied.iter().copied().eq(1..=UPDATES), "each once, in order: {applied:?}");
    assert_eq!(field.fetches(), 0, "resume left nothing to fetch");
    let snapshot = Rest::of(stack.gateway(0)).snapshot(market).await;
    assert_eq!(field.lines(), &Lines::of(snapshot.payload.text()));
}

#[tokio::test]
async fn the_field_client_fetches_what_was_too_much_to_resume() {
    let stack = Stack::shared();
    let gateway = stack.another_gateway(&[("RESUME_MAX", "10")]);
    let (admin, market) = (stack.admin(), fresh_market());
    let mut field = FieldClient::new(tokens::for_user(fresh_user()), market);
    admin.publish_many(market, 0, 5).await;
    field.connect(gateway.api).await;
    field.reach(5).await;

    // The client misses 400 updates. It gets a snapshot, which it does not know, and then updates far ahead of its own.
    admin.publish_many(market, 5, 400).await;
    field.connect(gateway.api).await;
    admin.keep_publishing(market, &mut 406, field.reach(410)).await;
    assert!(field.fetches() >= 2, "200 at a time");
    let applied: Vec<u64> = field.applied().iter().map(|update| update.seq).collect();
    assert!(applied.iter().copied().eq(1..=field.last()), "each once, in order: {applied:?}");
    assert_eq!(field.lines(), &Lines::of(&numbered(field.last())));
}

/// The offsets of a client in the field say nothing of epochs; a seq that never goes back is what it relies on.
#[tokio::test]
async fn the_field_client_converges_after_history_was_lost() {
    let stack = Stack::shared();
    let (admin, market) = (stack.admin(), fresh_market());
    let mut field = FieldClient::new(tokens::for_user(fresh_user()), market);
    field.connect(stack.gateway(0).api).await;
    admin.publish_many(market, 0, 30).await;
    field.reach(30).await;

    let keys = ["log", "state"].map(|kind| format!("odds:{kind}:{{{market}}}"));
    let _: u64 = redis::AsyncCommands::del(&mut stack.redis().connection().await, &keys).await.unwrap();
    // The new epoch begins well above. The client first sees the update after that, and fetches.
    let first = admin.publish(market, &numbered(31)).await.seq;
    assert!(first > 31);
    let mut next = first + 1;
    admin.keep_publishing(market, &mut next, field.reach(first + 2)).await;
    assert!(
        field.applied().iter().any(|update| update.seq == first),
        "nothing of the new history is missing"
    );
    assert_eq!(field.lines(), &Lines::of(&numbered(field.last())));
    field.connect(stack.gateway(1).api).await;
    let target = next + 2;
    admin.keep_publishing(market, &mut next, field.reach(target)).await;
    assert_eq!(field.lines(), &Lines::of(&numbered(field.last())));
}
