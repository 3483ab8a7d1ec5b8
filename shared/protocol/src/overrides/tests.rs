use proptest::prelude::*;

use super::*;

fn broken(text: &str) -> String {
    payload(text).expect_err(text).to_string()
}

#[test]
fn payloads_within_the_rules_pass_byte_for_byte() {
    let widest = format!(
        "{{{}}}",
        (0..32).map(|n| format!(r#""line{n}":{{"home":2}}"#)).collect::<Vec<_>>().join(",")
    );
    let filler = MAX_PAYLOAD_BYTES - r#"{"a":{"x":""}}"#.len();
    let longest = format!(r#"{{"a":{{"x":"{}"}}}}"#, "x".repeat(filler));
    let name = "é".repeat(MAX_NAME_CHARS);
    for text in [
        r#"{"moneyline":{"home":1.85,"away":2.10}}"#,
        r#"{ "moneyline" : { "home" : 1.0001 , "draw" : 10000.0000 } , "total" : null }"#,
        r#"{"win":{}}"#,
        r#"{"total":{"over":1.9,"line":-2.50,"n":1e400,"big":123456789012345678901234567890,"s":"x","t":true,"z":null}}"#,
        r#"{"spread":{"-1.5":{"home":1.9},"tags":["a","b"]}}"#,
        "{\"win\":{\"\u{1F40E}\":2.0,\"\\ud83d\\udc0e.\":2.0,\"a\\/b\":\"\\\\\\\"\"}}",
        r#"{"a.b":{"":"x"}}"#.replace(r#""":"#, r#"" ":"#).as_str(),
        &format!(r#"{{"{name}":{{"{name}":1}}}}"#),
        &widest,
        &longest,
    ] {
        assert_eq!(payload(text).unwrap_or_else(|why| panic!("{text}: {why}")).text(), text);
    }
}

#[test]
fn a_broken_rule_is_named_with_its_path() {
    let odds = "must be decimal odds";
    for (text, path, rule) in [
        ("{}", "payload:", "1 to 32 lines"),
        (r#"{"a":[]}"#, "payload.a:", "must be an object of selections"),
        (r#"{"a":1}"#, "payload.a:", "must be an object of selections"),
        (r#"{"a":"null"}"#, "payload.a:", "must be an object of selections"),
        (r#"{"a":{},"a":{}}"#, "payload.a:", "twice"),
        (r#"{"a":{},"\u0061":null}"#, "payload.a:", "twice"),
        (r#"{"a":{"x":1,"y":2,"x":1}}"#, "payload.a.x:", "twice"),
        (r#"{"a":{"x":{"p":1,"p":1}}}"#, "payload.a.x.p:", "twice"),
        (r#"{"a":{"x":{"y":{}}}}"#, "payload.a.x.y:", "too deep"),
        (r#"{"a":{"x":{"y":[]}}}"#, "payload.a.x.y:", "too deep"),
        (r#"{"a":{"x":[{}]}}"#, "payload.a.x:", "too deep"),
        (r#"{"a":{"x":[1,[2]]}}"#, "payload.a.x:", "too deep"),
        (r#"{"":{}}"#, "payload:", "name"),
        (r#"{"a":{"":1}}"#, "payload.a:", "name"),
        (r#"{"a":{"x\n":1}}"#, "payload.a:", "name"),
        (r#"{"a\u0000":{}}"#, "payload:", "name"),
        (r#"{"a":{"x":"\ud800"}}"#, "payload.a.x:", "Unicode"),
        (r#"{"a":{"x":["\udc0e"]}}"#, "payload.a.x:", "Unicode"),
        (r#"{"a":{"\ud83d":1}}"#, "payload.a:", "Unicode"),
        (r#"{"\ud83d":{}}"#, "payload:", "Unicode"),
        (r#"{"moneyline":{"home":1}}"#, "payload.moneyline.home:", odds),
        (r#"{"moneyline":{"away":"1.85"}}"#, "payload.moneyline.away:", odds),
        (r#"{"moneyline":{"draw":null}}"#, "payload.moneyline.draw:", odds),
        (r#"{"total":{"over":1.85001}}"#, "payload.total.over:", odds),
        (r#"{"total":{"under":10000.0001}}"#, "payload.total.under:", odds),
        (r#"{"btts":{"yes":1.5e0}}"#, "payload.btts.yes:", odds),
        (r#"{"btts":{"no":-2}}"#, "payload.btts.no:", odds),
        (r#"{"btts":{"no":{"deep":{"deeper":[]}}}}"#, "payload.btts.no:", odds),
    ] {
        let message = broken(text);
        assert!(message.starts_with(path) && message.contains(rule), "{text}: {message}");
    }
    let lines = (0..33).map(|n| format!(r#""{n}":null"#)).collect::<Vec<_>>().join(",");
    assert!(broken(&format!("{{{lines}}}")).contains("1 to 32 lines"));
    assert!(broken(&format!(r#"{{"{}":null}}"#, "n".repeat(65))).contains("name"));
    let large = format!(r#"{{"a":{{"x":"{}"}}}}"#, "x".repeat(MAX_PAYLOAD_BYTES));
    assert!(broken(&large).contains("16384 bytes"));
}

#[test]
fn deep_nesting_is_refused_before_it_is_parsed() {
    for depth in [4, 128, 10_000, 30_000] {
        let arrays = format!(r#"{{"a":{{"x":{}{}}}}}"#, "[".repeat(depth), "]".repeat(depth));
        let objects = format!(r#"{{"a":{}1{}}}"#, r#"{"x":"#.repeat(depth), "}".repeat(depth));
        for text in [arrays, objects] {
            let body = format!(r#"{{"marketId":1,"payload":{text}}}"#);
            let refused = Override::parse(&body).unwrap_err();
            assert!(matches!(refused, InvalidOverride::Payload(_) | InvalidOverride::TooLarge), "{refused}");
        }
        assert!(matches!(Override::parse(&"[".repeat(depth)), Err(InvalidOverride::Json(_))));
        assert!(matches!(
            Override::parse(&r#"{"payload":"#.repeat(depth)),
            Err(InvalidOverride::Json(_) | InvalidOverride::TooLarge)
        ));
    }
}

#[test]
fn an_override_has_four_fields() {
    let parsed = Override::parse(
        r#"{"expectedSeq":0,"reason":"late\nnews","payload":{"a":null},"marketId":"9007199254740991"}"#,
    )
    .unwrap();
    assert_eq!(parsed.market.get(), 9_007_199_254_740_991);
    assert_eq!((parsed.reason.as_str(), parsed.expected_seq), ("late\nnews", Some(Seq::ZERO)));
    let parsed =
        Override::parse(r#"{"marketId":1,"payload":{"a":null},"reason":null,"expectedSeq":null}"#).unwrap();
    assert_eq!((parsed.reason.as_str(), parsed.expected_seq), ("", None));
    assert!(
        Override::parse(&format!(
            r#"{{"marketId":1,"payload":{{"a":null}},"reason":"{}"}}"#,
            "é".repeat(500)
        ))
        .is_ok()
    );
}

#[test]
fn a_wrong_shape_names_the_field() {
    for (text, field) in [
        (r#"{"payload":{"a":null}}"#, "marketId: missing"),
        (r#"{"marketId":1}"#, "payload: missing"),
        (r#"{"marketId":0,"payload":{"a":null}}"#, "marketId: "),
        (r#"{"marketId":1.5,"payload":{"a":null}}"#, "marketId: "),
        (r#"{"marketId":null,"payload":{"a":null}}"#, "marketId: "),
        (r#"{"marketId":"01","payload":{"a":null}}"#, "marketId: "),
        (r#"{"marketId":9007199254740992,"payload":{"a":null}}"#, "marketId: "),
        (r#"{"marketId":1,"payload":[]}"#, "payload: must be an object"),
        (r#"{"marketId":1,"payload":null}"#, "payload: must be an object"),
        (r#"{"marketId":1,"payload":{"a":null},"reason":5}"#, "reason: "),
        (r#"{"marketId":1,"payload":{"a":null},"reason":"\ud800"}"#, "reason: "),
        (r#"{"marketId":1,"payload":{"a":null},"reason":"\u0000"}"#, "reason: "),
        (r#"{"marketId":1,"payload":{"a":null},"expectedSeq":-1}"#, "expectedSeq: "),
        (r#"{"marketId":1,"payload":{"a":null},"expectedSeq":"1"}"#, "expectedSeq: "),
        (r#"{"marketId":1,"payload":{"a":null},"expectedSeq":1.0}"#, "expectedSeq: "),
        (r#"{"marketId":1,"payload":{"a":null},"expectedSeq":9007199254740992}"#, "expectedSeq: "),
        (r#"{"marketId":1,"payload":{"a":null},"expectedseq":1}"#, "expectedseq: unknown field"),
        (r#"{"marketId":1,"payload":{"a":null},"marketId":2}"#, "marketId: stands twice"),
        ("", "not a JSON object"),
        ("[]", "not a JSON object"),
        (r#"{"marketId":1,"payload":{"a":null}} x"#, "not a JSON object"),
    ] {
        let message = Override::parse(text).expect_err(text).to_string();
        assert!(message.starts_with(field), "{text}: {message}");
    }
}

/// JSON of any shape, names and numbers chosen to be near the rules.
fn any_json() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        "(0|[1-9][0-9]{0,6})(\\.[0-9]{1,6})?",
        "-?[0-9]{1,3}([eE][+-]?[0-9]{1,3})?",
        "\"[ -!#-\\[\\]-~]{0,8}\"",
        Just("\"\\ud800\"".to_owned()),
        Just("null".to_owned()),
        Just("true".to_owned()),
    ];
    let name = prop_oneof!["home|away|over|yes", "[a-c]{0,2}", "\\PC{0,3}"];
    leaf.prop_recursive(5, 64, 8, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(|items| format!("[{}]", items.join(","))),
            prop::collection::vec((name.clone(), inner), 0..5).prop_map(|members| {
                let members: Vec<_> =
                    members.iter().map(|(n, v)| format!("{}:{v}", crate::json::quoted(n))).collect();
                format!("{{{}}}", members.join(" , "))
            }),
        ]
    })
}

/// Returns true if a payload keeps the rules. It checks parsed JSON, where the code checks text.
fn keeps_the_rules(value: &serde_json::Value) -> bool {
    fn depth(value: &serde_json::Value) -> usize {
        match value {
            serde_json::Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
            serde_json::Value::Object(members) => 1 + members.values().map(depth).max().unwrap_or(0),
            _ => 0,
        }
    }
    let lines = value.as_object().unwrap();
    (1..=32).contains(&lines.len())
        && depth(value) <= 3
        && lines.values().all(|line| line.is_null() || line.is_object())
}

proptest! {
    #[test]
    fn any_text_is_checked_without_a_panic(text in ".*", json in any_json()) {
        let _ = Override::parse(&text);
        let _ = payload(&text);
        let _ = Override::parse(&json);
        let _ = Override::parse(&format!(r#"{{"marketId":1,"payload":{json}}}"#));
        let _ = Override::parse(&format!(r#"{{"marketId":1,"payload":{text}}}"#));
    }

    #[test]
    fn what_passes_passes_byte_for_byte_and_keeps_the_rules(json in any_json()) {
        let body = format!(r#"{{"marketId":1,"payload": {json} ,"reason":""}}"#);
        if let Ok(parsed) = Override::parse(&body) {
            prop_assert_eq!(parsed.payload.text(), &json);
            if let Ok(value) = serde_json::from_str::<serde_json::Value>(&json) {
                prop_assert!(keeps_the_rules(&value), "{}", json);
            }
        }
    }

    #[test]
    fn good_prices_pass_with_every_digit(
        prices in prop::collection::btree_map(0usize..7, "(1\\.[0-9]{0,3}[1-9]|[2-9](\\.[0-9]{1,4})?|[1-9][0-9]{1,3}(\\.[0-9]{1,4})?)", 1..7),
    ) {
        let selections: Vec<_> = prices.iter().map(|(at, price)| format!(r#""{}":{price}"#, PRICED[*at])).collect();
        let text = format!(r#"{{"line":{{{}}}}}"#, selections.join(","));
        let parsed = payload(&text).unwrap();
        prop_assert_eq!(parsed.text(), text.as_str());
        prop_assert_eq!(parsed.lines()[0].text.as_deref(), Some(&text[8..text.len() - 1]));
    }
}
