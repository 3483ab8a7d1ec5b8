//! The audit: `docs/protocol.md#get-adminauditmarketid1001beforeauditidlimit50--viewer`.

use super::*;

#[tokio::test]
async fn the_audit_says_who_changed_what_from_what() {
    let desk = Desk::in_memory();
    desk.post(OVERRIDE, &[("x-request-id", "r1")], BODY).await;
    let second = r#"{"marketId":"1001","payload":{"moneyline":null, "total":{"over":1.90}}}"#;
    let accepted = desk.post(OVERRIDE, &[("x-request-id", "r2")], second).await.json();
    let reply = desk.audit("marketId=1001&before=&limit=").await;
    assert_eq!(reply.status, 200, "{}", reply.text);
    let expected = [
        r#"{"marketId":1001,"entries":[{"auditId":"#,
        &accepted["auditId"].to_string(),
        r#","marketId":1001,"epoch":"#,
        &accepted["epoch"].to_string(),
        r#","seq":2,"ts":"#,
        &accepted["ts"].to_string(),
        r#","actor":"desk-1","reason":"","before":{"moneyline":{"home":1.850,"away":2.10}}"#,
        r#","after":{"moneyline":null, "total":{"over":1.90}},"requestId":"r2"}"#,
    ]
    .concat();
    assert!(reply.text.starts_with(&expected), "{}\n{expected}", reply.text);
    let first = &reply.json()["entries"][1];
    assert_eq!((&first["reason"], &first["before"]), (&json!("late news"), &json!({})));
    assert_eq!(reply.json()["hasMore"], false);
}

#[tokio::test]
async fn the_audit_is_paged_newest_first() {
    let desk = Desk::in_memory();
    let items: Vec<_> =
        (1..=120).map(|n| format!(r#"{{"marketId":7,"payload":{{"a":{{"n":{n}}}}}}}"#)).collect();
    desk.post(BATCH, &[], format!("[{}]", items.join(","))).await;
    let (mut before, mut seqs, mut pages) = (String::new(), Vec::new(), Vec::new());
    loop {
        let page = desk.audit(&format!("marketId=7&before={before}")).await.json();
        let entries = page["entries"].as_array().unwrap();
        pages.push(entries.len());
        seqs.extend(entries.iter().map(|entry| entry["seq"].as_u64().unwrap()));
        if page["hasMore"] == false {
            break;
        }
        before = entries.last().unwrap()["auditId"].as_str().unwrap().to_owned();
    }
    assert_eq!(pages, [50, 50, 20]);
    assert!(seqs.iter().copied().eq((1..=120).rev()), "{seqs:?}");
    assert_eq!(desk.audit("marketId=7&limit=120").await.json()["hasMore"], false);
    let empty = json!({ "marketId": 8, "entries": [], "hasMore": false });
    assert_eq!(desk.audit("marketId=8").await.json(), empty);
    for bad in [
        "",
        "marketId=x",
        "marketId=7&limit=501",
        "marketId=7&before=x",
        "marketId=7&before=8-1-0",
        "marketId=1&marketId=2",
    ] {
        assert_eq!(desk.audit(bad).await.code(), "BAD_REQUEST", "{bad}");
    }
}

#[tokio::test]
async fn the_audit_can_be_filtered_by_actor_and_by_time() {
    let desk = Desk::in_memory();
    let other = format!("Bearer {}", mint(&desk.keys, "desk-2", Role::Trader, Duration::from_mins(1)));
    for n in 1..=10 {
        let body = format!(r#"{{"marketId":7,"payload":{{"a":{{"n":{n}}}}}}}"#);
        if n % 5 == 0 {
            desk.call(Method::POST, OVERRIDE, &[("authorization", &other)], body).await;
        } else {
            desk.post(OVERRIDE, &[], body).await;
        }
    }
    let all = desk.audit("marketId=7").await.json();
    let ts = |index: usize| all["entries"][index]["ts"].as_u64().unwrap();
    let expected = |keep: &dyn Fn(&Value) -> bool| -> Vec<u64> {
        let entries = all["entries"].as_array().unwrap().iter();
        entries.filter(|entry| keep(entry)).map(|entry| entry["seq"].as_u64().unwrap()).collect()
    };
    let seqs = async |query: &str| -> (Vec<u64>, bool) {
        let page = desk.audit(&format!("marketId=7&{query}")).await.json();
        let seq = |entry: &Value| entry["seq"].as_u64().unwrap();
        (page["entries"].as_array().unwrap().iter().map(seq).collect(), page["hasMore"] == true)
    };
    assert_eq!(seqs("actor=desk-2").await, (vec![10, 5], false));
    assert_eq!(seqs("actor=desk-2&limit=1").await, (vec![10], true));
    assert_eq!(seqs("actor=nobody").await, (vec![], false));
    let (newest, oldest) = (ts(0), ts(9));
    assert_eq!(seqs(&format!("until={}", oldest - 1)).await, (vec![], false));
    assert_eq!(seqs(&format!("since={}", newest + 1)).await, (vec![], false));
    assert_eq!(seqs(&format!("since={oldest}&until={newest}")).await.0, expected(&|_| true));
    let middle = ts(4);
    let since = format!("since={middle}");
    assert_eq!(seqs(&since).await, (expected(&|entry| entry["ts"].as_u64().unwrap() >= middle), false));
    let until = format!("until={middle}");
    assert_eq!(seqs(&until).await, (expected(&|entry| entry["ts"].as_u64().unwrap() <= middle), false));
    for bad in ["since=x", "until=-1", "format=xml"] {
        assert_eq!(desk.audit(&format!("marketId=7&{bad}")).await.code(), "BAD_REQUEST", "{bad}");
    }
}

#[tokio::test]
async fn a_page_of_a_rare_actor_examines_at_most_5000_entries() {
    let desk = Desk::in_memory();
    let rare = format!("Bearer {}", mint(&desk.keys, "rare", Role::Trader, Duration::from_mins(1)));
    let body = r#"{"marketId":7,"payload":{"a":{"n":0}}}"#;
    desk.call(Method::POST, OVERRIDE, &[("authorization", &rare)], body).await;
    for _ in 0..6 {
        desk.post(BATCH, &[], format!("[{}]", vec![body; 1000].join(","))).await;
    }
    let first = desk.audit("marketId=7&actor=rare").await.json();
    assert_eq!((&first["entries"], &first["hasMore"]), (&json!([]), &json!(true)), "5000 were looked at");
    let next = format!("marketId=7&actor=rare&before={}", first["before"].as_str().unwrap());
    let second = desk.audit(&next).await.json();
    assert_eq!((&second["entries"][0]["seq"], &second["hasMore"]), (&json!(1), &json!(false)));
    assert!(second.get("before").is_none());
}

#[tokio::test]
async fn the_audit_is_csv_on_request() {
    let desk = Desk::in_memory();
    for reason in ["plain", "=1+1", r#"a \"b\", c"#] {
        let body = format!(r#"{{"marketId":7,"payload":{{"a":{{"n":1.50}}}},"reason":"{reason}"}}"#);
        assert_eq!(desk.post(OVERRIDE, &[("x-request-id", "r")], body).await.status, 200);
    }
    let bearer = desk.bearer(Role::Viewer);
    for (query, accept) in [("&format=csv", "*/*"), ("", "text/csv")] {
        let headers = [("authorization", bearer.as_str()), ("accept", accept)];
        let path = format!("/admin/audit?marketId=7&limit=2{query}");
        let reply = desk.call(Method::GET, &path, &headers, "").await;
        assert_eq!(reply.headers[CONTENT_TYPE], "text/csv; charset=utf-8");
        assert_eq!(reply.headers[CONTENT_DISPOSITION], "attachment; filename=\"audit-7.csv\"");
        let rows: Vec<&str> = reply.text.split("\r\n").collect();
        assert_eq!(rows.len(), 4, "a head, two entries, an end: {}", reply.text);
        assert_eq!(rows[0], "auditId,marketId,epoch,seq,ts,actor,reason,before,after,requestId");
        let cells = r#",desk-1,"a ""b"", c","{""a"":{""n"":1.50}}","{""a"":{""n"":1.50}}",r"#;
        assert!(rows[1].ends_with(cells), "{}", rows[1]);
        assert!(rows[2].contains(",'=1+1,"), "{}", rows[2]);
        assert!(rows[2].starts_with(reply.headers[&X_NEXT_BEFORE].to_str().unwrap()));
    }
}
