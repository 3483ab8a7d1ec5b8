//! Messages from server to client, as JSON text (`docs/protocol.md#server-to-client`).

use std::fmt::Write;

use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    client_message::MessageId,
    close::CloseCode,
    error::Refusal,
    ids::MarketId,
    json::quoted,
    position::{Position, Seq},
    update::{MarketState, Payload, Update},
};

/// Writes `odds_update`: one update of a market's log.
#[must_use]
pub fn odds_update(market: MarketId, update: &Update) -> String {
    format!(
        r#"{{"type":"odds_update","marketId":{market},"seq":{},"ts":{},"payload":{}}}"#,
        update.position.seq, update.ts, update.payload
    )
}

/// The members that [`odds_update`] writes.
#[derive(ToSchema)]
#[schema(description = "One update of a market's log.", rename_all = "camelCase")]
pub struct OddsUpdate {
    /// `odds_update`.
    pub r#type: String,
    /// The market's id.
    pub market_id: MarketId,
    /// The update's seq.
    pub seq: Seq,
    /// Unix milliseconds at which it was accepted.
    pub ts: u64,
    /// The lines that the update sets or removes.
    pub payload: Payload,
}

/// Why a snapshot is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SnapshotCause {
    /// The client requested it.
    Asked,
    /// History was lost, or the client missed too much.
    Reset,
    /// The client was too slow: the snapshot stands for the updates that it missed.
    Conflated,
}

/// Writes `snapshot`: a market's state, which replaces all lines that the client has.
#[must_use]
pub fn snapshot(market: MarketId, state: &MarketState, cause: SnapshotCause) -> String {
    let reason = match cause {
        SnapshotCause::Asked => "",
        SnapshotCause::Reset => r#","reset":true"#,
        SnapshotCause::Conflated => r#","conflated":true"#,
    };
    let Position { epoch, seq } = state.position;
    let (ts, payload) = (state.ts, state.payload_json());
    format!(
        r#"{{"type":"snapshot","marketId":{market},"seq":{seq},"ts":{ts},"payload":{payload},"epoch":{epoch}{reason}}}"#
    )
}

/// The result of a request (`docs/protocol.md#ack`).
#[derive(Clone, Debug, Default)]
pub struct Ack {
    /// The request's id.
    pub id: Option<MessageId>,
    /// The request's markets that are now subscribed.
    pub subscribed: Vec<Subscribed>,
    /// The request's markets that are now not subscribed; `None` unless it is an unsubscribe.
    pub unsubscribed: Option<Vec<MarketId>>,
    /// The request's markets that were refused, and why.
    pub rejected: Vec<(MarketId, Refusal)>,
    /// Writes `positions`: true for subscribe and resume.
    pub with_positions: bool,
}

/// A subscribed market of an ack.
#[derive(Clone, Copy, Debug)]
pub struct Subscribed {
    /// The market.
    pub market: MarketId,
    /// The position after which delivery starts.
    pub position: Position,
    /// After a resume: true if all missed updates are replayed.
    pub recovered: Option<bool>,
}

impl Ack {
    /// Writes the message.
    #[must_use]
    pub fn json(&self) -> String {
        let mut json = format!(r#"{{"type":"ack","ok":{}"#, self.rejected.is_empty());
        write_id(&mut json, self.id.as_ref());
        let _ = write!(json, r#","subscribed":{}"#, array(self.subscribed.iter().map(|entry| entry.market)));
        if let Some(markets) = &self.unsubscribed {
            let _ = write!(json, r#","unsubscribed":{}"#, array(markets));
        }
        if self.with_positions {
            json.push_str(r#","positions":{"#);
            for (index, entry) in self.subscribed.iter().enumerate() {
                let comma = if index > 0 { "," } else { "" };
                let Position { epoch, seq } = entry.position;
                let _ = write!(json, r#"{comma}"{}":{{"epoch":{epoch},"seq":{seq}"#, entry.market);
                if let Some(recovered) = entry.recovered {
                    let _ = write!(json, r#","recovered":{recovered}"#);
                }
                json.push('}');
            }
            json.push('}');
        }
        if !self.rejected.is_empty() {
            #[derive(Serialize)]
            #[serde(rename_all = "camelCase")]
            struct Rejected {
                market_id: MarketId,
                code: &'static str,
            }

            let rejected = self
                .rejected
                .iter()
                .map(|&(market_id, refusal)| Rejected { market_id, code: refusal.as_str() });
            let _ = write!(json, r#","rejected":{}"#, array(rejected));
        }
        json.push('}');
        json
    }
}

/// Writes `pong`, with the client's `ts` as the client wrote it.
#[must_use]
pub fn pong(id: Option<&MessageId>, ts: Option<&str>) -> String {
    let mut json = String::from(r#"{"type":"pong""#);
    write_id(&mut json, id);
    if let Some(ts) = ts {
        let _ = write!(json, r#","ts":{ts}"#);
    }
    json.push('}');
    json
}

/// Writes `ping`: the server's heartbeat.
#[must_use]
pub fn ping(now_ms: u64) -> String {
    format!(r#"{{"type":"ping","ts":{now_ms}}}"#)
}

/// Writes `status`: whether this pod's prices are stale, and why.
#[must_use]
pub fn status(stale: bool, reason: &str, since_ms: u64) -> String {
    format!(r#"{{"type":"status","stale":{stale},"reason":"{reason}","since":{since_ms}}}"#)
}

/// Writes `error`: a message was refused, and the connection stays open.
#[must_use]
pub fn error(id: Option<&MessageId>, refusal: Refusal, message: &str) -> String {
    let mut json = format!(r#"{{"type":"error","code":"{}","message":{}"#, refusal.as_str(), quoted(message));
    write_id(&mut json, id);
    json.push('}');
    json
}

/// Writes `bye`: the server closes the connection next.
#[must_use]
pub fn bye(code: CloseCode, after_ms: u64) -> String {
    format!(
        r#"{{"type":"bye","code":{},"reason":"{}","reconnect":{},"afterMs":{after_ms}}}"#,
        code.number(),
        code.reason(),
        code.reconnect()
    )
}

fn write_id(json: &mut String, id: Option<&MessageId>) {
    match id {
        Some(MessageId::Text(text)) => _ = write!(json, r#","id":{}"#, quoted(text)),
        Some(MessageId::Number(number)) => _ = write!(json, r#","id":{number}"#),
        None => {}
    }
}

fn array<T: Serialize>(items: impl IntoIterator<Item = T>) -> String {
    serde_json::Value::Array(
        items.into_iter().map(|item| serde_json::to_value(item).unwrap_or_default()).collect(),
    )
    .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn market(id: u64) -> MarketId {
        MarketId::new(id).unwrap()
    }

    #[test]
    fn messages_are_spelled_as_the_protocol_says() {
        let update = Update {
            position: Position::new(7, 1025),
            ts: 1_710_001_113_000,
            payload: r#"{"moneyline":{"home":1.85,"away":2.10}}"#.into(),
            trace: None,
        };
        assert_eq!(
            odds_update(market(1001), &update),
            r#"{"type":"odds_update","marketId":1001,"seq":1025,"ts":1710001113000,"payload":{"moneyline":{"home":1.85,"away":2.10}}}"#
        );
        assert_eq!(
            snapshot(market(1), &MarketState::default(), SnapshotCause::Reset),
            r#"{"type":"snapshot","marketId":1,"seq":0,"ts":0,"payload":{},"epoch":0,"reset":true}"#
        );
        assert_eq!(pong(None, Some("1710001112223")), r#"{"type":"pong","ts":1710001112223}"#);
        assert_eq!(
            bye(CloseCode::Draining, 1840),
            r#"{"type":"bye","code":1012,"reason":"DRAINING","reconnect":true,"afterMs":1840}"#
        );
        let id = MessageId::Text("a\"b".into());
        assert_eq!(
            error(Some(&id), Refusal::BadMessage, "no"),
            r#"{"type":"error","code":"BAD_MESSAGE","message":"no","id":"a\"b"}"#
        );
    }

    #[test]
    fn an_ack_lists_subscribed_unsubscribed_and_rejected_markets() {
        let subscribed =
            Subscribed { market: market(1001), position: Position::new(7, 1030), recovered: Some(true) };
        let ack = Ack {
            id: Some(MessageId::Number(3)),
            subscribed: vec![subscribed],
            rejected: vec![(market(1002), Refusal::Forbidden)],
            with_positions: true,
            unsubscribed: None,
        };
        assert_eq!(
            ack.json(),
            r#"{"type":"ack","ok":false,"id":3,"subscribed":[1001],"positions":{"1001":{"epoch":7,"seq":1030,"recovered":true}},"rejected":[{"code":"FORBIDDEN","marketId":1002}]}"#
        );
        let ack = Ack { unsubscribed: Some(vec![market(5)]), ..Ack::default() };
        assert_eq!(ack.json(), r#"{"type":"ack","ok":true,"subscribed":[],"unsubscribed":[5]}"#);
    }
}
