//! The stream of revocations: `revoke.lua` adds to it, gateways read it.

use std::collections::HashMap;

use ::redis::{Script, pipe};

use super::{
    decode::{malformed, read_stream_id},
    nodes::Nodes,
    reads::newest,
    slots::slot_of_key,
};
use crate::{BackboneError, Retention, Revocation, Revocations, RevokeError, Revoked, StreamId, keys};

const SCRIPT: &str = include_str!("../revoke.lua");

/// The field of a revocation that names a user.
const USER: &str = "user";
/// The field of a revocation that names a token.
const TOKEN: &str = "jti";

/// An entry of the stream: its id and its fields.
type Entry = (String, HashMap<String, String>);

pub(super) async fn revoke(
    nodes: &Nodes,
    retention: &Retention,
    revoked: Revoked,
    actor: &str,
) -> Result<Revocation, RevokeError> {
    let (field, id) = match &revoked {
        Revoked::User(id) => (USER, id),
        Revoked::Token(id) => (TOKEN, id),
    };
    let ttl_ms = u64::try_from(retention.revocation_ttl.as_millis()).unwrap_or(u64::MAX);
    let mut call = pipe();
    // Revocations are rare, so each call brings the script along.
    call.cmd("SCRIPT").arg("LOAD").arg(SCRIPT).ignore();
    call.cmd("EVALSHA").arg(Script::new(SCRIPT).get_hash()).arg(1).arg(keys::REVOKED);
    call.arg(ttl_ms).arg(retention.revocations).arg(field).arg(id).arg(actor);
    let (entry,): (Option<String>,) = nodes.ask(slot_of_key(keys::REVOKED), &call).await?;
    let entry = entry.ok_or(RevokeError::Full)?;
    Ok(Revocation { revoked, ts: read_stream_id(keys::REVOKED, &entry)?.ms })
}

pub(super) async fn read(nodes: &Nodes, known: StreamId) -> Result<Option<Revocations>, BackboneError> {
    let slot = slot_of_key(keys::REVOKED);
    let mut latest = pipe();
    latest.add_command(newest(keys::REVOKED, 1));
    let (latest,): (Vec<Entry>,) = nodes.ask(slot, &latest).await?;
    if id_of_last(&latest)? == known {
        return Ok(None);
    }
    let mut range = pipe();
    range.cmd("XRANGE").arg(keys::REVOKED).arg("-").arg("+");
    let (entries,): (Vec<Entry>,) = nodes.ask(slot, &range).await?;
    let newest = id_of_last(&entries)?;
    // A malformed entry must not hide the others.
    let report = |error: &BackboneError| tracing::error!(%error, "a revocation cannot be read");
    let read = |entry| read_entry(entry).inspect_err(report).ok();
    Ok(Some(Revocations { newest, all: entries.into_iter().filter_map(read).collect() }))
}

fn id_of_last(entries: &[Entry]) -> Result<StreamId, BackboneError> {
    entries.last().map_or(Ok(StreamId::ZERO), |(id, _)| read_stream_id(keys::REVOKED, id))
}

fn read_entry((id, mut fields): Entry) -> Result<Revocation, BackboneError> {
    let user = fields.remove(USER).map(Revoked::User);
    let revoked = user.or_else(|| fields.remove(TOKEN).map(Revoked::Token));
    let revoked =
        revoked.ok_or_else(|| malformed(keys::REVOKED, &format!("entry {id} names no user and no token")))?;
    Ok(Revocation { revoked, ts: read_stream_id(keys::REVOKED, &id)?.ms })
}
