//! Secrets that change while the process runs (`docs/operations.md#secrets-and-tokens`).
//!
//! A secret's file is reloaded on SIGHUP, and when it has another content. An unusable secret changes nothing.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use protocol::Secret;
use tokio::{
    signal::unix::{SignalKind, signal},
    task::{JoinHandle, spawn_blocking},
    time::{MissedTickBehavior, interval},
};

/// How often the files are read. A change is used at the second reading that finds it.
const READ_EVERY: Duration = Duration::from_secs(1);
/// The longest file that is read, bytes.
const MAX_FILE_BYTES: u64 = 64 * 1024;

/// A value that can be replaced as a whole. Clones share it.
pub struct Live<T>(Arc<RwLock<Arc<T>>>);

impl<T> Live<T> {
    /// Starts with `value`.
    #[must_use]
    pub fn new(value: T) -> Self {
        Self(Arc::new(RwLock::new(Arc::new(value))))
    }

    /// Returns the current value.
    #[must_use]
    pub fn get(&self) -> Arc<T> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Replaces the value, for all clones.
    pub fn set(&self, value: T) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(value);
    }
}

impl<T: Default> Default for Live<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

impl<T> Clone for Live<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T: fmt::Debug> fmt::Debug for Live<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.get().fmt(f)
    }
}

/// A file with a secret, and the function that takes a new secret from it.
#[derive(Clone)]
pub struct SecretFile {
    setting: &'static str,
    path: PathBuf,
    /// The secret in use.
    current: Secret,
    take: Arc<Take>,
    /// The content at the last reading, if it was another one.
    pending: Option<Content>,
    /// The pending content was tried, and the result was logged.
    is_tried: bool,
}

type Take = dyn Fn(&Secret) -> Result<(), String> + Send + Sync;

#[derive(Clone, PartialEq, Eq)]
enum Content {
    Secret(Secret),
    Unreadable(String),
}

impl SecretFile {
    pub(crate) fn new(
        setting: &'static str,
        path: PathBuf,
        current: Secret,
        take: impl Fn(&Secret) -> Result<(), String> + Send + Sync + 'static,
    ) -> Self {
        Self { setting, path, current, take: Arc::new(take), pending: None, is_tried: false }
    }

    /// Reads the file again. A new content is used if the last reading found it too, so that half of a file that is being
    /// written is not. With `now` it is used at once.
    async fn reload(&mut self, now: bool) {
        let path = self.path.clone();
        let read = spawn_blocking(move || read(&path)).await.map_err(io::Error::other).flatten();
        let content = match read {
            Ok(secret) if secret == self.current => {
                self.pending = None;
                if now {
                    tracing::info!(setting = self.setting, "the file has the secret that is in use");
                }
                return;
            }
            Ok(secret) => Content::Secret(secret),
            Err(error) => Content::Unreadable(error.to_string()),
        };
        if self.pending.as_ref() != Some(&content) {
            self.is_tried = false;
            if !now {
                self.pending = Some(content);
                return;
            }
        }
        if !self.is_tried || now {
            match self.take(&content) {
                Ok(()) => tracing::info!(setting = self.setting, "a new secret is in use"),
                Err(error) => {
                    tracing::error!(setting = self.setting, path = %self.path.display(), error, "the file cannot be used: the former secret stays in use");
                }
            }
        }
        self.is_tried = true;
        self.pending = Some(content);
    }

    fn take(&mut self, content: &Content) -> Result<(), String> {
        match content {
            Content::Secret(secret) => {
                (self.take)(secret)?;
                self.current = secret.clone();
                Ok(())
            }
            Content::Unreadable(error) => Err(error.clone()),
        }
    }
}

impl fmt::Debug for SecretFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretFile({} at {})", self.setting, self.path.display())
    }
}

/// Follows these files forever, in a task. Without files there is no task, and SIGHUP ends the process, as by default.
///
/// # Errors
/// If the process cannot have signal handlers.
pub fn follow(mut files: Vec<SecretFile>) -> io::Result<Option<JoinHandle<()>>> {
    if files.is_empty() {
        return Ok(None);
    }
    let mut hangup = signal(SignalKind::hangup())?;
    let mut readings = interval(READ_EVERY);
    readings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    Ok(Some(tokio::spawn(async move {
        loop {
            let now = tokio::select! {
                _ = hangup.recv() => true,
                _ = readings.tick() => false,
            };
            for file in &mut files {
                file.reload(now).await;
            }
        }
    })))
}

/// Returns a file's text as a value, without the line end that editors add.
pub(crate) fn without_line_end(text: &str) -> &str {
    text.trim_end_matches(['\r', '\n'])
}

/// Reads a secret, and never shows it. Other things than files are refused: a pipe might block forever.
fn read(path: &Path) -> io::Result<Secret> {
    let metadata = std::fs::metadata(path)?;
    if !metadata.is_file() || metadata.len() > MAX_FILE_BYTES {
        return Err(io::Error::other(format!("not a file of at most {MAX_FILE_BYTES} bytes")));
    }
    std::fs::read_to_string(path).map(|text| Secret::new(without_line_end(&text)))
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[tokio::test]
    async fn a_change_is_used_at_the_second_reading_or_at_once_on_request() {
        let dir = std::env::temp_dir().join(format!("kmarket-rotation-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("secret");
        let write = |text: &str| std::fs::write(&path, text).unwrap();
        let taken = Arc::new(Mutex::new(Vec::new()));
        let for_file = Arc::clone(&taken);
        let mut file = SecretFile::new("JWT_SECRET", path.clone(), Secret::new("a"), move |secret| {
            for_file.lock().unwrap().push(secret.expose().to_owned());
            if secret.expose() == "bad" { Err("too short".to_owned()) } else { Ok(()) }
        });
        let taken = || std::mem::take(&mut *taken.lock().unwrap());
        write("a\n");
        file.reload(false).await;
        file.reload(true).await;
        assert!(taken().is_empty(), "it is in use already");
        write("half");
        file.reload(false).await;
        write("whole\n");
        file.reload(false).await;
        assert!(taken().is_empty(), "it is still changing");
        file.reload(false).await;
        file.reload(false).await;
        assert_eq!(taken(), ["whole"]);
        write("c");
        file.reload(true).await;
        assert_eq!(taken(), ["c"]);
        write("bad");
        for _ in 0..4 {
            file.reload(false).await;
        }
        assert_eq!(taken(), ["bad"], "tried and logged once");
        file.reload(true).await;
        assert_eq!(taken(), ["bad"], "and once more on request");
        std::fs::remove_file(&path).unwrap();
        for _ in 0..3 {
            file.reload(false).await;
        }
        write("c");
        file.reload(false).await;
        assert!(taken().is_empty(), "a missing file changes nothing");
        std::fs::remove_dir_all(&dir).unwrap();
        assert_eq!(format!("{file:?}"), format!("SecretFile(JWT_SECRET at {})", path.display()));
    }
}
