//! Several publishers append to one market.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::future::join_all;
use tests::{
    Admin, Follower, Launch, Redis,
    admin::{Accepted, numbered, override_body},
    chaos::Chaos,
    eventually, fresh_market,
};

/// As a desk does that has no answer from one publisher yet and asks the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_override_that_is_sent_to_two_publishers_at_once_is_one_update() {
    const OVERRIDES: u64 = 300;
    const AT_ONCE: usize = 10;
    let redis = Redis::start();
    let links = [(); 2].map(|()| Chaos::before(redis.port()));
    let publishers = links.each_ref().map(|link| Launch::publisher(link).start());
    let gateway = Launch::gateway(&redis).start();
    let market = fresh_market();
    let mut follower = Follower::start(gateway.api, &[market]).await;
    let admins = publishers.each_ref().map(|publisher| Admin::new(publisher.url("")));
    let send = async |admin: &Admin, number: u64| {
        let (key, body) = (format!("key-{number}"), override_body(market, &numbered(number)));
        let accepted = eventually("an accepted override", async || {
            let answer = admin.send_with_key(&key, &body).await;
            assert!(matches!(answer.status, 200 | 503), "{answer:?}");
            (answer.status == 200).then(|| answer.ok::<Accepted>())
        })
        .await;
        (number, (accepted.epoch, accepted.seq, accepted.audit_id))
    };

    let mut positions = BTreeMap::new();
    let numbers: Vec<u64> = (1..=OVERRIDES).collect();
    for numbers in numbers.chunks(AT_ONCE) {
        for link in &links {
            link.cut_replies(1);
        }
        let sent = numbers.iter().flat_map(|&number| admins.iter().map(move |admin| (admin, number)));
        for (number, position) in join_all(sent.map(|(admin, number)| send(admin, number))).await {
            let first = positions.entry(number).or_insert_with(|| position.clone());
            assert_eq!(*first, position, "both say the same of override {number}");
        }
    }

    let seqs: BTreeSet<u64> = positions.values().map(|(_, seq, _)| *seq).collect();
    assert!(seqs.into_iter().eq(1..=OVERRIDES), "one seq each: {positions:?}");
    let epoch = positions[&1].0;
    follower.reach(market, (epoch, OVERRIDES)).await;
    for (number, (_, seq, _)) in positions {
        assert_eq!(follower.known(market).updates[&(epoch, seq)], numbered(number));
    }
    for what in ["log", "audit"] {
        let entries: u64 = redis.tell(&format!("XLEN odds:{what}:{{{market}}}"));
        assert_eq!(entries, OVERRIDES, "{what}");
    }
}
