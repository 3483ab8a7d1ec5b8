//! Finds the primaries: asks sentinels or cluster nodes.

use ::redis::{ErrorKind, RedisResult, Value, cmd, from_redis_value};

use super::{
    node::connect,
    url::{Address, Dialer, Servers, address},
};

/// A primary, and the slots it holds.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Primary {
    pub(super) address: Address,
    /// First and last slot of each range. Empty if the primary holds everything.
    pub(super) slots: Vec<(u16, u16)>,
}

/// Returns all primaries. In a cluster, asks the primaries `known` so far before the servers of the URL.
pub(super) async fn find_primaries(
    servers: &Servers,
    dialer: &Dialer,
    known: &[Address],
) -> RedisResult<Vec<Primary>> {
    match servers {
        Servers::Single(address) => Ok(vec![Primary { address: address.clone(), slots: Vec::new() }]),
        Servers::Sentinels { sentinels, name } => {
            let mut last = None;
            for sentinel in sentinels {
                match ask_sentinel(dialer, sentinel, name).await {
                    Ok(address) => return Ok(vec![Primary { address, slots: Vec::new() }]),
                    Err(error) => last = Some(error),
                }
            }
            Err(last.unwrap_or_else(|| (ErrorKind::Client, "no sentinels").into()))
        }
        Servers::Cluster { seeds } => {
            let mut last = None;
            for address in known.iter().chain(seeds) {
                match ask_cluster(dialer, address).await {
                    Ok(primaries) => return Ok(primaries),
                    Err(error) => last = Some(error),
                }
            }
            Err(last.unwrap_or_else(|| (ErrorKind::Client, "no cluster nodes").into()))
        }
    }
}

/// Returns the primary that a sentinel names. Fails if that node is not a primary.
async fn ask_sentinel(dialer: &Dialer, sentinel: &str, name: &str) -> RedisResult<Address> {
    let mut connection = connect(&dialer.sentinel(sentinel)?).await?;
    let primary: Option<(String, u16)> =
        cmd("SENTINEL").arg("get-master-addr-by-name").arg(name).query_async(&mut connection).await?;
    let (host, port) = primary.ok_or((ErrorKind::Client, "the sentinel knows no primary of this name"))?;
    let address = address(&host, port);
    let mut connection = connect(&dialer.node(&address)?).await?;
    let role: Vec<Value> = cmd("ROLE").query_async(&mut connection).await?;
    match role.first() {
        Some(Value::BulkString(role)) if role == b"master" => Ok(address),
        _ => Err((ErrorKind::Client, "the sentinel's primary is a replica: a failover is under way").into()),
    }
}

/// Returns the primaries that a cluster node knows, in the order of their addresses.
async fn ask_cluster(dialer: &Dialer, asked: &str) -> RedisResult<Vec<Primary>> {
    let mut connection = connect(&dialer.node(asked)?).await?;
    let rows: Vec<Vec<Value>> = cmd("CLUSTER").arg("SLOTS").query_async(&mut connection).await?;
    let asked_host = asked.rsplit_once(':').map_or(asked, |(host, _)| host);
    let mut primaries: Vec<Primary> = Vec::new();
    for row in rows {
        let mut row = row.into_iter();
        let (Some(first), Some(last), Some(primary)) = (row.next(), row.next(), row.next()) else {
            continue;
        };
        let slots: (u16, u16) = (from_redis_value(first)?, from_redis_value(last)?);
        let Value::Array(primary) = primary else { continue };
        let mut primary = primary.into_iter();
        let host: Option<String> = from_redis_value(primary.next().unwrap_or(Value::Nil))?;
        let port: u16 = from_redis_value(primary.next().unwrap_or(Value::Nil))?;
        // A node that does not know its own address leaves it out. Then it is the address that was asked.
        let host = host.filter(|host| !host.is_empty()).unwrap_or_else(|| asked_host.to_owned());
        let address = address(&host, port);
        match primaries.iter_mut().find(|known| known.address == address) {
            Some(known) => known.slots.push(slots),
            None => primaries.push(Primary { address, slots: vec![slots] }),
        }
    }
    if primaries.is_empty() {
        return Err((ErrorKind::Client, "the cluster has no slots yet").into());
    }
    primaries.sort();
    Ok(primaries)
}
