//! A real Redis Cluster: three primaries with a replica each.

use std::sync::Arc;

use ::redis::{FromRedisValue, RedisResult, Value};

use crate::{
    access::Access, acl::Users, certificates::Certificates, redis::Redis, stack::fresh_market, wait::until,
};

/// How many primaries there are. The replica of node `n` is node `n + PRIMARIES`.
pub const PRIMARIES: usize = 3;
/// The slots that each primary starts with.
const SLOTS: [(u16, u16); PRIMARIES] = [(0, 5460), (5461, 10922), (10923, 16383)];

/// Full coverage is not required, so that the other slots stay in service when a primary is lost.
const ARGS: &str = "--cluster-enabled yes --cluster-node-timeout 1000 --cluster-require-full-coverage no \
                    --repl-ping-replica-period 1 --repl-timeout 4";

/// A cluster of six nodes, killed on drop.
#[derive(Debug)]
pub struct Cluster {
    nodes: Vec<Redis>,
}

impl Cluster {
    /// Starts a cluster and waits until every node knows all others.
    #[must_use]
    pub fn start() -> Self {
        Self::launch(|args| Redis::in_set(args, None))
    }

    /// Starts a cluster with the users that the project ships.
    #[must_use]
    pub fn with_shipped_users() -> Self {
        let users = Arc::new(Users::make());
        Self::launch(|args| Redis::in_set_with_users(args, &users))
    }

    /// Starts a cluster that speaks only TLS.
    #[must_use]
    pub fn with_tls() -> Self {
        let certificates = Arc::new(Certificates::make());
        Self::launch(|args| Redis::in_set(args, Some(&certificates)))
    }

    fn launch(node: impl Fn(&[&str]) -> Redis) -> Self {
        let args: Vec<&str> = ARGS.split(' ').collect();
        let nodes: Vec<Redis> = (0..2 * PRIMARIES).map(|_| node(&args)).collect();
        for (index, (node, (first, last))) in nodes.iter().zip(SLOTS).enumerate() {
            node.tell::<()>(&format!("CLUSTER SET-CONFIG-EPOCH {}", index + 1));
            node.tell::<()>(&format!("CLUSTER ADDSLOTSRANGE {first} {last}"));
        }
        for node in &nodes[1..] {
            node.tell::<()>(&format!("CLUSTER MEET 127.0.0.1 {}", nodes[0].port()));
        }
        for node in &nodes {
            until("every node knows every other", || {
                let known = cluster_info(node, "cluster_known_nodes")? == nodes.len().to_string();
                let whole = cluster_info(node, "cluster_slots_assigned")? == "16384";
                (known && whole).then_some(())
            });
        }
        for (primary, replica) in nodes.iter().zip(&nodes[PRIMARIES..]) {
            let id: String = primary.tell("CLUSTER MYID");
            replica.tell::<()>(&format!("CLUSTER REPLICATE {id}"));
        }
        let cluster = Self { nodes };
        for (index, node) in cluster.nodes.iter().enumerate() {
            until("the cluster is in service", || {
                (cluster_info(node, "cluster_state")? == "ok").then_some(())
            });
            if index >= PRIMARIES {
                until("the replica follows its primary", || {
                    (node.info("master_link_status")? == "up").then_some(())
                });
                // Nodes that do not know it as a replica would not vote for it.
                let id: String = node.tell("CLUSTER MYID");
                until("every node knows the replica", || {
                    cluster.nodes.iter().all(|other| knows_as_replica(other, &id)).then_some(())
                });
            }
        }
        cluster
    }

    /// A node: the initial primaries come first, then their replicas.
    #[must_use]
    pub fn node(&self, index: usize) -> &Redis {
        &self.nodes[index]
    }

    /// Restarts a node, which is killed first if it runs. It learns its role from the others.
    pub fn restart(&mut self, index: usize) {
        self.nodes[index].restart();
    }

    /// Puts a proxy in front of a node. Clients and replicas know the node by the proxy's address from then on.
    /// Blocks the thread.
    pub fn put_chaos_before(&mut self, index: usize) {
        self.nodes[index].put_behind_chaos("cluster-announce-port");
        let name = format!("127.0.0.1:{}@", self.node(index).named_port());
        until("every node names the proxy", || {
            let names = |node: &Redis| Some(node.ask::<String>("CLUSTER NODES").ok()?.contains(&name));
            self.nodes.iter().all(|node| names(node) == Some(true)).then_some(())
        });
    }

    /// Waits until all running nodes agree which node holds `market`, and returns it. Blocks the thread.
    #[must_use]
    pub fn holder_of(&self, market: u64) -> usize {
        until("the nodes agree which node holds the market", || {
            let views: Vec<Option<u16>> =
                self.nodes.iter().filter_map(|node| holder_port(node, market).ok()).collect();
            let port = (*views.first()?)?;
            if views.iter().any(|view| *view != Some(port)) {
                return None;
            }
            self.nodes.iter().position(|node| node.named_port() == port)
        })
    }

    /// A market that no other test uses, in a slot of this initial primary.
    #[must_use]
    pub fn fresh_market_at(&self, primary: usize) -> u64 {
        let (first, last) = SLOTS[primary];
        std::iter::repeat_with(fresh_market)
            .find(|market| (first..=last).contains(&self.slot_of(*market)))
            .expect("every third market is there")
    }

    /// The slot of a market.
    #[must_use]
    pub fn slot_of(&self, market: u64) -> u16 {
        let living = self
            .nodes
            .iter()
            .find_map(|node| node.ask(&format!("CLUSTER KEYSLOT odds:log:{{{market}}}")).ok());
        living.expect("some node lives")
    }

    /// Moves the slot of `market` with all its keys from one running primary to another, as `redis-cli --cluster
    /// reshard` does. Blocks the thread.
    pub fn move_slot_of(&self, market: u64, from: usize, to: usize) {
        let slot = self.slot_of(market);
        let (from, to) = (&self.nodes[from], &self.nodes[to]);
        let (from_id, to_id): (String, String) = (from.tell("CLUSTER MYID"), to.tell("CLUSTER MYID"));
        to.tell::<()>(&format!("CLUSTER SETSLOT {slot} IMPORTING {from_id}"));
        from.tell::<()>(&format!("CLUSTER SETSLOT {slot} MIGRATING {to_id}"));
        loop {
            let keys: Vec<String> = from.tell(&format!("CLUSTER GETKEYSINSLOT {slot} 1"));
            let Some(key) = keys.first() else { break };
            from.tell::<Value>(&format!("MIGRATE 127.0.0.1 {} {key} 0 5000", to.port()));
        }
        for node in [to, from] {
            node.tell::<()>(&format!("CLUSTER SETSLOT {slot} NODE {to_id}"));
        }
    }
}

impl From<&Cluster> for Access {
    fn from(cluster: &Cluster) -> Self {
        let hosts: Vec<String> =
            cluster.nodes.iter().map(|node| format!("127.0.0.1:{}", node.port())).collect();
        let node = Self::from(cluster.node(0));
        let scheme = if node.ca_file.is_some() { "rediss" } else { "redis" };
        Self { url: format!("{scheme}-cluster://{}", hosts.join(",")), ..node }
    }
}

fn cluster_info(node: &Redis, field: &str) -> Option<String> {
    let info: String = node.ask("CLUSTER INFO").ok()?;
    info.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':')).map(str::to_owned)
}

fn knows_as_replica(node: &Redis, id: &str) -> bool {
    let nodes: String = node.ask("CLUSTER NODES").unwrap_or_default();
    nodes.lines().any(|line| line.starts_with(id) && line.contains("slave") && !line.contains("fail"))
}

/// The port of the primary that holds `market`, according to `node`.
fn holder_port(node: &Redis, market: u64) -> RedisResult<Option<u16>> {
    let slot: u16 = node.ask(&format!("CLUSTER KEYSLOT odds:log:{{{market}}}"))?;
    let rows: Vec<Vec<Value>> = node.ask("CLUSTER SLOTS")?;
    for row in rows {
        if let [first, last, Value::Array(primary), ..] = row.as_slice()
            && (number(first)?..=number(last)?).contains(&slot)
        {
            return primary.get(1).map(number).transpose();
        }
    }
    Ok(None)
}

fn number(value: &Value) -> RedisResult<u16> {
    Ok(u16::from_redis_value_ref(value)?)
}
