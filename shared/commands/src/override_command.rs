//! `publisher override`: sends an override to an admin API, and retries for some seconds with the same idempotency key.

use std::{process::ExitCode, time::Duration};

use protocol::{MarketId, Secret};
use serde::Deserialize;
use serde_json::{Value, value::RawValue};
use service::settings::{Row, Setting, Settings, Stop};

use crate::{
    block_on,
    http_client::{Endpoint, Response},
    words,
};

/// The waits before each retry, when the outcome is unknown or the publisher is not ready.
const RETRY_AFTER: [Duration; 5] = [
    Duration::from_millis(100),
    Duration::from_millis(300),
    Duration::from_secs(1),
    Duration::from_secs(3),
    Duration::from_secs(5),
];
/// The exit code when the market is not at `EXPECTED_SEQ`.
const CONFLICT: u8 = 3;

const TOKEN: Setting<Secret> =
    Setting::new("TOKEN", "", "required: an admin token with the role trader or admin; also ADMIN_TOKEN");
const REASON: Setting<String> = Setting::new("REASON", "", "the reason, for the audit");
const EXPECTED_SEQ: Setting<u64> = Setting::new("EXPECTED_SEQ", "", "the seq that the market must be at");
const IDEMPOTENCY_KEY: Setting<String> = Setting::new(
    "IDEMPOTENCY_KEY",
    "(random)",
    "the key of an earlier attempt, so that the override is appended once",
);

const TABLE: &[Row] = &[TOKEN.row(), REASON.row(), EXPECTED_SEQ.row(), IDEMPOTENCY_KEY.row()];

const USAGE: &str = "\
publisher override URL MARKET 'JSON' --reason 'line move' [--expected-seq N]: sends an override to the admin API at URL.

JSON is the payload, such as '{\"moneyline\":{\"home\":1.85,\"away\":2.10}}'; null in place of a line removes the line.
The token comes from --token-file, or from ADMIN_TOKEN or ADMIN_TOKEN_FILE in the environment; the rest are flags only.
When the network fails, the command retries for some seconds; the override is appended once. Exit code 0: it is in the log,
and the response is printed. 1: it was refused, or not delivered. 2: it was not sent. 3: the market is not at EXPECTED_SEQ.";

/// A request, and the server it goes to.
struct OverrideRequest {
    endpoint: Endpoint,
    token: Secret,
    key: String,
    body: String,
}

/// Runs the command: prints the response, or why there is none.
///
/// # Errors
/// [`Stop`] with the help, or with every problem.
pub fn run(
    args: impl Iterator<Item = String>,
    env: impl Fn(&str) -> Option<String>,
) -> Result<ExitCode, Stop> {
    let request = read(args, env)?;
    Ok(block_on(async {
        match send(&request).await {
            Ok(response) => report(&response),
            Err(problem) => {
                eprintln!("not delivered: {problem}");
                eprintln!(
                    "It may be in the log. To append it once, retry with --idempotency-key {}",
                    request.key
                );
                ExitCode::FAILURE
            }
        }
    }))
}

fn read(
    args: impl Iterator<Item = String>,
    env: impl Fn(&str) -> Option<String>,
) -> Result<OverrideRequest, Stop> {
    let mut args = args.peekable();
    let words = words(&mut args);
    let env = |name: &str| if name.starts_with("TOKEN") { env(&format!("ADMIN_{name}")) } else { None };
    let mut settings = Settings::read(USAGE, TABLE, args, env)?;
    let [url, market, payload] = match words.try_into() {
        Ok(words) => words,
        Err(_) => {
            settings.problem("URL MARKET 'JSON'", "are expected, in front of all flags");
            [const { String::new() }; 3]
        }
    };
    let endpoint = Endpoint::parse(&url);
    let market = market.parse::<MarketId>();
    let payload = serde_json::from_str::<&RawValue>(&payload).map(RawValue::get).map_err(|e| e.to_string());
    for (name, problem) in [
        ("URL", endpoint.as_ref().err().cloned()),
        ("MARKET", market.as_ref().err().map(ToString::to_string)),
        ("JSON", payload.as_ref().err().cloned()),
    ] {
        if let Some(problem) = problem {
            settings.problem(name, &problem);
        }
    }
    let token = settings.optional(&TOKEN);
    if token.is_none() {
        settings.problem(TOKEN.name(), "required: --token-file, ADMIN_TOKEN or ADMIN_TOKEN_FILE");
    }
    let reason = settings.optional(&REASON);
    let expected_seq = settings.optional(&EXPECTED_SEQ);
    let key =
        settings.optional(&IDEMPOTENCY_KEY).unwrap_or_else(|| format!("{:032x}", rand::random::<u128>()));
    let (Ok(endpoint), Ok(market), Ok(payload), Some(token)) = (endpoint, market, payload, token) else {
        return Err(settings.stop());
    };
    settings.finish()?;
    // The payload is sent byte for byte: its prices are text.
    let reason = reason.map_or_else(String::new, |reason| format!(r#","reason":{}"#, Value::from(reason)));
    let expected_seq = expected_seq.map_or_else(String::new, |seq| format!(r#","expectedSeq":{seq}"#));
    let body = format!(r#"{{"marketId":{market},"payload":{payload}{reason}{expected_seq}}}"#);
    Ok(OverrideRequest { endpoint, token, key, body })
}

/// Sends the request until a response has its result.
async fn send(OverrideRequest { endpoint, token, key, body }: &OverrideRequest) -> Result<Response, String> {
    let authorization = format!("Bearer {}", token.expose());
    let headers = [
        ("authorization", authorization.as_str()),
        ("content-type", "application/json"),
        ("idempotency-key", key),
    ];
    let mut waits = RETRY_AFTER.iter();
    loop {
        let problem = match endpoint.send("POST", "/admin/odds/override", &headers, body.clone()).await {
            Ok(response) if !matches!(response.status, 429 | 502..=504) => return Ok(response),
            Ok(response) => format!("{} {}", response.status, response.text),
            Err(error) => error.to_string(),
        };
        let Some(wait) = waits.next() else { return Err(problem) };
        eprintln!("again in {} ms: {problem}", wait.as_millis());
        tokio::time::sleep(*wait).await;
    }
}

fn report(response: &Response) -> ExitCode {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Conflict {
        current_seq: u64,
    }

    if response.status == 200 {
        println!("{}", response.text);
        return ExitCode::SUCCESS;
    }
    match serde_json::from_str::<Conflict>(&response.text) {
        Ok(Conflict { current_seq }) if response.status == 409 => {
            eprintln!("conflict: the market is at seq {current_seq}");
            ExitCode::from(CONFLICT)
        }
        _ => {
            eprintln!("refused: {} {}", response.status, response.text);
            ExitCode::FAILURE
        }
    }
}
