//! `gateway tail`: follows markets at the terminal, over reconnects.

mod show;

use std::{
    io,
    process::ExitCode,
    time::{Duration, Instant},
};

use axum::http::{HeaderValue, header::AUTHORIZATION};
use futures_util::{SinkExt, StreamExt};
use protocol::{
    MarketId, Secret,
    client::{Actions, AfterClose, Client, Event},
    time::unix_ms,
};
use serde::Deserialize;
use service::{
    backoff::Backoff,
    settings::{Row, Setting, Settings, Stop},
    signals::Signals,
};
use tokio::time::timeout;
use tokio_tungstenite::{
    WebSocketStream, client_async_with_config,
    tungstenite::{Error, Message, client::IntoClientRequest, protocol::WebSocketConfig},
};

use self::show::Show;
use crate::{
    block_on,
    http_client::{Endpoint, Stream},
    words,
};

const TOKEN: Setting<Secret> =
    Setting::new("TOKEN", "", "a client's token; not set = the command requests one from the gateway");
const TOKEN_API_KEY: Setting<Secret> =
    Setting::new("TOKEN_API_KEY", "", "the bearer key for requesting a token");
const USER: Setting<String> = Setting::new("USER", "tail", "the user id for requesting a token (flag only)");
const JSON: Setting<bool> =
    Setting::new("JSON", "false", "print the gateway's messages, one per line (flag only)");
const COUNT: Setting<u64> = Setting::new("COUNT", "", "end after this many updates (flag only)");

const TABLE: &[Row] = &[TOKEN.row(), TOKEN_API_KEY.row(), USER.row(), JSON.row(), COUNT.row()];

const USAGE: &str = "\
gateway tail URL [MARKET…] [--json]: follows markets of the gateway at URL, such as http://127.0.0.1:8080, over reconnects.

Markets come before the flags; without markets the command follows all that the gateway lists, at most 200. It prints one
line per update: when it was accepted (UTC), market, seq, what changed, and its age on arrival, corrected for the difference
of the clocks. Ctrl-C ends it with a summary. There are no colours with NO_COLOR, or if the output is not a terminal. With
--json everything but the messages goes to standard error.";

/// The markets that a connection may have by default.
const MAX_MARKETS: usize = 200;
/// The longest message, bytes: more than the largest state has.
const MAX_MESSAGE_BYTES: usize = 8 << 20;
/// The most bytes that wait to be sent: a few requests and pongs.
const MAX_UNSENT_BYTES: usize = 1 << 20;
const BACKOFF: Backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(30));
/// After a connection that lived this long, the backoff starts from its beginning.
const STABLE: Duration = Duration::from_secs(10);
/// A connection is lost after this long without a message. Heartbeats come more often.
const SILENCE: Duration = Duration::from_mins(1);

type Socket = WebSocketStream<Box<dyn Stream>>;

struct Tail {
    endpoint: Endpoint,
    /// The token that the user gave.
    given: Option<Secret>,
    api_key: Option<Secret>,
    user: String,
    show: Show,
}

/// Why the command ends.
enum End {
    /// It was interrupted, has shown `COUNT` updates, or its output was closed.
    Done,
    /// Reconnecting would not help.
    Failed(String),
}

/// How a connection ended, if the command goes on.
enum Lost {
    /// It was open, and ended with this close code.
    Closed(u16),
    /// It was never open, for this reason.
    Refused(String),
}

/// Runs the command: follows markets until it is interrupted, and prints a summary.
///
/// # Errors
/// [`Stop`] with the help, or with every problem.
pub fn run(
    args: impl Iterator<Item = String>,
    env: impl Fn(&str) -> Option<String>,
) -> Result<ExitCode, Stop> {
    let mut args = args.peekable();
    let mut words = words(&mut args).into_iter();
    let env = |name: &str| if name.starts_with("TOKEN") { env(name) } else { None };
    let mut settings = Settings::read(USAGE, TABLE, args, env)?;
    let endpoint = Endpoint::parse(&words.next().unwrap_or_default());
    if let Err(problem) = &endpoint {
        settings.problem("URL", problem);
    }
    let markets: Result<Vec<MarketId>, _> = words.map(|word| word.parse()).collect();
    if let Err(problem) = &markets {
        settings.problem("MARKET", &problem.to_string());
    }
    let show = Show::new(settings.value(&JSON), settings.optional(&COUNT));
    let (given, api_key) = (settings.optional(&TOKEN), settings.optional(&TOKEN_API_KEY));
    let user = settings.value(&USER);
    let (Ok(endpoint), Ok(markets)) = (endpoint, markets) else {
        return Err(settings.stop());
    };
    settings.finish()?;
    let mut tail = Tail { endpoint, given, api_key, user, show };
    Ok(block_on(async {
        let end = match Signals::listen() {
            Ok(mut signals) => tokio::select! {
                end = tail.follow(markets) => end,
                () = signals.next() => End::Done,
            },
            Err(error) => End::Failed(format!("signals: {error}")),
        };
        tail.show.summary();
        match end {
            End::Done => ExitCode::SUCCESS,
            End::Failed(problem) => {
                eprintln!("gateway tail: {problem}");
                ExitCode::FAILURE
            }
        }
    }))
}

impl Tail {
    async fn follow(&mut self, markets: Vec<MarketId>) -> End {
        let mut token = None;
        let markets = match self.or_all(markets, &mut token).await {
            Ok(markets) => markets,
            Err(problem) => return End::Failed(problem),
        };
        let mut client = Client::new(markets);
        let mut backoff = BACKOFF;
        loop {
            let begun = Instant::now();
            let lost = match self.connection(&mut client, &mut token).await {
                Ok(lost) => lost,
                Err(end) => return end,
            };
            if begun.elapsed() >= STABLE {
                backoff.reset();
            }
            let (why, least_wait) = match lost {
                Lost::Refused(why) => (why, Duration::ZERO),
                Lost::Closed(code) => match client.closed(code) {
                    AfterClose::Stop { code, reason } => {
                        return End::Failed(format!("the gateway closed: {code} {reason}"));
                    }
                    AfterClose::Reconnect { new_token: true, .. } if self.given.is_some() => {
                        return End::Failed("the token has expired".to_owned());
                    }
                    AfterClose::Reconnect { code, least_wait_ms, new_token } => {
                        if new_token {
                            token = None;
                        }
                        (format!("connection lost ({code})"), Duration::from_millis(least_wait_ms))
                    }
                },
            };
            let wait = least_wait + backoff.failed();
            self.show.say(&format!("{why}; connecting again in {:.1} s", wait.as_secs_f64()));
            tokio::time::sleep(wait).await;
        }
    }

    /// Makes one connection, and follows it to its end.
    async fn connection(&mut self, client: &mut Client, token: &mut Option<Secret>) -> Result<Lost, End> {
        if token.is_none() {
            match self.token().await {
                Ok(new) => *token = Some(new),
                Err(Lost::Refused(why)) if why.starts_with('4') && !why.starts_with("429") => {
                    return Err(End::Failed(why));
                }
                Err(lost) => return Ok(lost),
            }
        }
        let mut socket = match self.open(token.as_ref()).await {
            Ok(socket) => socket,
            Err(Error::Http(response)) => {
                let body = response.body().as_deref().unwrap_or_default();
                let why = format!("{} {}", response.status().as_u16(), String::from_utf8_lossy(body));
                // A token that the command requested may have expired meanwhile.
                let may_be_old = response.status() == 401 && self.given.is_none();
                if response.status().is_client_error() && response.status() != 429 && !may_be_old {
                    return Err(End::Failed(why));
                }
                if may_be_old {
                    *token = None;
                }
                return Ok(Lost::Refused(why));
            }
            Err(error) => return Ok(Lost::Refused(error.to_string())),
        };
        self.show.connected();
        let mut send = client.opened();
        send.push(format!(r#"{{"type":"ping","ts":{}}}"#, unix_ms()));
        loop {
            for text in send.drain(..) {
                if socket.send(Message::text(text)).await.is_err() {
                    break; // the read below returns the connection's end
                }
            }
            let text = match timeout(SILENCE, socket.next()).await {
                Ok(Some(Ok(Message::Text(text)))) => text,
                Ok(Some(Ok(Message::Close(frame)))) => {
                    return Ok(Lost::Closed(frame.map_or(1005, |frame| frame.code.into())));
                }
                Ok(Some(Ok(_))) => continue,
                Ok(Some(Err(_)) | None) | Err(_) => return Ok(Lost::Closed(1006)),
            };
            let mut actions = match client.received(&text) {
                Ok(actions) => actions,
                Err(error) => {
                    self.show.say(&format!("a message that is not in the protocol: {error}"));
                    continue;
                }
            };
            loop {
                send.append(&mut actions.send);
                let fetch = actions.fetch;
                self.show_events(actions, &mut send)?;
                let Some(fetch) = fetch else { break };
                let fetched = self.get(&fetch.path(), token.as_ref()).await;
                match fetched.and_then(|text| client.fetched(fetch, &text).map_err(|error| error.to_string()))
                {
                    Ok(next) => actions = next,
                    // A new connection resumes, which brings the missing updates as well.
                    Err(problem) => {
                        self.show.say(&format!("the missing updates cannot be fetched: {problem}"));
                        return Ok(Lost::Closed(1006));
                    }
                }
            }
        }
    }

    fn show_events(&mut self, actions: Actions, send: &mut Vec<String>) -> Result<(), End> {
        for event in actions.events {
            if matches!(event, Event::Clock(_)) {
                send.push(format!(r#"{{"type":"ping","ts":{}}}"#, unix_ms()));
            }
            match self.show.event(event) {
                Ok(true) => {}
                Ok(false) => return Err(End::Done),
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Err(End::Done),
                Err(error) => return Err(End::Failed(format!("standard output: {error}"))),
            }
        }
        Ok(())
    }

    async fn open(&self, token: Option<&Secret>) -> Result<Socket, Error> {
        let mut request = self.endpoint.websocket("/ws/odds").into_client_request()?;
        if let Some(token) = token {
            let bearer = HeaderValue::try_from(format!("Bearer {}", token.expose()));
            request
                .headers_mut()
                .insert(AUTHORIZATION, bearer.map_err(|error| Error::Io(io::Error::other(error)))?);
        }
        let config = WebSocketConfig::default()
            .max_message_size(Some(MAX_MESSAGE_BYTES))
            .max_frame_size(Some(MAX_MESSAGE_BYTES))
            .max_write_buffer_size(MAX_UNSENT_BYTES);
        let handshake = async {
            let stream = self.endpoint.connect().await?;
            Ok(client_async_with_config(request, stream, Some(config)).await?.0)
        };
        timeout(SILENCE, handshake).await.map_err(|_| Error::Io(io::ErrorKind::TimedOut.into()))?
    }

    /// Returns the token that the user gave, or requests one from the gateway.
    async fn token(&self) -> Result<Secret, Lost> {
        #[derive(Deserialize)]
        struct Issued {
            token: String,
        }

        if let Some(given) = &self.given {
            return Ok(given.clone());
        }
        let body = format!(r#"{{"userId":{}}}"#, serde_json::Value::from(self.user.as_str()));
        let bearer = self.api_key.as_ref().map(|key| format!("Bearer {}", key.expose()));
        let headers: Vec<(&str, &str)> =
            bearer.iter().map(|bearer| ("authorization", bearer.as_str())).collect();
        let response = self.endpoint.send("POST", "/api/ws/token", &headers, body).await;
        let response = response.map_err(|error| Lost::Refused(error.to_string()))?;
        match serde_json::from_str::<Issued>(&response.text) {
            Ok(Issued { token }) if response.status == 200 => Ok(Secret::new(&token)),
            _ => Err(Lost::Refused(format!("{} {}", response.status, response.text))),
        }
    }

    async fn get(&self, path: &str, token: Option<&Secret>) -> Result<String, String> {
        let bearer = token.map(|token| format!("Bearer {}", token.expose()));
        let headers: Vec<(&str, &str)> =
            bearer.iter().map(|bearer| ("authorization", bearer.as_str())).collect();
        let response = self.endpoint.send("GET", path, &headers, String::new()).await;
        let response = response.map_err(|error| error.to_string())?;
        if response.status == 200 {
            Ok(response.text)
        } else {
            Err(format!("{} {}", response.status, response.text))
        }
    }

    /// Returns the markets that the user named, or all that the gateway lists.
    async fn or_all(
        &self,
        named: Vec<MarketId>,
        token: &mut Option<Secret>,
    ) -> Result<Vec<MarketId>, String> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Listed {
            markets: Vec<MarketId>,
        }

        if !named.is_empty() {
            return Ok(named);
        }
        *token = Some(self.token().await.map_err(|lost| match lost {
            Lost::Refused(why) => why,
            Lost::Closed(code) => code.to_string(),
        })?);
        let path = format!("/api/markets?limit={MAX_MARKETS}");
        let listed = self.get(&path, token.as_ref()).await.map_err(|problem| {
            if problem.starts_with("404") {
                "this gateway lists no markets: say which to follow".to_owned()
            } else {
                problem
            }
        })?;
        let Listed { markets } = serde_json::from_str(&listed).map_err(|error| error.to_string())?;
        if markets.is_empty() {
            return Err("there are no markets yet: say which to follow".to_owned());
        }
        Ok(markets)
    }
}
