//! One client's side of the contract, without I/O: bytes come in, counts and answers go out.

use std::fmt;

use serde::Deserialize;

use crate::frame::{self, Opcode, Violation};
use crate::http::{Asked, explain};
use crate::message::{self, Message};
use crate::tally::Tally;

/// A client from its upgrade request to its end.
#[derive(Debug)]
pub(crate) struct Session {
    index: usize,
    phase: Phase,
    began_us: u64,
    probed_us: u64,
}

#[derive(Debug, PartialEq, Eq, Clone, Copy)]
enum Phase {
    Upgrading,
    Subscribing,
    Live,
}

/// Why a client ended. Its text is the key it is counted under.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The upgrade was answered with something other than 101.
    Refused {
        /// The HTTP status.
        status: u16,
        /// The error body's code, if there is one.
        code: Option<String>,
    },
    /// Some of the markets were rejected.
    Rejected(String),
    /// The server closed, with this code.
    Closed(u16),
    /// The server, or something before it, does not speak the protocol.
    Violation(String),
    /// The connection is gone without a close frame, or never came to be.
    Lost(String),
}

impl Session {
    /// A client whose upgrade request has just been sent.
    pub(crate) fn new(index: usize, now_us: u64) -> Self {
        Self { index, phase: Phase::Upgrading, began_us: now_us, probed_us: 0 }
    }

    /// Whether all markets are subscribed to.
    pub(crate) fn is_live(&self) -> bool {
        self.phase == Phase::Live
    }

    /// Since when the client is waiting for what is due before it is live.
    pub(crate) fn began_us(&self) -> u64 {
        self.began_us
    }

    /// Whether a `ping` of this client waits for its `pong`.
    pub(crate) fn is_probed(&self) -> bool {
        self.probed_us != 0
    }

    /// Takes what was read and gives back how much of it was used; the rest is wanted again with more behind it.
    ///
    /// # Errors
    /// `Ended`, after which the client is no more.
    pub(crate) fn receive(
        &mut self,
        bytes: &[u8],
        now_us: u64,
        tally: &mut Tally,
        out: &mut Outbox,
    ) -> Result<usize, Ended> {
        let mut used = 0;
        if self.phase == Phase::Upgrading {
            let Some(length) = upgraded(bytes)? else { return Ok(0) };
            used = length;
            tally.handshake.record(now_us - self.began_us);
            self.subscribe(now_us, tally, out);
        }
        while let Some(frame) = frame::parse(&bytes[used..])? {
            used += frame.length;
            match frame.opcode {
                Opcode::Text => self.message(frame.payload, now_us, tally, out)?,
                Opcode::Ping => {
                    tally.ping_frames += 1;
                    tally.answered += 1;
                    out.frame(Opcode::Pong, frame.payload);
                }
                Opcode::Pong => {}
                Opcode::Binary => return Err(Ended::Violation("a binary message".into())),
                Opcode::Close => {
                    out.frame(Opcode::Close, frame.payload);
                    return Err(Ended::Closed(
                        frame.payload.first_chunk().map_or(1005, |&code| u16::from_be_bytes(code)),
                    ));
                }
            }
        }
        Ok(used)
    }

    /// Sends a `ping` message, whose `pong` is measured.
    pub(crate) fn probe(&mut self, now_us: u64, out: &mut Outbox) {
        self.probed_us = now_us;
        out.frame(Opcode::Text, format!(r#"{{"type":"ping","ts":{now_us}}}"#).as_bytes());
    }

    fn subscribe(&mut self, now_us: u64, tally: &Tally, out: &mut Outbox) {
        if tally.markets.per_connection == 0 {
            self.phase = Phase::Live;
            return;
        }
        let market = |market| match tally.offset(market) {
            Some(seq) => format!("\"{market}\":{seq}"),
            None => format!("\"{market}\""),
        };
        let markets = tally.markets.of(self.index).map(market).collect::<Vec<_>>().join(",");
        let message = if tally.is_resuming() {
            format!(r#"{{"type":"resume","offsets":{{{markets}}}}}"#)
        } else {
            format!(r#"{{"type":"subscribe","markets":[{markets}]}}"#)
        };
        out.frame(Opcode::Text, message.as_bytes());
        self.phase = Phase::Subscribing;
        self.began_us = now_us;
    }

    fn message(
        &mut self,
        text: &[u8],
        now_us: u64,
        tally: &mut Tally,
        out: &mut Outbox,
    ) -> Result<(), Ended> {
        let message = message::parse(text)
            .map_err(|error| Ended::Violation(format!("{error} in {:?}", String::from_utf8_lossy(text))))?;
        match message {
            Message::Update(update) => tally.update(self.index, update, now_us),
            Message::Snapshot { market, seq, reset, conflated } => {
                tally.snapshot(self.index, market, seq, reset, conflated);
            }
            Message::Ack { positions, rejected } => {
                if let Some((code, markets)) = rejected.first_key_value() {
                    return Err(Ended::Rejected(format!("{code} for {markets} of its markets")));
                }
                let known = positions
                    .into_iter()
                    .filter(|&(market, position)| tally.start(self.index, market, position))
                    .count();
                if known != tally.markets.per_connection {
                    return Err(Ended::Violation(format!(
                        "an ack with the positions of {known} of {} markets",
                        tally.markets.per_connection
                    )));
                }
                if self.phase == Phase::Subscribing {
                    tally.subscribe.record(now_us - self.began_us);
                    self.phase = Phase::Live;
                }
            }
            Message::Ping => {
                tally.ping_messages += 1;
                tally.answered += 1;
                out.frame(Opcode::Text, br#"{"type":"pong"}"#);
            }
            Message::Pong { ts } if ts == self.probed_us => {
                self.probed_us = 0;
                tally.round_trip.record(now_us - ts);
            }
            Message::Pong { .. } => {
                return Err(Ended::Violation("a pong with another ts than the ping's".into()));
            }
            Message::Status { stale } => tally.stale += u64::from(stale),
            Message::Error { code } => *tally.errors.entry(code).or_default() += 1,
            Message::Bye { reason } => *tally.errors.entry(format!("bye {reason}")).or_default() += 1,
            Message::Other => {}
        }
        Ok(())
    }
}

impl Ended {
    /// What a user can do about it.
    pub(crate) fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Refused { status, .. } => explain(Asked::Socket, *status),
            Self::Lost(_) => Some("look at the gateway's log and at its open-file limit"),
            _ => None,
        }
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused { status, code } => {
                write!(f, "upgrade refused with {status} {}", code.as_deref().unwrap_or_default())
            }
            Self::Rejected(why) => write!(f, "subscription rejected: {why}"),
            Self::Closed(code) => write!(f, "closed by the server with {code}"),
            Self::Violation(what) => write!(f, "the server sent {what}"),
            Self::Lost(why) => write!(f, "connection lost: {why}"),
        }
    }
}

impl From<Violation> for Ended {
    fn from(violation: Violation) -> Self {
        Self::Violation(violation.to_string())
    }
}

/// What a client has to send, masked, and the state of the masks.
pub(crate) struct Outbox {
    /// Bytes for the socket.
    pub(crate) bytes: Vec<u8>,
    mask: u32,
}

impl Outbox {
    /// Nothing to send yet.
    pub(crate) fn new() -> Self {
        Self { bytes: Vec::new(), mask: 0x9E37_79B9 }
    }

    /// Adds one frame.
    fn frame(&mut self, opcode: Opcode, payload: &[u8]) {
        // xorshift32: differs from frame to frame; nothing here has to be unpredictable to a proxy.
        self.mask ^= self.mask << 13;
        self.mask ^= self.mask >> 17;
        self.mask ^= self.mask << 5;
        frame::write(opcode, payload, self.mask.to_be_bytes(), &mut self.bytes);
    }
}

/// The upgrade request. Every client sends the example key of RFC 6455, 1.3, so that the answer is a constant.
pub(crate) fn upgrade_request(host: &str, token: &str) -> String {
    format!(
        "GET /ws/odds?token={token} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
}

/// What the key of `upgrade_request` is to be answered with.
pub(crate) const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// The length of a 101 answer's head; `None` while it is not there completely.
fn upgraded(bytes: &[u8]) -> Result<Option<usize>, Ended> {
    const MAX_HEAD_BYTES: usize = 16 * 1024;
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
        let too_long = bytes.len() > MAX_HEAD_BYTES;
        return if too_long { Err(Ended::Violation("no HTTP answer".into())) } else { Ok(None) };
    };
    let (head, body) = bytes.split_at(end + 4);
    let head =
        std::str::from_utf8(head).map_err(|_| Ended::Violation("an HTTP head that is not text".into()))?;
    let mut lines = head.lines();
    let status = lines
        .next()
        .and_then(|line| line.strip_prefix("HTTP/1.1 "))
        .and_then(|rest| rest.get(..3)?.parse().ok())
        .ok_or_else(|| Ended::Violation("an answer that is not HTTP/1.1".into()))?;
    if status != 101 {
        let code = serde_json::from_slice::<ErrorBody>(body).ok().map(|body| body.code);
        return Err(Ended::Refused { status, code });
    }
    let accepted = lines
        .filter_map(|line| line.split_once(':'))
        .any(|(name, value)| name.eq_ignore_ascii_case("sec-websocket-accept") && value.trim() == ACCEPT);
    if accepted {
        Ok(Some(end + 4))
    } else {
        Err(Ended::Violation("a 101 without the right Sec-WebSocket-Accept".into()))
    }
}

#[derive(Deserialize)]
struct ErrorBody {
    code: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::server_frame;
    use crate::markets::Markets;

    const SWITCHING: &str = "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\n\
                             sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
    const ACK: &str = r#"{"type":"ack","ok":true,"subscribed":[5],"positions":{"5":{"epoch":1,"seq":3}}}"#;

    struct Client {
        session: Session,
        tally: Tally,
        out: Outbox,
    }

    impl Client {
        fn new(per_connection: usize) -> Self {
            let tally = Tally::new(Markets { first: 5, count: 1, per_connection }, 1);
            Self { session: Session::new(0, 100), tally, out: Outbox::new() }
        }

        fn live() -> Self {
            let mut client = Self::new(1);
            client.receive(SWITCHING.as_bytes()).unwrap();
            client.text(ACK).unwrap();
            client.out.bytes.clear();
            client
        }

        fn receive(&mut self, bytes: &[u8]) -> Result<usize, Ended> {
            self.session.receive(bytes, 1_000, &mut self.tally, &mut self.out)
        }

        fn text(&mut self, text: &str) -> Result<usize, Ended> {
            self.receive(&server_frame(0x81, text.as_bytes()))
        }

        /// The frames it wants to send, unmasked.
        fn sent(&mut self) -> Vec<(u8, Vec<u8>)> {
            let mut bytes = &std::mem::take(&mut self.out.bytes)[..];
            let mut frames = Vec::new();
            while let [first, length, rest @ ..] = bytes {
                let (mask, rest) = rest.split_at(4);
                let (payload, rest) = rest.split_at(usize::from(length & 0x7F));
                frames.push((
                    *first,
                    payload.iter().zip(mask.iter().cycle()).map(|(byte, key)| byte ^ key).collect(),
                ));
                bytes = rest;
            }
            frames
        }
    }

    #[test]
    fn a_client_upgrades_subscribes_and_is_live_after_the_ack() {
        let mut client = Client::new(1);
        for cut in 0..SWITCHING.len() {
            assert_eq!(client.receive(&SWITCHING.as_bytes()[..cut]), Ok(0));
        }
        assert_eq!(client.receive(SWITCHING.as_bytes()), Ok(SWITCHING.len()));
        assert_eq!(client.sent(), [(0x81, br#"{"type":"subscribe","markets":["5"]}"#.to_vec())]);
        assert!(!client.session.is_live());
        client.text(ACK).unwrap();
        assert!(client.session.is_live());
    }

    #[test]
    fn a_client_that_resumes_says_what_it_has() {
        let mut client = Client::new(1);
        client.tally = Tally::resuming(client.tally.markets, 1, vec![2]);
        client.receive(SWITCHING.as_bytes()).unwrap();
        assert_eq!(client.sent(), [(0x81, br#"{"type":"resume","offsets":{"5":2}}"#.to_vec())]);
        client.text(&ACK.replace(r#""seq":3"#, r#""seq":3,"recovered":true"#)).unwrap();
        client.text(r#"{"type":"odds_update","marketId":5,"seq":3,"ts":1,"payload":{"a":{}}}"#).unwrap();
        assert_eq!((client.tally.recovered, client.tally.checks.broken()), (1, 0));
    }

    #[test]
    fn everything_may_arrive_in_one_read_and_the_cut_frame_is_left() {
        let mut client = Client::new(1);
        let mut bytes = SWITCHING.as_bytes().to_vec();
        bytes.extend(server_frame(0x81, ACK.as_bytes()));
        for seq in [4, 5] {
            let update =
                format!(r#"{{"type":"odds_update","marketId":5,"seq":{seq},"ts":1,"payload":{{"a":{{}}}}}}"#);
            bytes.extend(server_frame(0x81, update.as_bytes()));
        }
        let whole = bytes.len();
        bytes.extend([0x81, 20, b'{']);
        assert_eq!(client.receive(&bytes), Ok(whole));
        assert_eq!((client.tally.deliveries, client.tally.checks.broken()), (2, 0));
    }

    #[test]
    fn heartbeats_of_both_kinds_are_answered() {
        let mut client = Client::live();
        client.text(r#"{"type":"ping","ts":1}"#).unwrap();
        client.receive(&server_frame(0x89, b"hi")).unwrap();
        assert_eq!(client.sent(), [(0x81, br#"{"type":"pong"}"#.to_vec()), (0x8A, b"hi".to_vec())]);
        assert_eq!((client.tally.ping_messages, client.tally.ping_frames, client.tally.answered), (1, 1, 2));
    }

    #[test]
    fn a_probe_is_measured_when_its_own_pong_comes_back() {
        let mut client = Client::live();
        client.session.probe(700, &mut client.out);
        assert_eq!(client.sent(), [(0x81, br#"{"type":"ping","ts":700}"#.to_vec())]);
        client.text(r#"{"type":"pong","ts":700}"#).unwrap();
        assert!(!client.session.is_probed());
        assert_eq!(client.tally.round_trip.histogram().max(), 300);
        assert!(client.text(r#"{"type":"pong","ts":701}"#).is_err());
    }

    #[test]
    fn without_markets_a_client_is_live_after_the_upgrade() {
        let mut client = Client::new(0);
        client.receive(SWITCHING.as_bytes()).unwrap();
        assert!(client.session.is_live());
        assert!(client.out.bytes.is_empty());
    }

    #[test]
    fn a_refusal_names_status_code_and_what_to_do() {
        let answer = "HTTP/1.1 429 Too Many Requests\r\nretry-after: 1\r\n\r\n{\"code\":\"RATE_LIMITED\",\"message\":\"m\"}";
        let refused = Client::new(1).receive(answer.as_bytes()).unwrap_err();
        assert_eq!(refused.to_string(), "upgrade refused with 429 RATE_LIMITED");
        assert!(refused.hint().unwrap().contains("HANDSHAKE_RATE_LIMIT=0"));
    }

    #[test]
    fn what_the_contract_forbids_ends_the_client() {
        let wrong_accept = SWITCHING.replace("s3p", "xxx");
        assert!(matches!(Client::new(1).receive(wrong_accept.as_bytes()), Err(Ended::Violation(_))));
        assert!(matches!(Client::live().receive(&server_frame(0x82, b"x")), Err(Ended::Violation(_))));
        assert!(matches!(Client::live().text("{"), Err(Ended::Violation(_))));
        assert!(matches!(Client::live().text(r#"{"type":"ack","ok":true}"#), Err(Ended::Violation(_))));
        let rejected =
            r#"{"type":"ack","ok":false,"positions":{},"rejected":[{"marketId":5,"code":"FORBIDDEN"}]}"#;
        assert_eq!(
            Client::live().text(rejected),
            Err(Ended::Rejected("FORBIDDEN for 1 of its markets".into()))
        );
    }

    #[test]
    fn a_close_is_answered_and_its_code_kept() {
        let mut client = Client::live();
        assert_eq!(client.receive(&server_frame(0x88, &[0x11, 0x39, b'x'])), Err(Ended::Closed(4409)));
        assert_eq!(client.sent(), [(0x88, vec![0x11, 0x39, b'x'])]);
        assert_eq!(Client::live().receive(&server_frame(0x88, b"")), Err(Ended::Closed(1005)));
    }
}
