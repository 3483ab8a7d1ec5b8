//! A real primary with two replicas, watched by three sentinels.

use std::{fs, sync::Arc};

use tempfile::TempDir;

use crate::{
    access::Access,
    acl::{PASSWORD, Users},
    certificates::Certificates,
    directory::directory,
    ports::Port,
    process::Process,
    redis::Redis,
    redis_server::server,
    wait::until,
};

/// The sentinels' name of the primary.
const NAME: &str = "kmarket";
const REPLICAS: usize = 2;
const SENTINELS: usize = 3;
const ARGS: &str = "--repl-ping-replica-period 1 --repl-timeout 4";

/// Six processes, killed on drop.
#[derive(Debug)]
pub struct Sentinels {
    sentinels: Vec<Sentinel>,
    /// The initial primary comes first.
    nodes: Vec<Redis>,
}

#[derive(Debug)]
struct Sentinel {
    process: Process,
    access: Access,
    port: Port,
    _dir: TempDir,
}

impl Sentinels {
    /// Starts them and waits until every sentinel knows the others and the replicas.
    #[must_use]
    pub fn start() -> Self {
        Self::launch(None, None, false)
    }

    /// Starts them with the users that the project ships.
    #[must_use]
    pub fn with_shipped_users() -> Self {
        Self::launch(None, Some(&Arc::new(Users::make())), false)
    }

    /// Starts nodes and sentinels that speak only TLS.
    #[must_use]
    pub fn with_tls() -> Self {
        Self::launch(Some(&Arc::new(Certificates::make())), None, false)
    }

    /// Starts them with a proxy in front of each node. Sentinels, nodes and clients know each node by its proxy.
    #[must_use]
    pub fn with_chaos() -> Self {
        Self::launch(None, None, true)
    }

    fn launch(
        certificates: Option<&Arc<Certificates>>,
        users: Option<&Arc<Users>>,
        with_chaos: bool,
    ) -> Self {
        let args: Vec<&str> = ARGS.split(' ').collect();
        let node = |_| match users {
            Some(users) => Redis::in_set_with_users(&args, users),
            None => Redis::in_set(&args, certificates),
        };
        let mut nodes: Vec<Redis> = (0..=REPLICAS).map(node).collect();
        for node in nodes.iter_mut().filter(|_| with_chaos) {
            node.put_behind_chaos("replica-announce-port");
        }
        let port = nodes[0].named_port().to_string();
        for replica in &nodes[1..] {
            replica.tell::<()>(&format!("REPLICAOF 127.0.0.1 {port}"));
            until("the replica follows its primary", || {
                (replica.info("master_link_status")? == "up").then_some(())
            });
        }
        let sentinels: Vec<Sentinel> =
            (0..SENTINELS).map(|_| Sentinel::start(&port, certificates, users.is_some())).collect();
        for sentinel in &sentinels {
            until("the sentinels know all others", || {
                let others = sentinel.report("num-other-sentinels")? == (SENTINELS - 1).to_string();
                (others && sentinel.report("num-slaves")? == REPLICAS.to_string()).then_some(())
            });
        }
        Self { sentinels, nodes }
    }

    /// A node: the initial primary comes first, then its replicas.
    #[must_use]
    pub fn node(&self, index: usize) -> &Redis {
        &self.nodes[index]
    }

    /// Restarts a node, which is killed first if it runs, as a replica of the present primary. Blocks the thread.
    pub fn restart_as_replica(&mut self, index: usize) {
        let port = self.nodes[self.primary()].named_port().to_string();
        self.nodes[index].restart_with(&["--replicaof", "127.0.0.1", &port]);
    }

    /// Kills every sentinel. The nodes stay as they are.
    pub fn kill_sentinels(&self) {
        for sentinel in &self.sentinels {
            sentinel.process.kill();
        }
    }

    /// Waits until every sentinel names the same primary and that node agrees, and returns it. Blocks the thread.
    #[must_use]
    pub fn primary(&self) -> usize {
        until("the sentinels agree on the primary", || {
            let ports: Vec<String> =
                self.sentinels.iter().map(|sentinel| sentinel.report("port")).collect::<Option<_>>()?;
            let index = self.nodes.iter().position(|node| node.named_port().to_string() == ports[0])?;
            let agreed = ports.iter().all(|port| *port == ports[0]);
            (agreed && self.nodes[index].info("role")? == "master").then_some(index)
        })
    }
}

impl From<&Sentinels> for Access {
    fn from(set: &Sentinels) -> Self {
        let hosts: Vec<String> =
            set.sentinels.iter().map(|sentinel| format!("127.0.0.1:{}", sentinel.port.number())).collect();
        let node = Self::from(set.node(0));
        let scheme = if node.ca_file.is_some() { "rediss" } else { "redis" };
        Self { url: format!("{scheme}-sentinel://{}/{NAME}", hosts.join(",")), ..node }
    }
}

impl Sentinel {
    fn start(primary_port: &str, certificates: Option<&Arc<Certificates>>, has_users: bool) -> Self {
        let (port, dir) = (Port::free(), directory());
        let file = dir.path().join("sentinel.conf");
        let number = port.number();
        let (access, listen) = match certificates {
            Some(certificates) => {
                let url = format!("rediss://127.0.0.1:{number}");
                let access = Access { url, ca_file: Some(certificates.ca_file()), has_users };
                let settings = certificates.settings().map(|(name, value)| format!("{name} {value}\n"));
                (access, format!("port 0\ntls-port {number}\n{}", settings.concat()))
            }
            None => (Access::at_port(number), format!("port {number}\n")),
        };
        let user = if has_users {
            format!("sentinel auth-user {NAME} sentinel\nsentinel auth-pass {NAME} {PASSWORD}\n")
        } else {
            String::new()
        };
        let settings = format!(
            "{listen}bind 127.0.0.1\ndir {}\n\
             sentinel monitor {NAME} 127.0.0.1 {primary_port} 2\n\
             sentinel down-after-milliseconds {NAME} 500\n\
             sentinel failover-timeout {NAME} 2000\n\
             sentinel parallel-syncs {NAME} 2\n{user}",
            dir.path().display()
        );
        fs::write(&file, settings).expect("the directory is writable");
        let process = Process::spawn("sentinel", server().arg(&file).arg("--sentinel"));
        process.expect_line("the sentinel monitors", |line| line.contains("+monitor master").then_some(()));
        Self { process, access, port, _dir: dir }
    }

    /// A field of the sentinel's report on the primary.
    fn report(&self, field: &str) -> Option<String> {
        let mut connection = self.access.client().get_connection().ok()?;
        let said: Vec<String> =
            ::redis::cmd("SENTINEL").arg("MASTER").arg(NAME).query(&mut connection).ok()?;
        said.chunks_exact(2).find(|pair| pair[0] == field).map(|pair| pair[1].clone())
    }
}
