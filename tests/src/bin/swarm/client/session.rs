//! One client's side of the protocol, without I/O: bytes come in, counts and bytes to send go out.

use std::fmt;

use ::tests::Message;
use ::tests::frame::{Side, Violation, frame, last, opcode, parse};
use ::tests::message::Ack;
use ::tests::raw::ACCEPT;
use serde::Deserialize;

use super::http::{Asked, explain};
use super::message::{self, Received, Update};
use crate::report::counts::Counts;

/// A client from its upgrade request to its end.
#[derive(Debug)]
pub(crate) struct Session {
    index: usize,
    phase: Phase,
    began_us: u64,
    /// When the `ping` was sent whose `pong` is still missing.
    pinged_us: Option<u64>,
}

#[derive(Debug, PartialEq, Eq, Clone, Copy)]
enum Phase {
    Upgrading,
    Subscribing,
    Live,
}

/// Why a client ended. Ends are counted by their text.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The response to the upgrade was not 101.
    Refused { status: u16, code: Option<String> },
    /// Markets were rejected.
    Rejected(String),
    /// The server closed with this code.
    Closed(u16),
    /// The server, or a proxy before it, does not speak the protocol.
    Violation(String),
    /// The connection ended without a close frame, or was never established.
    Lost(String),
}

impl Session {
    /// A client whose upgrade request has just been sent.
    pub(crate) fn new(index: usize, now_us: u64) -> Self {
        Self { index, phase: Phase::Upgrading, began_us: now_us, pinged_us: None }
    }

    /// Whether all markets are subscribed to.
    pub(crate) fn is_live(&self) -> bool {
        self.phase == Phase::Live
    }

    pub(crate) fn awaits_pong(&self) -> bool {
        self.pinged_us.is_some()
    }

    /// Takes what was read and returns how much of it was used. The caller keeps the rest for the next call.
    pub(crate) fn receive(
        &mut self,
        bytes: &[u8],
        now_us: u64,
        counts: &mut Counts,
        out: &mut Vec<u8>,
    ) -> Result<usize, Ended> {
        let mut used = 0;
        if self.phase == Phase::Upgrading {
            let Some(length) = upgraded(bytes)? else { return Ok(0) };
            used = length;
            counts.handshake.record(now_us - self.began_us);
            self.subscribe(now_us, counts, out);
        }
        while let Some(frame) = parse(&bytes[used..], Side::Server)? {
            used += frame.length;
            match frame.opcode {
                opcode::TEXT => self.message(&frame.payload, now_us, counts, out)?,
                opcode::PING => {
                    counts.ping_frames += 1;
                    counts.pongs += 1;
                    send(opcode::PONG, &frame.payload, out);
                }
                opcode::CLOSE => {
                    send(opcode::CLOSE, &frame.payload, out);
                    let code = frame.payload.first_chunk();
                    return Err(Ended::Closed(code.map_or(1005, |&code| u16::from_be_bytes(code))));
                }
                opcode::BINARY => return Err(Ended::Violation("a binary message".into())),
                _ => {}
            }
        }
        Ok(used)
    }

    /// Sends a `ping` message; the time until its `pong` is measured.
    pub(crate) fn ping(&mut self, now_us: u64, out: &mut Vec<u8>) {
        self.pinged_us = Some(now_us);
        send(opcode::TEXT, format!(r#"{{"type":"ping","ts":{now_us}}}"#).as_bytes(), out);
    }

    fn subscribe(&mut self, now_us: u64, counts: &Counts, out: &mut Vec<u8>) {
        let check = &counts.check;
        if check.markets.per_connection == 0 {
            self.phase = Phase::Live;
            return;
        }
        let market = |market| match check.offset(market) {
            Some(seq) => format!("\"{market}\":{seq}"),
            None => format!("\"{market}\""),
        };
        let markets = check.markets.of(self.index).map(market).collect::<Vec<_>>().join(",");
        let message = if check.is_resuming() {
            format!(r#"{{"type":"resume","offsets":{{{markets}}}}}"#)
        } else {
            format!(r#"{{"type":"subscribe","markets":[{markets}]}}"#)
        };
        send(opcode::TEXT, message.as_bytes(), out);
        self.phase = Phase::Subscribing;
        self.began_us = now_us;
    }

    fn message(
        &mut self,
        text: &[u8],
        now_us: u64,
        counts: &mut Counts,
        out: &mut Vec<u8>,
    ) -> Result<(), Ended> {
        let message = message::parse(text)
            .map_err(|error| Ended::Violation(format!("{error} in {:?}", String::from_utf8_lossy(text))))?;
        match message {
            Received::Update(Update { market, seq, due_us }) => {
                counts.update(self.index, (market, seq), due_us, now_us);
            }
            Received::Other(Message::Snapshot(snapshot)) => {
                counts.snapshots += 1;
                counts.resets += u64::from(snapshot.reset);
                counts.conflated += u64::from(snapshot.conflated);
                counts.check.snapshot(self.index, snapshot.market_id, snapshot.seq, snapshot.reset);
            }
            Received::Other(Message::Ack(ack)) => self.acknowledged(&ack, now_us, counts)?,
            Received::Other(Message::Ping(_)) => {
                counts.ping_messages += 1;
                counts.pongs += 1;
                send(opcode::TEXT, br#"{"type":"pong"}"#, out);
            }
            Received::Other(Message::Pong(pong)) => {
                let ts = pong.ts.and_then(|ts| ts.as_u64());
                let sent_us = self.pinged_us.take().filter(|&sent_us| ts == Some(sent_us));
                let wrong = || Ended::Violation("a pong with another ts than the ping's".into());
                counts.round_trip.record(now_us - sent_us.ok_or_else(wrong)?);
            }
            Received::Other(Message::Status(status)) => counts.stale += u64::from(status.stale),
            Received::Other(Message::Error(error)) => *counts.errors.entry(error.code).or_default() += 1,
            Received::Other(Message::Bye(bye)) => {
                *counts.errors.entry(format!("bye {}", bye.reason)).or_default() += 1;
            }
            Received::Other(Message::Update(_) | Message::Unknown(_)) => {}
        }
        Ok(())
    }

    fn acknowledged(&mut self, ack: &Ack, now_us: u64, counts: &mut Counts) -> Result<(), Ended> {
        if let Some(first) = ack.rejected.first() {
            let markets = ack.rejected.iter().filter(|other| other.code == first.code).count();
            return Err(Ended::Rejected(format!("{} for {markets} of its markets", first.code)));
        }
        let mut known = 0;
        for (market, position) in ack.positions.iter().flatten() {
            let start = |market| {
                counts.check.start(self.index, market, position.seq, position.recovered == Some(true))
            };
            known += usize::from(market.parse().is_ok_and(start));
        }
        let wanted = counts.check.markets.per_connection;
        if known != wanted {
            return Err(Ended::Violation(format!(
                "an ack with the positions of {known} of {wanted} markets"
            )));
        }
        if self.phase == Phase::Subscribing {
            counts.subscribe.record(now_us - self.began_us);
            self.phase = Phase::Live;
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

fn send(opcode: u8, payload: &[u8], out: &mut Vec<u8>) {
    out.extend(frame(last(opcode), payload));
}

/// The length of a 101 response's head; `None` while it is incomplete.
fn upgraded(bytes: &[u8]) -> Result<Option<usize>, Ended> {
    #[derive(Deserialize)]
    struct ErrorBody {
        code: String,
    }

    const MAX_HEAD_BYTES: usize = 16 * 1024;
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
        let too_long = bytes.len() > MAX_HEAD_BYTES;
        return if too_long { Err(Ended::Violation("no HTTP response".into())) } else { Ok(None) };
    };
    let (head, body) = bytes.split_at(end + 4);
    let head = String::from_utf8_lossy(head);
    let status = head.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok());
    match status.ok_or_else(|| Ended::Violation("a response that is not HTTP/1.1".into()))? {
        101 if head.contains(ACCEPT) => Ok(Some(end + 4)),
        101 => Err(Ended::Violation("a 101 without the right Sec-WebSocket-Accept".into())),
        status => {
            let code = serde_json::from_slice::<ErrorBody>(body).ok().map(|body| body.code);
            Err(Ended::Refused { status, code })
        }
    }
}

#[cfg(test)]
mod tests {
    use ::tests::frame::unmasked_frame;

    use super::*;
    use crate::markets::Markets;

    const SWITCHING: &str = "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\n\
                             sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
    const ACK: &str = r#"{"type":"ack","ok":true,"subscribed":[5],"positions":{"5":{"epoch":1,"seq":3}}}"#;

    struct Client {
        session: Session,
        counts: Counts,
        out: Vec<u8>,
    }

    impl Client {
        fn new(per_connection: usize) -> Self {
            let counts = Counts::new(Markets { first: 5, ..Markets::new(1, per_connection) }, 1);
            Self { session: Session::new(0, 100), counts, out: Vec::new() }
        }

        fn live() -> Self {
            let mut client = Self::new(1);
            client.receive(SWITCHING.as_bytes()).unwrap();
            client.text(ACK).unwrap();
            client.out.clear();
            client
        }

        fn receive(&mut self, bytes: &[u8]) -> Result<usize, Ended> {
            self.session.receive(bytes, 1_000, &mut self.counts, &mut self.out)
        }

        fn text(&mut self, text: &str) -> Result<usize, Ended> {
            self.receive(&unmasked_frame(last(opcode::TEXT), text.as_bytes()))
        }

        /// The frames that it wants to send.
        fn sent(&mut self) -> Vec<(u8, String)> {
            let bytes = std::mem::take(&mut self.out);
            let (mut rest, mut frames) = (&bytes[..], Vec::new());
            while let Some(frame) = parse(rest, Side::Client).unwrap() {
                frames.push((frame.opcode, String::from_utf8(frame.payload.to_vec()).unwrap()));
                rest = &rest[frame.length..];
            }
            frames
        }

        fn sent_text(&mut self) -> String {
            let [(opcode::TEXT, text)] = &self.sent()[..] else { panic!("one text frame") };
            text.clone()
        }
    }

    #[test]
    fn a_client_upgrades_subscribes_and_is_live_after_the_ack() {
        let mut client = Client::new(1);
        for cut in 0..SWITCHING.len() {
            assert_eq!(client.receive(&SWITCHING.as_bytes()[..cut]), Ok(0));
        }
        assert_eq!(client.receive(SWITCHING.as_bytes()), Ok(SWITCHING.len()));
        assert_eq!(client.sent_text(), r#"{"type":"subscribe","markets":["5"]}"#);
        assert!(!client.session.is_live());
        client.text(ACK).unwrap();
        assert!(client.session.is_live());
    }

    #[test]
    fn a_client_that_resumes_says_what_it_has() {
        let mut client = Client::new(1);
        client.counts = Counts::resuming(client.counts.check.markets, 1, vec![2]);
        client.receive(SWITCHING.as_bytes()).unwrap();
        assert_eq!(client.sent_text(), r#"{"type":"resume","offsets":{"5":2}}"#);
        client.text(&ACK.replace(r#""seq":3"#, r#""seq":3,"recovered":true"#)).unwrap();
        client.text(r#"{"type":"odds_update","marketId":5,"seq":3,"ts":1,"payload":{"a":{}}}"#).unwrap();
        assert_eq!((client.counts.check.recovered, client.counts.check.broken()), (1, 0));
    }

    #[test]
    fn everything_may_arrive_in_one_read_and_the_cut_frame_is_left() {
        let mut client = Client::new(1);
        let mut bytes = SWITCHING.as_bytes().to_vec();
        bytes.extend(unmasked_frame(0x81, ACK.as_bytes()));
        for seq in [4, 5] {
            let update =
                format!(r#"{{"type":"odds_update","marketId":5,"seq":{seq},"ts":1,"payload":{{"a":{{}}}}}}"#);
            bytes.extend(unmasked_frame(0x81, update.as_bytes()));
        }
        let whole = bytes.len();
        bytes.extend([0x81, 20, b'{']);
        assert_eq!(client.receive(&bytes), Ok(whole));
        assert_eq!((client.counts.deliveries, client.counts.check.broken()), (2, 0));
    }

    #[test]
    fn heartbeats_of_both_kinds_get_a_pong() {
        let mut client = Client::live();
        client.text(r#"{"type":"ping","ts":1}"#).unwrap();
        client.receive(&unmasked_frame(last(opcode::PING), b"hi")).unwrap();
        assert_eq!(client.sent(), [(opcode::TEXT, r#"{"type":"pong"}"#.into()), (opcode::PONG, "hi".into())]);
        let Counts { ping_messages, ping_frames, pongs, .. } = client.counts;
        assert_eq!((ping_messages, ping_frames, pongs), (1, 1, 2));
    }

    #[test]
    fn a_ping_is_measured_when_its_own_pong_comes_back() {
        let mut client = Client::live();
        client.session.ping(700, &mut client.out);
        assert_eq!(client.sent_text(), r#"{"type":"ping","ts":700}"#);
        client.text(r#"{"type":"pong","ts":700}"#).unwrap();
        assert!(!client.session.awaits_pong());
        assert_eq!(client.counts.round_trip.max_us(), 300);
        assert!(client.text(r#"{"type":"pong","ts":701}"#).is_err());
    }

    #[test]
    fn without_markets_a_client_is_live_after_the_upgrade() {
        let mut client = Client::new(0);
        client.receive(SWITCHING.as_bytes()).unwrap();
        assert!(client.session.is_live());
        assert!(client.out.is_empty());
    }

    #[test]
    fn a_refusal_names_status_code_and_what_to_do() {
        let response = "HTTP/1.1 429 Too Many Requests\r\nretry-after: 1\r\n\r\n{\"code\":\"RATE_LIMITED\",\"message\":\"m\"}";
        let refused = Client::new(1).receive(response.as_bytes()).unwrap_err();
        assert_eq!(refused.to_string(), "upgrade refused with 429 RATE_LIMITED");
        assert!(refused.hint().unwrap().contains("HANDSHAKE_RATE_LIMIT=0"));
    }

    #[test]
    fn what_the_protocol_forbids_ends_the_client() {
        let wrong_accept = SWITCHING.replace("s3p", "xxx");
        assert!(matches!(Client::new(1).receive(wrong_accept.as_bytes()), Err(Ended::Violation(_))));
        assert!(matches!(Client::live().receive(&unmasked_frame(0x82, b"x")), Err(Ended::Violation(_))));
        assert!(matches!(Client::live().text("{"), Err(Ended::Violation(_))));
        assert!(matches!(Client::live().text(r#"{"type":"ack","ok":true}"#), Err(Ended::Violation(_))));
        let rejected =
            r#"{"type":"ack","ok":false,"positions":{},"rejected":[{"marketId":5,"code":"FORBIDDEN"}]}"#;
        let ended = Ended::Rejected("FORBIDDEN for 1 of its markets".into());
        assert_eq!(Client::live().text(rejected), Err(ended));
    }

    #[test]
    fn a_close_is_returned_and_its_code_kept() {
        let mut client = Client::live();
        assert_eq!(client.receive(&unmasked_frame(0x88, b"\x11\x39x")), Err(Ended::Closed(4409)));
        assert_eq!(client.sent(), [(opcode::CLOSE, "\x11\x39x".into())]);
        assert_eq!(Client::live().receive(&unmasked_frame(0x88, b"")), Err(Ended::Closed(1005)));
    }
}
