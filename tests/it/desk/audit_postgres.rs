//! The audit in PostgreSQL (`DATABASE_URL`): exactly what Redis has, whatever fails on the way.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use protocol::Secret;

use service::token::{AdminClaims, Audience, Keyring, Role};
use sqlx::Row;
use tests::{
    Admin, Certificates, Desk, Http, Launch, Postgres, Redis, Service,
    admin::{AuditPage, numbered},
    eventually, fresh_market,
    postgres::{Database, PASSWORDS},
    process::Stream,
    tokens,
};
use tokio::time::Instant;

/// What one publisher that has died was given is another one's after 10 s, which are looked for every 5 s.
const TAKEN_OVER_WITHIN: Duration = Duration::from_secs(40);

#[tokio::test]
async fn every_entry_comes_to_postgres_byte_for_byte() {
    let (redis, postgres) = (Redis::start(), Postgres::shared());
    let database = postgres.database().await;
    let publisher = exporting(&redis, &database);
    let (admin, markets) = (trader(&publisher), [fresh_market(), fresh_market()]);
    let hostile = r#"Robert'); DROP TABLE audit; -- \\ \" $1 ? é 🏇 \n\t %s {} \u202e"#;
    for market in markets {
        for payload in
            [r#"{"moneyline":{"home":2.10,"away":1.50}}"#, r#"{"moneyline":null,"x":{"a b":"\u0041é\\n"}}"#]
        {
            let body = format!(r#"{{"marketId":{market},"payload":{payload},"reason":"{hostile}"}}"#);
            assert_eq!(admin.send(&body).await.status, 200, "{body}");
        }
    }
    expect_same(&redis, &database, &markets).await;
    let rows = database.audit().await;
    assert_eq!(rows.len(), 4);
    assert_eq!(
        rows[1].1[5], r#"{"moneyline":{"home":2.10,"away":1.50}}"#,
        "what was before, as it was written"
    );
}

#[tokio::test]
async fn postgres_may_be_away_for_a_while_and_has_exactly_the_same_rows_in_the_end() {
    let (redis, mut postgres) = (Redis::start(), Postgres::start());
    let database = postgres.database().await;
    let publishers = [exporting(&redis, &database), exporting(&redis, &database)];
    let mut desk = Desk::at(publishers.iter().map(trader).collect());
    let markets = [fresh_market(), fresh_market(), fresh_market()];
    let mut publish = async |rounds: usize| {
        for market in markets.iter().cycle().take(3 * rounds) {
            desk.publish(*market).await;
        }
    };
    publish(30).await;
    postgres.kill();
    publish(30).await;
    for publisher in &publishers {
        eventually("it is noticed", async || {
            let failures =
                metric(publisher, r#"publisher_audit_export_failures_total{cause="postgres"}"#).await;
            let lag = metric(publisher, "publisher_audit_export_lag_seconds").await;
            (failures > 0.0 && lag > 0.0).then_some(())
        })
        .await;
        publisher.expect_readiness(200).await;
    }
    postgres.restart();
    publish(30).await;
    // This Postgres accepts connections and never responds.
    postgres.process().pause();
    publish(30).await;
    postgres.process().unpause();
    publish(30).await;
    expect_same(&redis, &database, &markets).await;
    assert_eq!(database.audit().await.len(), 3 * 150);
    for publisher in &publishers {
        eventually("nothing waits", async || {
            (metric(publisher, "publisher_audit_export_lag_seconds").await < 1.0).then_some(())
        })
        .await;
        assert!(metric(publisher, r#"publisher_audit_lost_total{cause="trimmed"}"#).await == 0.0);
        // The publisher logs each outage once, however many attempts fail.
        eventually("the end of each outage is said", async || {
            let said = publisher.process.said(Stream::Err);
            let count = |of| said.matches(of).count();
            let begun = count("the audit cannot be copied to Postgres");
            assert!((1..=2).contains(&begun), "{said}");
            (count("the audit is copied to Postgres again") == begun).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn what_a_killed_publisher_had_in_hand_another_one_brings() {
    let (redis, postgres) = (Redis::start(), Postgres::start());
    let database = postgres.database().await;
    let publishers = [exporting(&redis, &database), exporting(&redis, &database)];
    let markets: Vec<u64> = (0..5).map(|_| fresh_market()).collect();
    let admin = trader(&publishers[0]);
    for &market in &markets {
        admin.publish_many(market, 0, 20).await;
    }
    expect_same(&redis, &database, &markets).await;
    // Each publisher reads entries that Postgres does not accept.
    let lock = database.lock_audit().await;
    for &market in &markets {
        admin.publish_many(market, 20, 20).await;
    }
    eventually("some of it is in somebody's hand", async || {
        markets.iter().any(|market| in_hand(&redis, *market) > 0).then_some(())
    })
    .await;
    publishers[0].process.kill();
    let left = trader(&publishers[1]);
    left.publish_many(markets[0], 40, 20).await;
    drop(lock);
    expect_same_within(TAKEN_OVER_WITHIN, &redis, &database, &markets).await;
    assert_eq!(database.audit().await.len(), 5 * 40 + 20);
    eventually("all of it is acknowledged", async || {
        markets.iter().all(|market| in_hand(&redis, *market) == 0).then_some(())
    })
    .await;
}

/// What it had not taken, nobody heard of again but those that look at every market.
#[tokio::test]
async fn what_was_there_before_is_brought_too() {
    let (redis, postgres) = (Redis::start(), Postgres::shared());
    let (first, markets) = (Launch::publisher(&redis).start(), [fresh_market(), fresh_market()]);
    for market in markets {
        trader(&first).publish_many(market, 0, 1300).await;
    }
    drop(first);
    let database = postgres.database().await;
    let second = exporting(&redis, &database);
    expect_same(&redis, &database, &markets).await;
    assert!((metric(&second, "publisher_audit_exported_total").await - 2600.0).abs() < 0.5);
}

#[tokio::test]
async fn what_was_trimmed_before_it_was_brought_is_counted_and_logged() {
    let (redis, mut postgres) = (Redis::start(), Postgres::start());
    let database = postgres.database().await;
    let publisher =
        Launch::publisher(&redis).envs(&[("DATABASE_URL", database.url()), ("AUDIT_LEN", "100")]).start();
    let (admin, market) = (trader(&publisher), fresh_market());
    admin.publish_many(market, 0, 50).await;
    expect_same(&redis, &database, &[market]).await;
    postgres.kill();
    admin.publish_many(market, 50, 1000).await;
    postgres.restart();
    let lost = eventually("what is lost is counted", async || {
        let lost = metric(&publisher, r#"publisher_audit_lost_total{cause="trimmed"}"#).await;
        (lost > 0.0).then_some(lost)
    })
    .await;
    let all = eventually("the rest is there", async || {
        let rows = database.audit().await;
        (rows.last()?.1[1] == "1050").then_some(rows.len())
    })
    .await;
    #[expect(clippy::cast_precision_loss, reason = "a thousand")]
    let missing = (1050 - all) as f64;
    assert!((lost - missing).abs() < 0.5, "{lost} counted, {missing} missing");
    publisher.process.expect_line("the loss", |line| line.contains("were trimmed from Redis").then_some(()));
}

#[tokio::test]
async fn what_was_trimmed_while_a_publisher_that_died_had_it_in_hand_is_counted() {
    let (redis, mut postgres) = (Redis::start(), Postgres::start());
    let database = postgres.database().await;
    let (first, market) = (exporting(&redis, &database), fresh_market());
    let admin = trader(&first);
    admin.publish_many(market, 0, 5).await;
    expect_same(&redis, &database, &[market]).await;
    // The publisher reads entries that Postgres does not accept.
    let lock = database.lock_audit().await;
    admin.publish_many(market, 5, 20).await;
    let given = eventually("some of it is in its hand", async || {
        Some(in_hand(&redis, market)).filter(|given| *given > 0)
    })
    .await;
    first.process.kill();
    postgres.kill();
    drop(lock);
    redis.tell::<u64>(&format!("XTRIM odds:audit:{{{market}}} MAXLEN 0"));
    postgres.restart();
    let second = exporting(&redis, &database);
    let lost = r#"publisher_audit_lost_total{cause="trimmed"}"#;
    let lost = eventually("what is lost is counted", async || {
        Some(metric(&second, lost).await).filter(|lost| *lost > 0.0)
    })
    .await;
    #[expect(clippy::cast_precision_loss, reason = "twenty")]
    let given = given as f64;
    assert!((lost - given).abs() < 0.5, "{lost} counted, {given} were given");
    assert_eq!(database.audit().await.len(), 5);
}

#[tokio::test]
async fn postgres_keeps_what_redis_lost_and_says_so_when_an_id_is_used_again() {
    let (mut redis, postgres) = (Redis::durable(), Postgres::shared());
    let database = postgres.database().await;
    let (market, other) = (fresh_market(), fresh_market());
    let publisher = exporting(&redis, &database);
    let admin = trader(&publisher);
    admin.publish_many(market, 0, 10).await;
    expect_same(&redis, &database, &[market]).await;
    redis.copy();
    admin.publish_many(market, 10, 10).await;
    expect_same(&redis, &database, &[market]).await;
    let before = database.audit().await;
    redis.restart_from_copy();
    let mut desk = Desk::new(admin);
    desk.publish(market).await;
    eventually("what came later is there as well", async || {
        (database.audit().await.len() == before.len() + 1).then_some(())
    })
    .await;
    let after = database.audit().await;
    assert!(before.iter().all(|row| after.contains(row)), "what was brought stays");

    // No clock does that. If it happens, the publisher reports it.
    let (id, _) = before.last().unwrap();
    let entry = id.split_once('-').unwrap().1;
    redis.tell::<u64>(&format!("DEL odds:audit:{{{market}}}"));
    let fields = "epoch 1 seq 1 ts 1 actor another reason r before {} after {} requestId x";
    redis.tell::<String>(&format!("XADD odds:audit:{{{market}}} {entry} {fields}"));
    redis.tell::<String>(&format!("XADD odds:audit:{{{other}}} 1-1 actor nobody"));
    redis.tell::<u64>(&format!("SADD odds:markets {other}"));
    for (cause, said) in [("displaced", "another audit entry with this id"), ("malformed", "is malformed")] {
        let name = format!(r#"publisher_audit_lost_total{{cause="{cause}"}}"#);
        eventually(cause, async || (metric(&publisher, &name).await > 0.5).then_some(())).await;
        publisher.process.expect_line(cause, |line| line.contains(said).then_some(()));
    }
    assert_eq!(database.audit().await, after);
    let no_stream = fresh_market();
    redis.tell::<()>(&format!("SET odds:audit:{{{no_stream}}} x"));
    redis.tell::<u64>(&format!("SADD odds:markets {no_stream}"));
    publisher
        .process
        .expect_line("a market that is none", |line| line.contains("audit cannot be read").then_some(()));
    desk.publish(other).await;
    eventually("none of them holds up what comes after", async || {
        (database.audit().await.len() == after.len() + 1).then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_actor_with_a_character_that_postgres_has_not_is_brought_with_its_picture() {
    let (redis, postgres) = (Redis::start(), Postgres::shared());
    let database = postgres.database().await;
    let publisher = exporting(&redis, &database);
    let keys = Keyring::parse(&Secret::new(tokens::ADMIN_JWT_SECRET), Audience::Admin).unwrap();
    let sub = format!("desk\0{}", "x".repeat(5000));
    let claims = AdminClaims { sub: sub.clone(), role: Role::Trader, iat: 0, exp: u64::from(u32::MAX) };
    let (admin, market) = (Admin::with_token(publisher.url(""), &keys.sign(&claims)), fresh_market());
    admin.publish_many(market, 0, 3).await;
    let rows = eventually("three rows", async || {
        let rows = database.audit().await;
        (rows.len() == 3).then_some(rows)
    })
    .await;
    assert!(rows.iter().all(|(_, row)| row[3] == sub.replace('\0', "␀")));
}

#[tokio::test]
async fn a_rebuilt_table_has_all_that_redis_still_has() {
    let (redis, postgres) = (Redis::start(), Postgres::shared());
    let database = postgres.database().await;
    let publisher = exporting(&redis, &database);
    let (admin, markets) = (trader(&publisher), [fresh_market(), fresh_market()]);
    for market in markets {
        admin.publish_many(market, 0, 100).await;
    }
    expect_same(&redis, &database, &markets).await;
    database.run("TRUNCATE audit").await;
    for market in markets {
        redis.tell::<u64>(&format!("XGROUP DESTROY odds:audit:{{{market}}} postgres"));
    }
    expect_same(&redis, &database, &markets).await;
    assert_eq!(database.audit().await.len(), 200);
}

#[tokio::test]
async fn tables_are_made_once_and_those_of_a_newer_version_are_left_alone() {
    let (redis, postgres) = (Redis::start(), Postgres::shared());
    let database = postgres.database().await;
    let market = fresh_market();
    // Both publishers start at once on an empty database.
    let publishers = [exporting(&redis, &database), exporting(&redis, &database)];
    trader(&publishers[0]).publish_many(market, 0, 5).await;
    expect_same(&redis, &database, &[market]).await;
    drop(publishers);
    database
        .run(
            "ALTER TABLE audit ADD COLUMN newer text; INSERT INTO _sqlx_migrations \
             (version, description, success, checksum, execution_time) VALUES (9999, 'newer', true, '', 0)",
        )
        .await;
    let again = exporting(&redis, &database);
    trader(&again).publish_many(market, 5, 5).await;
    expect_same(&redis, &database, &[market]).await;
    assert_eq!(database.rows("SELECT version FROM _sqlx_migrations").await.len(), 2);
}

#[tokio::test]
async fn a_database_that_would_not_keep_every_name_is_refused() {
    let (redis, postgres) = (Redis::start(), Postgres::shared());
    let database = postgres.database_with("ENCODING 'LATIN1' TEMPLATE template0").await;
    let publisher = exporting(&redis, &database);
    publisher.process.expect_line("why", |line| line.contains("encoding is LATIN1").then_some(()));
    trader(&publisher).publish(fresh_market(), &numbered(1)).await;
}

#[tokio::test]
async fn a_wrong_password_stops_no_override_and_is_mended_by_another_file() {
    let (redis, postgres) = (Redis::start(), Postgres::shared());
    let database = postgres.database().await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("url");
    std::fs::write(&file, database.url_with_password("not-the-password")).unwrap();
    let publisher = Launch::publisher(&redis)
        .env("DATABASE_URL_FILE", file.to_str().unwrap())
        .env("RUST_LOG", "trace")
        .start();
    let market = fresh_market();
    trader(&publisher).publish_many(market, 0, 10).await;
    publisher.process.expect_line("why", |line| {
        (line.contains("cannot be copied to Postgres") && line.contains("password authentication failed"))
            .then_some(())
    });
    publisher.expect_readiness(200).await;
    let failures = metric(&publisher, r#"publisher_audit_export_failures_total{cause="postgres"}"#).await;
    assert!(failures > 0.0);

    std::fs::write(&file, database.url()).unwrap();
    expect_same(&redis, &database, &[market]).await;
    let said = publisher.process.said(Stream::Err);
    for secret in ["not-the-password"].iter().chain(&PASSWORDS) {
        assert!(!said.contains(secret), "{secret}");
    }
}

#[tokio::test]
async fn over_tls_the_password_is_shown_to_nobody_but_the_database_that_the_url_names() {
    let (redis, ours, others) = (Redis::start(), Certificates::make(), Certificates::make());
    let postgres = Postgres::with_tls(&ours);
    let database = postgres.database().await;
    let market = fresh_market();
    let verified = |authority: &Certificates, host: &str| {
        let url = database.url().replace("127.0.0.1", host);
        let url = format!("{url}?sslmode=verify-full&sslrootcert={}", authority.ca_file().display());
        Launch::publisher(&redis).env("DATABASE_URL", &url).start()
    };
    // An authority that has not signed the certificate, and a name that is not in it.
    for (published, authority, host) in [(0, &others, "127.0.0.1"), (3, &ours, "localhost")] {
        let publisher = verified(authority, host);
        trader(&publisher).publish_many(market, published, 3).await;
        publisher.process.expect_line("why", |line| {
            (line.contains("cannot be copied to Postgres") && line.contains("certificate")).then_some(())
        });
    }
    assert!(database.audit().await.is_empty());

    let publisher = verified(&ours, "127.0.0.1");
    expect_same(&redis, &database, &[market]).await;
    let connections = database
        .rows("SELECT ssl FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE application_name = 'kmarket-publisher'")
        .await;
    assert!(!connections.is_empty() && connections.iter().all(|row| row.get("ssl")));
    drop(publisher);

    // The publisher refuses a server without TLS.
    let plain = Postgres::shared();
    let url = format!("{}?sslmode=require", plain.database().await.url());
    let publisher = Launch::publisher(&redis).env("DATABASE_URL", &url).start();
    publisher.process.expect_line("why", |line| {
        (line.contains("cannot be copied to Postgres") && line.contains("TLS")).then_some(())
    });
}

#[tokio::test]
async fn an_override_that_was_acknowledged_is_in_the_answer_at_every_publisher() {
    let (redis, postgres) = (Redis::start(), Postgres::shared());
    let database = postgres.database().await;
    let publishers = [exporting(&redis, &database), exporting(&redis, &database)];
    let market = fresh_market();
    let admins = publishers.each_ref().map(trader);
    let first = admins[0].publish(market, &numbered(1)).await;
    expect_same(&redis, &database, &[market]).await;
    for (number, (at, asked)) in (2..40).zip([(0, 0), (0, 1), (1, 0), (1, 1)].into_iter().cycle()) {
        let payload = format!(r#"{{"moneyline":{{"home":{number}.10}}}}"#);
        let accepted = admins[at].publish(market, &payload).await;
        let answer = admins[asked].audit(&format!("marketId={market}&limit=1")).await;
        assert_eq!(answer.header("x-audit-source"), Some("postgres"));
        let page: AuditPage = answer.ok();
        assert_eq!((&page.entries[0].audit_id, page.entries[0].ts), (&accepted.audit_id, accepted.ts));
        assert!(answer.text.contains(&payload), "{}", answer.text);
    }
    // The filter uses the ids' times. The clock that made them may be a millisecond ahead.
    let until = first.audit_id.split('-').nth(1).unwrap();
    let page: AuditPage = admins[0].audit(&format!("marketId={market}&until={until}")).await.ok();
    assert_eq!(page.entries.last().unwrap().audit_id, first.audit_id);
    expect_same(&redis, &database, &[market]).await;
}

#[tokio::test]
async fn the_audit_of_all_markets_is_paged_and_filtered_even_where_times_are_equal() {
    const MS: u64 = 1_700_000_000_000;
    let (redis, postgres) = (Redis::start(), Postgres::shared());
    let database = postgres.database().await;
    let markets = [fresh_market(), fresh_market(), fresh_market()];
    let long = "desk-with-a-name-that-is-longer-than-what-the-index-has-of-it-and-ends-in-";
    let actors = ["a", &format!("{long}x"), &format!("{long}y")];
    let mut all = Vec::new();
    for (index, (market, ms, n)) in markets
        .iter()
        .flat_map(|market| (MS..MS + 4).flat_map(move |ms| (0..2).map(move |n| (*market, ms, n))))
        .enumerate()
    {
        let actor = actors[index % 3];
        let fields = format!(
            "epoch 1 seq {} ts {ms} actor {actor} reason r before {{}} after {{}} requestId x",
            index + 1
        );
        redis.tell::<String>(&format!("XADD odds:audit:{{{market}}} {ms}-{n} {fields}"));
        redis.tell::<u64>(&format!("SADD odds:markets {market}"));
        all.push((ms, market, n, actor));
    }
    all.sort_unstable();
    all.reverse();
    let publisher = exporting(&redis, &database);
    let admin = trader(&publisher);
    expect_same(&redis, &database, &markets).await;
    for market in [None, Some(markets[1])] {
        for actor in [None, Some(actors[0]), Some(actors[2]), Some(long)] {
            for (since, until) in
                [(None, None), (Some(MS + 1), None), (None, Some(MS + 2)), (Some(MS + 1), Some(MS + 1))]
            {
                let filters = [
                    market.map(|market| format!("marketId={market}&")),
                    actor.map(|actor| format!("actor={actor}&")),
                    since.map(|since| format!("since={since}&")),
                    until.map(|until| format!("until={until}&")),
                ];
                let query: String = filters.into_iter().flatten().collect();
                let is_asked = |&&(ms, of, _, by): &&(u64, u64, u64, &str)| {
                    market.is_none_or(|market| market == of)
                        && actor.is_none_or(|actor| actor == by)
                        && since.is_none_or(|since| since <= ms)
                        && until.is_none_or(|until| ms <= until)
                };
                let expected: Vec<String> =
                    all.iter().filter(is_asked).map(|(ms, of, n, _)| format!("{of}-{ms}-{n}")).collect();
                for limit in [1, 5, 500] {
                    let found = pages(&admin, &format!("{query}limit={limit}")).await;
                    assert_eq!(found, expected, "{query}limit={limit}");
                }
            }
        }
    }
    let csv = admin.audit("format=csv&limit=3").await;
    assert_eq!(csv.text.lines().count(), 4, "{}", csv.text);
    assert_eq!(csv.header("content-disposition"), Some("attachment; filename=\"audit-all.csv\""));
}

#[tokio::test]
async fn without_postgres_one_market_is_answered_by_redis_and_all_of_them_by_nobody() {
    let (redis, mut postgres) = (Redis::start(), Postgres::start());
    let database = postgres.database().await;
    let (publisher, plain) = (exporting(&redis, &database), Launch::publisher(&redis).start());
    let (admin, market) = (trader(&publisher), fresh_market());
    admin.publish_many(market, 0, 10).await;
    expect_same(&redis, &database, &[market]).await;
    let of_market = format!("marketId={market}&actor=desk-1&since=1");
    let answer = admin.audit(&of_market).await;
    assert_eq!(answer.header("x-audit-source"), Some("postgres"));
    let without = trader(&plain).audit(&of_market).await;
    assert_eq!(without.header("x-audit-source"), None);
    assert_eq!(without.ok::<AuditPage>(), answer.ok::<AuditPage>(), "the same wherever it is read");
    trader(&plain).audit("actor=desk-1").await.expect_error(400, "BAD_REQUEST");

    postgres.kill();
    admin.publish_many(market, 10, 10).await;
    let answer = admin.audit(&of_market).await;
    assert_eq!(answer.header("x-audit-source"), Some("redis"));
    assert_eq!(answer.ok::<AuditPage>().entries.len(), 20);
    let message = admin.audit("actor=desk-1").await.expect_error(503, "SERVICE_UNAVAILABLE");
    assert!(message.contains("marketId"), "{message}");
    postgres.restart();
    eventually("postgres is asked again", async || {
        let answer = admin.audit(&of_market).await;
        (answer.header("x-audit-source") == Some("postgres"))
            .then(|| assert_eq!(answer.ok::<AuditPage>().entries.len(), 20))
    })
    .await;
}

#[tokio::test]
async fn nothing_in_a_query_is_taken_for_sql() {
    let (redis, postgres) = (Redis::start(), Postgres::shared());
    let database = postgres.database().await;
    let publisher = exporting(&redis, &database);
    let (admin, market) = (trader(&publisher), fresh_market());
    admin.publish_many(market, 0, 3).await;
    expect_same(&redis, &database, &[market]).await;
    for hostile in [
        "'",
        "1'; DROP TABLE audit; --",
        "1) OR 1=1 --",
        "' OR ''='",
        "$1",
        "\\'",
        "1;SELECT pg_sleep(20)",
        "\0",
        "%",
        "\u{fffd}é",
    ] {
        let encoded = hostile.bytes().fold(String::new(), |text, byte| format!("{text}%{byte:02X}"));
        for parameter in ["marketId", "before", "limit", "since", "until", "format"] {
            let answer = admin.audit(&format!("{parameter}={encoded}")).await;
            answer.expect_error(400, "BAD_REQUEST");
        }
        for query in [format!("actor={encoded}"), format!("marketId={market}&actor={encoded}")] {
            let page: AuditPage = admin.audit(&query).await.ok();
            assert!(page.entries.is_empty(), "{query}");
        }
        let before = format!("before={market}-{encoded}-0");
        admin.audit(&before).await.expect_error(400, "BAD_REQUEST");
    }
    // The largest numbers.
    for query in ["since=18446744073709551615", "before=9007199254740991-0-0", "until=0"] {
        assert!(admin.audit(query).await.ok::<AuditPage>().entries.is_empty(), "{query}");
    }
    for query in
        ["until=18446744073709551615", "before=9007199254740991-18446744073709551615-18446744073709551615"]
    {
        assert_eq!(admin.audit(query).await.ok::<AuditPage>().entries.len(), 3, "{query}");
    }
    assert_eq!(database.audit().await.len(), 3);
}

/// The ids of all pages.
async fn pages(admin: &Admin, query: &str) -> Vec<String> {
    let mut ids = Vec::new();
    let mut before = String::new();
    loop {
        let page: AuditPage = admin.audit(&format!("{query}{before}")).await.ok();
        ids.extend(page.entries.into_iter().map(|entry| entry.audit_id));
        match page.before {
            Some(next) => before = format!("&before={next}"),
            None => return ids,
        }
    }
}

/// How many entries somebody was given who has not said that they are in Postgres.
fn in_hand(redis: &Redis, market: u64) -> u64 {
    let (pending, ..): (u64, Option<String>, Option<String>, redis::Value) =
        redis.tell(&format!("XPENDING odds:audit:{{{market}}} postgres"));
    pending
}

/// A publisher that copies its audit there.
fn exporting(redis: &Redis, database: &Database) -> Service {
    Launch::publisher(redis).env("DATABASE_URL", database.url()).start()
}

fn trader(publisher: &Service) -> Admin {
    Admin::new(publisher.url(""))
}

/// The value of a metric, with its labels as Prometheus reads them; 0 while there is none.
async fn metric(service: &Service, name: &str) -> f64 {
    let text = Http::default().get(&service.ops_url("/metrics")).await.text;
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.map_or(0.0, |value| value.parse().unwrap())
}

/// What Redis has, as [`Database::audit`] tells it.
fn redis_audit(redis: &Redis, markets: &[u64]) -> BTreeMap<String, [String; 8]> {
    let of_market = |market: &u64| {
        let entries: Vec<(String, HashMap<String, String>)> =
            redis.tell(&format!("XRANGE odds:audit:{{{market}}} - +"));
        assert!(!entries.is_empty());
        let named = |(id, fields): (String, HashMap<String, String>)| {
            let names = ["epoch", "seq", "ts", "actor", "reason", "before", "after", "requestId"];
            (format!("{market}-{id}"), names.map(|name| fields[name].clone()))
        };
        entries.into_iter().map(named).collect::<Vec<_>>()
    };
    markets.iter().flat_map(of_market).collect()
}

async fn expect_same(redis: &Redis, database: &Database, markets: &[u64]) {
    expect_same_within(tests::DEADLINE, redis, database, markets).await;
}

/// Waits until Postgres has exactly what Redis has.
async fn expect_same_within(time: Duration, redis: &Redis, database: &Database, markets: &[u64]) {
    let deadline = Instant::now() + time;
    let expected = redis_audit(redis, markets);
    loop {
        let rows: BTreeMap<_, _> = database.audit().await.into_iter().collect();
        if rows == expected {
            return;
        }
        assert!(Instant::now() < deadline, "{} rows of {}", rows.len(), expected.len());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
