//! What Linux says about processes: CPU and memory of the servers, and this process's open-file limit.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, bail};
use rustix::param::clock_ticks_per_second;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::Serialize;

/// The server processes to read.
pub(crate) struct Watch(Vec<Process>);

struct Process {
    role: &'static str,
    pid: u32,
    name: String,
}

/// One process between two readings.
#[derive(Debug, Serialize)]
pub(crate) struct Used {
    /// What it serves as.
    pub(crate) role: &'static str,
    /// Its pid.
    pub(crate) pid: u32,
    /// Its name.
    pub(crate) name: String,
    /// CPU time used in between.
    pub(crate) cpu_us: u64,
    /// Resident memory at the first reading.
    pub(crate) rss_before_bytes: u64,
    /// Resident memory at the second reading.
    pub(crate) rss_after_bytes: u64,
}

/// CPU time so far and resident memory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reading {
    cpu_us: u64,
    rss_bytes: u64,
}

impl Watch {
    /// Watches these processes; one that is named twice counts under its first role.
    ///
    /// # Errors
    /// When one does not exist.
    pub(crate) fn new(processes: impl Iterator<Item = (&'static str, u32)>) -> Result<Self> {
        let mut seen = BTreeSet::new();
        let processes = processes.filter(|&(_, pid)| seen.insert(pid)).map(|(role, pid)| {
            let name = fs::read_to_string(format!("/proc/{pid}/comm"))
                .with_context(|| format!("no process {pid}"))?;
            Ok(Process { role, pid, name: name.trim_end().to_owned() })
        });
        processes.collect::<Result<_>>().map(Self)
    }

    /// Reads all of them; nothing for one that has ended.
    pub(crate) fn read(&self) -> Vec<Option<Reading>> {
        self.0.iter().map(|process| read(process.pid)).collect()
    }

    /// What each used between two readings, if it was there at both.
    pub(crate) fn used(&self, before: &[Option<Reading>], after: &[Option<Reading>]) -> Vec<Used> {
        let readings = before.iter().zip(after);
        let used = self.0.iter().zip(readings).filter_map(|(process, (before, after))| {
            let (before, after) = ((*before)?, (*after)?);
            Some(Used {
                role: process.role,
                pid: process.pid,
                name: process.name.clone(),
                cpu_us: after.cpu_us.saturating_sub(before.cpu_us),
                rss_before_bytes: before.rss_bytes,
                rss_after_bytes: after.rss_bytes,
            })
        });
        used.collect()
    }
}

/// Resident memory of a process.
///
/// # Errors
/// When it has ended.
pub(crate) fn rss_bytes(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).with_context(|| path.clone())?;
    resident_bytes(&status).with_context(|| format!("{path} without VmRSS"))
}

/// The process that listens on a loopback address of this machine, if it is one of ours to look at.
pub(crate) fn listening_on(address: SocketAddr) -> Option<u32> {
    if !address.ip().is_loopback() {
        return None;
    }
    let inodes: BTreeSet<String> = ["/proc/net/tcp", "/proc/net/tcp6"]
        .into_iter()
        .filter_map(|path| fs::read_to_string(path).ok())
        .flat_map(|table| {
            let inodes = table.lines().filter_map(|line| listener(line, address));
            inodes.map(|inode| format!("socket:[{inode}]")).collect::<Vec<_>>()
        })
        .collect();
    if inodes.is_empty() {
        return None;
    }
    let pids =
        fs::read_dir("/proc").ok()?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    pids.into_iter().find(|pid| has_open(*pid, &inodes))
}

/// Raises the soft open-file limit to the hard one and makes sure it is enough.
///
/// # Errors
/// With what to do, when it is not.
pub(crate) fn allow_open_files(wanted: usize) -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    let raised = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    let allowed = if raised.is_ok() { limit.maximum } else { limit.current };
    if allowed.is_some_and(|allowed| allowed < wanted as u64) {
        bail!(
            "this run needs {wanted} open files and the limit is {}: raise the hard limit (`ulimit -Hn {wanted}` as \
             root, or `--ulimit nofile={wanted}` for a container), or spread the sockets over several swarms, \
             one publishing and the others with `deliver --rate 0`",
            allowed.unwrap_or_default()
        );
    }
    Ok(())
}

/// The inode of a `/proc/net/tcp` line that is a listener for the address, or for all addresses, on its port.
fn listener(line: &str, address: SocketAddr) -> Option<&str> {
    const LISTEN: &str = "0A";
    let mut fields = line.split_ascii_whitespace().skip(1);
    let (ip, port) = fields.next()?.split_once(':')?;
    if u16::from_str_radix(port, 16).ok()? != address.port() || fields.nth(1)? != LISTEN {
        return None;
    }
    let own = match address.ip() {
        IpAddr::V4(ip) => format!("{:08X}", u32::from_ne_bytes(ip.octets())),
        IpAddr::V6(_) => "00000000000000000000000001000000".to_owned(),
    };
    (ip == own || ip.bytes().all(|digit| digit == b'0')).then(|| fields.nth(5)).flatten()
}

fn has_open(pid: u32, inodes: &BTreeSet<String>) -> bool {
    let Ok(open) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    open.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
        .any(|target| target.to_str().is_some_and(|target| inodes.contains(target)))
}

fn read(pid: u32) -> Option<Reading> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let cpu_us = cpu_ticks(&stat)? * 1_000_000 / clock_ticks_per_second();
    Some(Reading { cpu_us, rss_bytes: resident_bytes(&status)? })
}

/// utime + stime, the 14th and 15th field; the 2nd is a name in brackets that may contain anything.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let mut fields = stat[stat.rfind(')')? + 1..].split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

fn resident_bytes(status: &str) -> Option<u64> {
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?.trim().strip_suffix(" kB")?;
    kib.parse::<u64>().ok().map(|kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::process;

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
        let watch =
            Watch::new([("gateway", process::id()), ("publisher", process::id())].into_iter()).unwrap();
        let reading = watch.read();
        let used = watch.used(&reading, &reading);
        assert_eq!((used.len(), used[0].role), (1, "gateway"));
        assert!(used[0].rss_after_bytes > 100_000);
    }

    #[test]
    fn a_name_with_brackets_does_not_confuse_the_fields() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 1 2 3 4 50 60 0 0 20 0 1 0 5 6 7";
        assert_eq!(cpu_ticks(stat), Some(110));
    }
}
