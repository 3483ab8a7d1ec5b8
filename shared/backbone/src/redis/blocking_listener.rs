//! Listens for changes where Redis refuses client tracking: `XREAD BLOCK` over the followed logs.
//!
//! Each group of logs has a connection of its own. This costs Redis several times as much CPU as tracking does.

use std::time::Duration;

use ::redis::{AsyncConnectionConfig, RedisError, RedisResult, Value, cmd, from_redis_value};
use futures_util::future::try_join_all;
use protocol::{ids::MarketId, position::Position};
use tokio::time::sleep;

use super::{node::Node, nodes::Nodes, tails::add_streams};
use crate::{Followed, keys, pending_changes::PendingChanges};

/// The most logs in one blocking read.
const GROUP: usize = 128;
/// How long a read blocks, milliseconds. A newly followed market joins a group no later than that.
const BLOCK_MS: u64 = 200;
/// The pause after a reported change. It lets the tail move its cursor, so that the change is not reported twice.
const PAUSE: Duration = Duration::from_millis(2);
/// How often every followed market is reported in a cluster, where all keys of a command must share a slot.
const CLUSTER_POLL: Duration = Duration::from_millis(100);

/// Reports changes of the logs that are followed at `node` until a read fails.
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
            pending.mark_changed(here().into_iter().map(|(market, _)| market));
            continue;
        }
        let count = group_count(&here());
        let readers = (0..count).map(|index| read_group(node, pending, &here, index, count));
        if let Err(error) = try_join_all(readers).await {
            return error;
        }
    }
}

fn group_count(here: &[(MarketId, Position)]) -> usize {
    here.len().div_ceil(GROUP).max(1)
}

/// Reads group `index` of `count` until the followed logs make another number of groups.
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
        if group_count(&followed) != count {
            return Ok(());
        }
        let Some(group) = followed.chunks(GROUP).nth(index) else {
            sleep(Duration::from_millis(BLOCK_MS)).await;
            continue;
        };
        let mut read = cmd("XREAD");
        read.arg("COUNT").arg(1).arg("BLOCK").arg(BLOCK_MS);
        add_streams(&mut read, group);
        let streams: Option<Vec<(String, Value)>> =
            from_redis_value(read.query_async(&mut connection).await?)?;
        if let Some(streams) = streams {
            pending.mark_changed(streams.iter().filter_map(|(key, _)| keys::market_of_log(key)));
            sleep(PAUSE).await;
        }
    }
}
