//! What Linux says about processes: their CPU and memory, the kernel's memory, and this process's open-file limit.

use std::{collections::BTreeSet, fs, net::SocketAddr};

use ::tests::process::memory_bytes;
use anyhow::{Context, Result, bail};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::figure::{Figure, Labelled};

/// What processes have used up to one moment.
pub(crate) struct Usage(Vec<Used>);

#[derive(Debug, Clone)]
pub(crate) struct Used {
    pub(crate) role: &'static str,
    pid: u32,
    name: String,
    pub(crate) cpu_us: u64,
    rss_before_bytes: u64,
    rss_bytes: u64,
}

impl Usage {
    /// Reads these processes, by role and pid; one that is named twice counts under its first role.
    pub(crate) fn read(processes: &[(&'static str, u32)]) -> Result<Self> {
        let mut seen = BTreeSet::new();
        let processes = processes.iter().filter(|(_, pid)| seen.insert(*pid)).map(|&(role, pid)| {
            let name = fs::read_to_string(format!("/proc/{pid}/comm"));
            let name = name.with_context(|| format!("no process {pid}"))?.trim_end().to_owned();
            let (cpu_us, rss_bytes) = (cpu_ns(pid)? / 1000, rss_bytes(pid)?);
            Ok(Used { role, pid, name, cpu_us, rss_before_bytes: rss_bytes, rss_bytes })
        });
        processes.collect::<Result<_>>().map(Self)
    }

    /// What each has used since an earlier reading.
    pub(crate) fn since(&self, earlier: &Self) -> Vec<Used> {
        let since = |(now, before): (&Used, &Used)| Used {
            cpu_us: now.cpu_us.saturating_sub(before.cpu_us),
            rss_before_bytes: before.rss_bytes,
            ..now.clone()
        };
        self.0.iter().zip(&earlier.0).map(since).collect()
    }

    pub(crate) fn rss_bytes(&self) -> u64 {
        self.0.iter().map(|used| used.rss_bytes).sum()
    }
}

impl Used {
    pub(crate) fn figures(&self) -> [Labelled; 5] {
        [
            ("", Figure::Text(self.name.clone())),
            ("pid", Figure::Count(self.pid.into())),
            ("CPU", Figure::Time(self.cpu_us)),
            ("RSS", Figure::Bytes(self.rss_before_bytes)),
            ("→", Figure::Bytes(self.rss_bytes)),
        ]
    }
}

/// CPU time of all of a process's threads so far, as the scheduler counts it. A thread that ends takes its time along.
pub(crate) fn cpu_ns(pid: u32) -> Result<u64> {
    let tasks = format!("/proc/{pid}/task");
    let mut total = 0;
    for task in fs::read_dir(&tasks).with_context(|| tasks.clone())? {
        // A thread may end meanwhile.
        total += thread_cpu_ns(&format!("{}/schedstat", task?.path().display())).unwrap_or_default();
    }
    Ok(total)
}

/// CPU time of a process's main thread so far: in Redis, that thread executes every command.
pub(crate) fn main_thread_cpu_ns(pid: u32) -> Result<u64> {
    thread_cpu_ns(&format!("/proc/{pid}/schedstat"))
}

fn thread_cpu_ns(path: &str) -> Result<u64> {
    let text = fs::read_to_string(path).with_context(|| path.to_owned())?;
    text.split(' ').next().and_then(|ns| ns.parse().ok()).with_context(|| format!("{path}: {text}"))
}

pub(crate) fn rss_bytes(pid: u32) -> Result<u64> {
    memory_bytes(pid).with_context(|| format!("process {pid} has ended"))
}

/// Memory that the kernel holds for the whole machine, so for both ends of every local connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kernel {
    pub(crate) tcp_bytes: u64,
    /// All slabs: sockets, files and epoll items among others.
    pub(crate) slab_bytes: u64,
}

impl Kernel {
    pub(crate) fn read() -> Result<Self> {
        let sockstat = fs::read_to_string("/proc/net/sockstat")?;
        let meminfo = fs::read_to_string("/proc/meminfo")?;
        let page_bytes = rustix::param::page_size() as u64;
        Ok(Self {
            tcp_bytes: number_after(&sockstat, "TCP:", "mem").context("/proc/net/sockstat")? * page_bytes,
            slab_bytes: number_after(&meminfo, "Slab:", "Slab:").context("/proc/meminfo")? << 10,
        })
    }
}

/// The number after a word, in the line that begins with `line`.
fn number_after(text: &str, line: &str, word: &str) -> Option<u64> {
    let mut words = text.lines().find(|text| text.starts_with(line))?.split_ascii_whitespace();
    words.find(|&found| found == word)?;
    words.next()?.parse().ok()
}

/// Raises the soft open-file limit to the hard one. Fails with a remedy if that is not enough.
pub(crate) fn allow_open_files(wanted: usize) -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    let raised = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    let allowed = if raised.is_ok() { limit.maximum } else { limit.current };
    if let Some(allowed) = allowed.filter(|&allowed| allowed < wanted as u64) {
        bail!(
            "this run needs {wanted} open files and the limit is {allowed}: raise the hard limit (`ulimit -Hn {wanted}` \
             as root, or `--ulimit nofile={wanted}` for a container), or spread the connections over several swarms, \
             one publishing and the others with `deliver --rate 0`"
        );
    }
    Ok(())
}

/// The process that listens on a loopback address, if this user may look at it.
pub(crate) fn listening_on(address: SocketAddr) -> Option<u32> {
    if !address.ip().is_loopback() {
        return None;
    }
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|path| fs::read_to_string(path).unwrap_or_default());
    let inodes =
        tables.iter().flat_map(|table| table.lines()).filter_map(|line| listener(line, address.port()));
    let sockets: BTreeSet<String> = inodes.map(|inode| format!("socket:[{inode}]")).collect();
    let mut pids =
        fs::read_dir("/proc").ok()?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.find(|pid: &u32| {
        let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        let mut targets = files.filter_map(|file| fs::read_link(file.path()).ok());
        targets.any(|target| target.to_str().is_some_and(|target| sockets.contains(target)))
    })
}

/// A listener's state in `/proc/net/tcp`.
pub(crate) const LISTEN: &str = "0A";

/// The inode of a line of `/proc/net/tcp` that is a listener on this port.
fn listener(line: &str, port: u16) -> Option<&str> {
    let fields: Vec<_> = line.split_ascii_whitespace().collect();
    let [_, local, _, state, _, _, _, _, _, inode, ..] = fields[..] else { return None };
    (local.ends_with(&format!(":{port:04X}")) && state == LISTEN).then_some(inode)
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, process};

    use super::*;

    #[test]
    fn the_process_behind_a_loopback_port_is_found() {
        for address in ["127.0.0.1:0", "0.0.0.0:0"] {
            let listener = TcpListener::bind(address).unwrap();
            let port = listener.local_addr().unwrap().port();
            assert_eq!(listening_on(SocketAddr::from(([127, 0, 0, 1], port))), Some(process::id()));
        }
    }

    #[test]
    fn a_process_has_cpu_time_and_memory() {
        let this = process::id();
        let usage = Usage::read(&[("gateway", this), ("publisher", this)]).unwrap();
        let used = usage.since(&usage);
        assert_eq!((used.len(), used[0].role), (1, "gateway"));
        assert!(usage.rss_bytes() > 100_000 && cpu_ns(this).unwrap() > 0);
        assert!(Kernel::read().unwrap().slab_bytes > 0);
    }

    #[test]
    fn numbers_of_the_kernel_are_found_by_their_words() {
        let sockstat =
            "sockets: used 143\nTCP: inuse 126 orphan 0 tw 710 alloc 126 mem 85\nUDP: inuse 0 mem 7\n";
        assert_eq!(number_after(sockstat, "TCP:", "mem"), Some(85));
        assert_eq!(number_after("MemFree: 1 kB\nSlab:  123 kB\n", "Slab:", "Slab:"), Some(123));
        assert_eq!(number_after(sockstat, "RAW:", "mem"), None);
    }
}
