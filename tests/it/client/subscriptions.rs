//! subscribe, unsubscribe, and the updates that follow (`docs/protocol.md#websocket`).

use tests::{
    Lines, Message, Rest, Stack,
    admin::numbered,
    fresh_market, fresh_user,
    message::{Ack, Rejected},
    socket::Socket,
    tokens,
};

#[tokio::test]
async fn subscribe_acks_where_live_delivery_starts_and_each_update_follows() {
    let stack = Stack::shared();
    let (admin, market) = (stack.admin(), fresh_market());
    admin.publish_many(market, 0, 2).await;

    for gateway in [0, 1] {
        let mut socket = stack.socket(gateway).await;
        let ack = socket.subscribe(&[market]).await;
        assert!(ack.ok);
        assert_eq!(ack.subscribed, Some(vec![market]));
        assert_eq!((ack.unsubscribed, ack.rejected, ack.id), (None, vec![], None));
        let from = ack.positions.unwrap()[&market.to_string()];
        assert_eq!((from.seq, from.recovered), (2 + gateway as u64, None));

        let payload = r#"{"moneyline":{"home":1.85,"away":2.10}}"#;
        let accepted = admin.publish(market, payload).await;
        let update = socket.update().await;
        assert_eq!((update.market_id, update.seq, update.ts), (market, from.seq + 1, accepted.ts));
        assert_eq!((from.epoch, from.seq + 1), (accepted.epoch, accepted.seq));
        assert_eq!(update.payload, payload);
        socket.expect_silence().await;
    }
}

#[tokio::test]
async fn prices_arrive_byte_for_byte_as_they_were_sent() {
    let stack = Stack::shared();
    let market = fresh_market();
    let mut socket = stack.socket(0).await;
    socket.subscribe(&[market]).await;
    let payload = r#"{"moneyline":{"home":1.10,"away":2.1000,"note":"é\u00e9"},"odd names \"}":{"x":1E+2,"y":0.30000000000000004}}"#;
    stack.admin().publish(market, payload).await;
    assert_eq!(socket.update().await.payload, payload);
    let snapshot = Rest::of(stack.gateway(1)).snapshot(market).await;
    assert_eq!(Lines::of(snapshot.payload.text()), Lines::of(payload));
}

#[tokio::test]
async fn a_market_id_is_a_number_or_a_decimal_string() {
    let stack = Stack::shared();
    let (a, b) = (fresh_market(), fresh_market());
    let mut socket = stack.socket(0).await;
    socket.send(format_args!(r#"{{"type":"subscribe","markets":[{a},"{b}","{a}"]}}"#)).await;
    let ack = socket.ack().await;
    assert_eq!(ack.subscribed, Some(vec![a, b]), "each once");
    assert_eq!(ack.positions.unwrap().len(), 2);
    let biggest = (1_u64 << 53) - 1;
    assert!(socket.subscribe(&[biggest]).await.ok);
}

#[tokio::test]
async fn subscribe_with_snapshot_sends_each_markets_snapshot_before_live_updates() {
    let stack = Stack::shared();
    let (admin, markets) = (stack.admin(), [fresh_market(), fresh_market()]);
    for market in markets {
        admin.publish(market, r#"{"moneyline":{"home":1.50,"away":2.60},"total":{"over":1.90}}"#).await;
        admin.publish(market, r#"{"moneyline":{"home":1.55},"total":null}"#).await;
    }
    let mut socket = stack.socket(0).await;
    socket.send(format_args!(r#"{{"type":"subscribe","markets":{markets:?},"snapshot":true}}"#)).await;
    let ack = socket.ack().await;
    let mut seen = Vec::new();
    for _ in markets {
        let snapshot = socket.snapshot().await;
        let position = ack.position(snapshot.market_id);
        assert_eq!((snapshot.epoch, snapshot.seq), (position.epoch, position.seq));
        assert_eq!((snapshot.reset, snapshot.conflated), (false, false));
        assert_eq!(snapshot.payload, r#"{"moneyline":{"home":1.55}}"#, "null has removed a line");
        seen.push(snapshot.market_id);
    }
    seen.sort_unstable();
    assert_eq!(seen, markets);
    admin.publish(markets[1], &numbered(3)).await;
    assert_eq!(socket.update().await.seq, 3);
}

#[tokio::test]
async fn a_market_nobody_has_published_is_subscribed_at_seq_0_and_starts_with_update_1() {
    let stack = Stack::shared();
    let market = fresh_market();
    let mut sockets = [stack.socket(0).await, stack.socket(1).await];
    for socket in &mut sockets {
        let ack = socket.subscribe(&[market]).await;
        assert!(ack.ok);
        assert_eq!(ack.position(market).seq, 0);
    }
    stack.admin().publish(market, &numbered(1)).await;
    stack.admin().publish(market, &numbered(2)).await;
    for socket in &mut sockets {
        assert_eq!(socket.update().await.seq, 1);
        assert_eq!(socket.update().await.seq, 2);
    }
}

#[tokio::test]
async fn subscribing_twice_delivers_once() {
    let stack = Stack::shared();
    let market = fresh_market();
    let mut socket = stack.socket(0).await;
    socket.subscribe(&[market]).await;
    let again = socket.subscribe(&[market]).await;
    assert_eq!((again.ok, again.subscribed), (true, Some(vec![market])));
    stack.admin().publish_many(market, 0, 2).await;
    assert_eq!(socket.update().await.seq, 1);
    assert_eq!(socket.update().await.seq, 2);
    socket.expect_silence().await;
}

#[tokio::test]
async fn unsubscribe_ends_delivery_and_adds_unsubscribed_to_its_ack() {
    let stack = Stack::shared();
    let (admin, kept, ended) = (stack.admin(), fresh_market(), fresh_market());
    let mut socket = stack.socket(0).await;
    let mut witness = stack.socket(0).await;
    socket.subscribe(&[kept, ended]).await;
    witness.subscribe(&[kept, ended]).await;

    socket.send(format_args!(r#"{{"type":"unsubscribe","markets":["{ended}"]}}"#)).await;
    let ack = socket.ack().await;
    assert!(ack.ok);
    assert_eq!((ack.subscribed, ack.unsubscribed), (Some(vec![]), Some(vec![ended])));
    assert_eq!(ack.positions, None);

    admin.publish(ended, &numbered(1)).await;
    assert_eq!(witness.update().await.market_id, ended, "this pod has delivered it");
    admin.publish(kept, &numbered(1)).await;
    assert_eq!(socket.update().await.market_id, kept, "and not to the one that had enough");

    let ack = socket.subscribe(&[ended]).await;
    assert_eq!(ack.position(ended).seq, 1, "it may come back");
    admin.publish(ended, &numbered(2)).await;
    assert_eq!(socket.update().await.seq, 2);
}

#[tokio::test]
async fn markets_outside_the_scope_are_rejected_and_the_rest_goes_through() {
    let stack = Stack::shared();
    let (mine, other) = (fresh_market(), fresh_market());
    let token = tokens::scoped(fresh_user(), &[mine]);
    let mut socket = Socket::connect(stack.gateway(0).api, &token).await;
    let forbidden = vec![Rejected { market_id: other, code: "FORBIDDEN".to_owned() }];
    let is_partly_refused = |ack: &Ack| {
        assert!(!ack.ok);
        assert_eq!(ack.subscribed, Some(vec![mine]));
        assert_eq!(ack.rejected, forbidden);
        assert_eq!(ack.positions.as_ref().unwrap().len(), 1);
    };
    is_partly_refused(&socket.subscribe(&[other, mine]).await);
    socket.send(format_args!(r#"{{"type":"resume","offsets":{{"{other}":0,"{mine}":0}}}}"#)).await;
    is_partly_refused(&socket.ack().await);

    stack.admin().publish(other, &numbered(1)).await;
    stack.admin().publish(mine, &numbered(1)).await;
    assert_eq!(socket.update().await.market_id, mine);
}

#[tokio::test]
async fn an_empty_scope_sees_nothing() {
    let stack = Stack::shared();
    let market = fresh_market();
    let mut socket = Socket::connect(stack.gateway(0).api, &tokens::scoped(fresh_user(), &[])).await;
    let ack = socket.subscribe(&[market]).await;
    assert_eq!((ack.ok, ack.subscribed), (false, Some(vec![])));
}

/// Rule 2: nothing published around a subscribe is lost or sent twice.
#[tokio::test]
async fn nothing_is_lost_or_doubled_between_ack_snapshot_and_live() {
    const UPDATES: u64 = 150;
    let stack = Stack::shared();
    let (admin, market) = (stack.admin(), fresh_market());
    admin.publish(market, &numbered(1)).await;

    let publishing = tokio::spawn(async move {
        for seq in 2..=UPDATES {
            admin.publish(market, &numbered(seq)).await;
        }
    });
    let mut clients = Vec::new();
    while !publishing.is_finished() {
        for gateway in [0, 1] {
            let mut socket = stack.socket(gateway).await;
            socket.send(format_args!(r#"{{"type":"subscribe","markets":[{market}],"snapshot":true}}"#)).await;
            let ack = socket.ack().await;
            let snapshot = socket.snapshot().await;
            assert!(
                snapshot.seq >= ack.position(market).seq,
                "live delivery goes on from the snapshot (rule 1)"
            );
            assert_eq!(snapshot.payload.text(), numbered(snapshot.seq));
            clients.push((socket, snapshot.seq));
        }
    }
    publishing.await.unwrap();
    for (mut socket, from) in clients {
        for seq in from + 1..=UPDATES {
            match socket.recv().await {
                Message::Update(update) => {
                    assert_eq!(update.seq, seq);
                    assert_eq!(update.payload.text(), numbered(seq));
                }
                other => panic!("update {seq}, not {other:?}"),
            }
        }
    }
}
