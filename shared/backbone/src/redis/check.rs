//! Whether a Redis is what a service needs: it answers, is what it should be, and lets the service do its work.

use std::collections::HashMap;

use ::redis::{RedisError, ServerErrorKind, Value, aio::MultiplexedConnection, cmd};

use super::{
    RedisConfig,
    nodes::{Nodes, connect},
};

/// A market that nobody has: nothing that is asked of it changes anything.
const NOBODYS: &str = "{9007199254740991}";

/// What a gateway asks of Redis, as one harmless command each; `*` is a market that nobody has.
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

/// The same of a publisher.
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
    // One value is missing: it is refused for that.
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

/// What was found: lines for people, and what is wrong.
#[derive(Debug, Default)]
pub struct Checked {
    /// A line for each primary.
    pub found: Vec<String>,
    /// Empty: all is as it should be.
    pub problems: Vec<String>,
}

/// Asks every primary.
pub async fn check(config: &RedisConfig, needed: &[&str]) -> Checked {
    let mut checked = Checked::default();
    let nodes = match config.parse() {
        Ok((topology, dialer)) => Nodes::new(topology, dialer, config.tail_from),
        Err(error) => {
            checked.problems.push(error.to_string());
            return checked;
        }
    };
    let map = match nodes.map().await {
        Ok(map) => map,
        Err(error) => {
            checked.problems.push(format!("which primaries there are: {error}"));
            return checked;
        }
    };
    for node in map.nodes() {
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

/// Version, mode and role, which every user may ask for; whether it is a primary.
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

async fn denied(connection: &mut MultiplexedConnection, needed: &[&str]) -> Vec<String> {
    let mut denied = Vec::new();
    for probe in needed {
        let mut words = probe.split(' ');
        let mut command = cmd(words.next().unwrap_or_default());
        for word in words {
            // Alone it is the id of a stream's new entry.
            command.arg(if word == "*" { word.to_owned() } else { word.replace('*', NOBODYS) });
        }
        let answer: Result<Value, RedisError> = command.query_async(connection).await;
        match answer {
            Err(error) if error.kind() == ServerErrorKind::NoPerm.into() => {
                denied.push(format!("this user may not: {probe}"));
            }
            Err(error) if error.is_io_error() || error.is_timeout() => {
                denied.push(format!("{probe}: {error}"));
                break;
            }
            // Permitted, and refused for its content, or because another node has the slot.
            _ => {}
        }
    }
    denied
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So that what is shipped and what is checked are about the same commands.
    #[test]
    fn every_command_of_the_shipped_users_is_asked_for() {
        let users = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docker/redis/users.acl");
        let users = std::fs::read_to_string(users).unwrap();
        for (user, needed) in [("gateway", GATEWAY), ("publisher", PUBLISHER)] {
            let line = users.lines().find(|line| line.starts_with(&format!("user {user} "))).unwrap();
            for command in line.split(' ').filter_map(|word| word.strip_prefix('+')) {
                let command = command.replace('|', " ").to_uppercase();
                // Redis counts arguments before it looks at rights, and with enough of them this adds.
                if command == "SADD" {
                    continue;
                }
                let is_asked = |probe: &&str| format!("{probe} ").starts_with(&format!("{command} "));
                assert!(needed.iter().any(is_asked), "{user}: {command}");
            }
        }
    }
}
