//! Checks that a Redis responds, has its primaries, and allows the commands that a service needs.

use std::collections::HashMap;

use ::redis::{RedisError, ServerErrorKind, Value, aio::MultiplexedConnection, cmd};

use super::{RedisConfig, node::connect, nodes::Nodes};

/// The hash tag of a market that does not exist, so that no probe changes data.
const UNUSED_MARKET: &str = "{9007199254740991}";

/// Harmless commands that stand for everything a gateway does in Redis. `*` is a market that does not exist.
pub const GATEWAY: &[&str] = &[
    "PING",
    "ROLE",
    "CLUSTER SLOTS",
    "CLIENT TRACKING OFF",
    "MULTI",
    "EXEC",
    "UNWATCH",
    "READONLY",
    "XREAD COUNT 1 STREAMS odds:log:* 0",
    "XRANGE odds:log:* - + COUNT 1",
    "XREVRANGE odds:revoked + - COUNT 1",
    "HGETALL odds:state:*",
    "SMEMBERS odds:markets",
];

/// Harmless commands that stand for everything a publisher does in Redis. `*` is a market that does not exist.
pub const PUBLISHER: &[&str] = &[
    "PING",
    "ROLE",
    "CLUSTER SLOTS",
    "CLIENT TRACKING OFF",
    "UNWATCH",
    "TIME",
    "WAIT 0 1",
    "SCRIPT LOAD return",
    "EVALSHA 0000000000000000000000000000000000000000 0",
    "XADD odds:log:* NOMKSTREAM * field value",
    "XADD odds:audit:* NOMKSTREAM * field value",
    "XREAD COUNT 1 STREAMS odds:log:* 0",
    "XRANGE odds:audit:* - + COUNT 1",
    "XREVRANGE odds:revoked + - COUNT 1",
    "XLEN odds:revoked",
    "HMGET odds:state:* epoch",
    "HGETALL odds:state:*",
    "MULTI",
    "EXEC",
    // Redis rejects it for the missing value.
    "HSET odds:state:* field value field",
    "HDEL odds:state:* field",
    "GET odds:idem:*:check",
    "SET odds:idem:*:check value XX",
    "SMEMBERS odds:markets",
    "XREADGROUP GROUP nobody nobody COUNT 1 STREAMS odds:audit:* >",
    "XGROUP CREATE odds:audit:* nobody 0",
    "XACK odds:audit:* nobody 0-0",
    "XAUTOCLAIM odds:audit:* nobody nobody 0 0-0 COUNT 1",
    "XPENDING odds:audit:* nobody",
    "XINFO GROUPS odds:audit:*",
];

/// The result of a check.
#[derive(Debug, Default)]
pub struct Checked {
    /// One line of text per primary.
    pub found: Vec<String>,
    /// One line of text per problem. Empty if there is none.
    pub problems: Vec<String>,
}

/// Checks every primary, with the commands `needed`.
pub async fn check(config: &RedisConfig, needed: &[&str]) -> Checked {
    let mut checked = Checked::default();
    let nodes = match Nodes::new(config) {
        Ok(nodes) => nodes,
        Err(error) => {
            checked.problems.push(error.to_string());
            return checked;
        }
    };
    let map = match nodes.map().await {
        Ok(map) => map,
        Err(error) => {
            checked.problems.push(format!("the primaries cannot be found: {error}"));
            return checked;
        }
    };
    for node in map.primaries() {
        let address = &node.address;
        match connect(&node.client).await {
            Ok(mut connection) => match describe(&mut connection).await {
                Ok((what, is_primary)) => {
                    checked.found.push(format!("{address}: {what}"));
                    if !is_primary {
                        checked.problems.push(format!("{address}: not a primary"));
                    }
                    let denied = denied(&mut connection, needed).await;
                    checked
                        .problems
                        .extend(denied.into_iter().map(|problem| format!("{address}: {problem}")));
                }
                Err(error) => checked.problems.push(format!("{address}: {error}")),
            },
            Err(error) => checked.problems.push(format!("{address}: {error}")),
        }
    }
    checked
}

/// Returns role, version and mode as text, and true for a primary. Every user may ask for these.
async fn describe(connection: &mut MultiplexedConnection) -> Result<(String, bool), RedisError> {
    let hello: HashMap<String, Value> = cmd("HELLO").query_async(connection).await?;
    let text = |name: &str| -> String {
        let value = hello.get(name).cloned().unwrap_or(Value::Nil);
        ::redis::from_redis_value(value).unwrap_or_else(|_| "?".to_owned())
    };
    let is_primary = text("role") == "master";
    let role = if is_primary { "primary" } else { "replica" };
    Ok((format!("{role}, Redis {}, {}", text("version"), text("mode")), is_primary))
}

/// Returns a line of text per command that this user may not use.
async fn denied(connection: &mut MultiplexedConnection, needed: &[&str]) -> Vec<String> {
    let mut denied = Vec::new();
    for probe in needed {
        let mut words = probe.split(' ');
        let mut command = cmd(words.next().unwrap_or_default());
        for word in words {
            // A `*` by itself is the id of a new stream entry.
            command.arg(if word == "*" { word.to_owned() } else { word.replace('*', UNUSED_MARKET) });
        }
        let reply: Result<Value, RedisError> = command.query_async(connection).await;
        match reply {
            Err(error) if error.kind() == ServerErrorKind::NoPerm.into() => {
                denied.push(format!("this user may not: {probe}"));
            }
            Err(error) if error.is_io_error() || error.is_timeout() => {
                denied.push(format!("{probe}: {error}"));
                break;
            }
            // The command is allowed. Redis may still reject its content, or its slot.
            _ => {}
        }
    }
    denied
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compares the ACL file that is shipped with the commands that are checked.
    #[test]
    fn every_command_of_the_shipped_users_is_checked() {
        let users = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docker/redis/users.acl");
        let users = std::fs::read_to_string(users).unwrap();
        for (user, needed) in [("gateway", GATEWAY), ("publisher", PUBLISHER)] {
            let line = users.lines().find(|line| line.starts_with(&format!("user {user} "))).unwrap();
            for command in line.split(' ').filter_map(|word| word.strip_prefix('+')) {
                let command = command.replace('|', " ").to_uppercase();
                // Redis counts arguments before it checks permissions, and a complete SADD would add a member.
                if command == "SADD" {
                    continue;
                }
                let is_checked = |probe: &&str| format!("{probe} ").starts_with(&format!("{command} "));
                assert!(needed.iter().any(is_checked), "{user}: {command}");
            }
        }
    }
}
