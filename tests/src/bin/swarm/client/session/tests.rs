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
        self.receive(&text_frame(text))
    }

    /// The frames that it wants to send, by opcode.
    fn sent(&mut self) -> Vec<(u8, String)> {
        let bytes = std::mem::take(&mut self.out);
        let (mut rest, mut frames) = (&bytes[..], Vec::new());
        while let Some(frame) = parse(rest, Side::Client).unwrap() {
            frames.push((frame.opcode, String::from_utf8(frame.payload.to_vec()).unwrap()));
            rest = &rest[frame.length..];
        }
        frames
    }
}

fn text_frame(text: &str) -> Vec<u8> {
    unmasked_frame(last(opcode::TEXT), text.as_bytes())
}

fn text(text: &str) -> (u8, String) {
    (opcode::TEXT, text.to_owned())
}

fn update(seq: u64) -> String {
    format!(r#"{{"type":"odds_update","marketId":5,"seq":{seq},"ts":1,"payload":{{"a":{{}}}}}}"#)
}

#[test]
fn a_client_upgrades_subscribes_and_is_live_after_the_ack() {
    let mut client = Client::new(1);
    for cut in 0..SWITCHING.len() {
        assert_eq!(client.receive(&SWITCHING.as_bytes()[..cut]), Ok(0));
    }
    assert_eq!(client.receive(SWITCHING.as_bytes()), Ok(SWITCHING.len()));
    assert_eq!(client.sent(), [text(r#"{"type":"subscribe","markets":["5"]}"#)]);
    assert!(!client.session.is_live());
    client.text(ACK).unwrap();
    assert!(client.session.is_live());
}

#[test]
fn a_client_that_resumes_says_what_it_has() {
    let mut client = Client::new(1);
    client.counts = Counts::resuming(client.counts.check.markets, 1, vec![2]);
    client.receive(SWITCHING.as_bytes()).unwrap();
    assert_eq!(client.sent(), [text(r#"{"type":"resume","offsets":{"5":2}}"#)]);
    client.text(&ACK.replace(r#""seq":3"#, r#""seq":3,"recovered":true"#)).unwrap();
    client.text(&update(3)).unwrap();
    assert_eq!((client.counts.check.recovered, client.counts.check.broken()), (1, 0));
}

#[test]
fn everything_may_arrive_in_one_read_and_the_cut_frame_is_left() {
    let mut client = Client::new(1);
    let frames = [ACK, &update(4), &update(5)].map(text_frame).concat();
    let whole = [SWITCHING.as_bytes(), &frames].concat();
    assert_eq!(client.receive(&[&whole[..], &[0x81, 20, b'{']].concat()), Ok(whole.len()));
    assert_eq!((client.counts.deliveries, client.counts.check.broken()), (2, 0));
}

#[test]
fn heartbeats_of_both_kinds_get_a_pong() {
    let mut client = Client::live();
    client.text(r#"{"type":"ping","ts":1}"#).unwrap();
    client.receive(&unmasked_frame(last(opcode::PING), b"hi")).unwrap();
    assert_eq!(client.sent(), [text(r#"{"type":"pong"}"#), (opcode::PONG, "hi".into())]);
    let Counts { ping_messages, ping_frames, pongs, .. } = client.counts;
    assert_eq!((ping_messages, ping_frames, pongs), (1, 1, 2));
}

#[test]
fn a_ping_is_measured_when_its_own_pong_comes_back() {
    let mut client = Client::live();
    client.session.ping(700, &mut client.out);
    assert_eq!(client.sent(), [text(r#"{"type":"ping","ts":700}"#)]);
    client.text(r#"{"type":"pong","ts":700}"#).unwrap();
    assert!(!client.session.awaits_pong());
    assert_eq!(client.counts.round_trip.max_us(), 300);
    assert!(client.text(r#"{"type":"pong","ts":701}"#).is_err());
}

#[test]
fn without_markets_a_client_is_live_after_the_upgrade() {
    let mut client = Client::new(0);
    client.receive(SWITCHING.as_bytes()).unwrap();
    assert!(client.session.is_live() && client.out.is_empty());
}

#[test]
fn a_refusal_names_status_code_and_what_to_do() {
    let response = "HTTP/1.1 429 Too Many Requests\r\nretry-after: 1\r\n\r\n{\"code\":\"RATE_LIMITED\",\"message\":\"m\"}";
    let refused = Client::new(1).receive(response.as_bytes()).unwrap_err();
    assert_eq!(refused.why, "upgrade refused with 429 RATE_LIMITED");
    assert!(refused.hint.unwrap().contains("HANDSHAKE_RATE_LIMIT=0"));
}

#[test]
fn what_the_protocol_forbids_ends_the_client() {
    let is_violation = |ended: Result<_, Ended>| ended.unwrap_err().why.starts_with("the server sent");
    assert!(is_violation(Client::new(1).receive(SWITCHING.replace("s3p", "xxx").as_bytes())));
    assert!(is_violation(Client::live().receive(&unmasked_frame(0x82, b"x"))));
    assert!(is_violation(Client::live().text("{")));
    assert!(is_violation(Client::live().text(r#"{"type":"ack","ok":true}"#)));
    let rejected =
        r#"{"type":"ack","ok":false,"positions":{},"rejected":[{"marketId":5,"code":"FORBIDDEN"}]}"#;
    let ended = Client::live().text(rejected).unwrap_err();
    assert_eq!(ended.why, "subscription rejected: FORBIDDEN for 1 of its markets");
}

#[test]
fn a_close_is_returned_and_its_code_kept() {
    let mut client = Client::live();
    let closed = |ended: Result<_, Ended>| ended.unwrap_err().why;
    let ended = client.receive(&unmasked_frame(0x88, b"\x11\x39x"));
    assert_eq!(closed(ended), "closed by the server with 4409");
    assert_eq!(client.sent(), [(opcode::CLOSE, "\x11\x39x".into())]);
    let ended = Client::live().receive(&unmasked_frame(0x88, b""));
    assert_eq!(closed(ended), "closed by the server with 1005");
}
