//! Hearing of changes where tracking is refused: `XREAD BLOCK` over the followed logs, in groups with a connection
//! each. It costs Redis several times as much, and a connection for each group.

use std::time::Duration;

use ::redis::{AsyncConnectionConfig, RedisError, RedisResult, Value, cmd, from_redis_value};
use futures_util::future::try_join_all;
use protocol::{ids::MarketId, position::Position};
use tokio::time::sleep;

use super::{
    change_listener::PendingChanges,
    nodes::{Node, Nodes},
};
use crate::{Followed, keys};

/// Logs in one blocking read.
const GROUP: usize = 128;
/// How long a read blocks, and so how long a market that is followed anew may wait to be in a group,
/// milliseconds.
const BLOCK_MS: u64 = 200;
/// How long the tail has to read what rang before it would ring again.
const PAUSE: Duration = Duration::from_millis(2);
/// How often everything is read in a cluster, where the keys of one command share a slot.
const CLUSTER_POLL: Duration = Duration::from_millis(100);

/// Rings for what changes at `node` until that fails.
pub(super) async fn listen(
    node: &Node,
    nodes: &Nodes,
    pending: &PendingChanges,
    followed: &Followed,
) -> RedisError {
    let here = || -> Vec<(MarketId, Position)> {
        followed().into_iter().filter(|(market, _)| nodes.is_tailed_at(node, *market)).collect()
    };
    loop {
        if nodes.is_cluster() {
            sleep(CLUSTER_POLL).await;
            pending.notify(here().into_iter().map(|(market, _)| market));
            continue;
        }
        let count = groups(&here());
        let readers = (0..count).map(|index| read_group(node, pending, &here, index, count));
        if let Err(error) = try_join_all(readers).await {
            return error;
        }
    }
}

fn groups(here: &[(MarketId, Position)]) -> usize {
    here.len().div_ceil(GROUP).max(1)
}

/// Reads group `index` of `count` until there are to be more groups, or fewer.
async fn read_group(
    node: &Node,
    pending: &PendingChanges,
    here: &(impl Fn() -> Vec<(MarketId, Position)> + Sync),
    index: usize,
    count: usize,
) -> RedisResult<()> {
    let config =
        AsyncConnectionConfig::new().set_response_timeout(Some(Duration::from_millis(BLOCK_MS + 5_000)));
    let mut connection = node.client.get_multiplexed_async_connection_with_config(&config).await?;
    loop {
        let followed = here();
        if groups(&followed) != count {
            return Ok(());
        }
        let Some(group) = followed.chunks(GROUP).nth(index) else {
            sleep(Duration::from_millis(BLOCK_MS)).await;
            continue;
        };
        let mut read = cmd("XREAD");
        read.arg("COUNT").arg(1).arg("BLOCK").arg(BLOCK_MS).arg("STREAMS");
        for (market, _) in group {
            read.arg(keys::log(*market));
        }
        for (_, cursor) in group {
            read.arg(cursor.to_string());
        }
        let streams: Option<Vec<(String, Value)>> =
            from_redis_value(read.query_async(&mut connection).await?)?;
        if let Some(streams) = streams {
            pending.notify(streams.iter().filter_map(|(key, _)| keys::market_of_log(key)));
            sleep(PAUSE).await;
        }
    }
}
