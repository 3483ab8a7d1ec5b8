//! How the process's open files are shared between sockets and HTTP connections.

use service::settings::{Setting, Settings};

/// The most sockets.
pub const MAX_CONNECTIONS: Setting<usize> = Setting::new(
    "MAX_CONNECTIONS",
    "100000",
    "open connections of this gateway, never above what the open-file limit allows",
);
/// The most HTTP connections.
pub const MAX_HTTP_CONNECTIONS: Setting<usize> = Setting::new(
    "MAX_HTTP_CONNECTIONS",
    "4096",
    "open HTTP connections of this gateway, handshakes under way included, at most a fifth of the open-file limit",
);

/// The settings of a [`FileBudget`].
#[derive(Clone, Copy, Debug)]
pub struct FileSettings {
    /// The most sockets.
    pub max_connections: usize,
    /// The most HTTP connections, handshakes under way included.
    pub max_http: usize,
}

impl FileSettings {
    /// Reads the settings.
    pub fn read(settings: &mut Settings) -> Self {
        Self {
            max_connections: settings.at_least_one(&MAX_CONNECTIONS),
            max_http: settings.at_least_one(&MAX_HTTP_CONNECTIONS),
        }
    }

    /// Raises this process's open-file limit as far as it goes, and returns how many connections fit.
    #[must_use]
    pub fn budget(self) -> FileBudget {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        let raised = rustix::process::Rlimit { current: limit.maximum, maximum: limit.maximum };
        let files = match rustix::process::setrlimit(rustix::process::Resource::Nofile, raised) {
            Ok(()) => limit.maximum,
            Err(_) => limit.current,
        };
        let budget = FileBudget::of(files, self);
        if budget.sockets < self.max_connections {
            let (allowed, wanted) = (budget.sockets, self.max_connections);
            tracing::warn!(
                allowed,
                wanted,
                "MAX_CONNECTIONS is lowered: raise the open-file limit (ulimit -n)"
            );
        }
        budget
    }
}

/// How many connections fit into the open-file limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileBudget {
    /// Clients' sockets.
    pub sockets: usize,
    /// HTTP connections, handshakes under way included.
    pub http: usize,
    /// HTTP connections beyond those, which get a 503.
    pub refusals: usize,
}

impl FileBudget {
    /// Other files: listeners, Redis, polls, logs.
    const OTHERS: usize = 64;
    const MAX_REFUSALS: usize = 256;

    fn of(files: Option<u64>, settings: FileSettings) -> Self {
        let files = files.and_then(|files| usize::try_from(files).ok()).unwrap_or(usize::MAX);
        let for_http = (files / 5).saturating_sub(Self::OTHERS).max(2);
        let refusals = (for_http / 16).clamp(1, Self::MAX_REFUSALS);
        let http = (for_http - refusals).min(settings.max_http);
        let others = http + refusals + Self::OTHERS;
        Self { sockets: files.saturating_sub(others).clamp(1, settings.max_connections), http, refusals }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_open_file_limit_is_shared_out() {
        let budget = |files, max_connections| {
            let settings = FileSettings { max_connections, max_http: 4096 };
            let FileBudget { sockets, http, refusals } = FileBudget::of(files, settings);
            (sockets, http, refusals)
        };
        assert_eq!(budget(None, 100_000), (100_000, 4096, 256));
        assert_eq!(budget(Some(104_416), 100_000), (100_000, 4096, 256));
        assert_eq!(budget(Some(20_000), 100_000), (16_000, 3690, 246));
        assert_eq!(budget(Some(1024), 100_000), (820, 132, 8));
        assert_eq!(budget(Some(1024), 10), (10, 132, 8));
        assert_eq!(budget(Some(0), 10), (1, 1, 1));
        assert_eq!(FileBudget::of(None, FileSettings { max_connections: 10, max_http: 5 }).http, 5);
    }
}
