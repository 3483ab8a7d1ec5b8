//! Secrets that change while the process runs: read anew from their files on SIGHUP, and when a file has another
//! content. What cannot be used changes nothing.

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

/// How often the files are looked at. A change is taken at the second look that sees it.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The longest file that is read, bytes.
const MAX_FILE_BYTES: u64 = 64 * 1024;

/// A value that is replaced as a whole. Clones share it.
pub struct Live<T>(Arc<RwLock<Arc<T>>>);

impl<T> Live<T> {
    /// Begins with `value`.
    #[must_use]
    pub fn new(value: T) -> Self {
        Self(Arc::new(RwLock::new(Arc::new(value))))
    }

    /// The value now.
    #[must_use]
    pub fn get(&self) -> Arc<T> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Another value from now on.
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

/// A file that holds a secret, and who takes another one from it.
#[derive(Clone)]
pub struct SecretFile {
    setting: &'static str,
    path: PathBuf,
    /// What is in use.
    current: Secret,
    take: Arc<Take>,
    /// What the last look saw, when that was something else.
    seen: Option<Seen>,
    /// That has been said.
    is_told: bool,
}

type Take = dyn Fn(&Secret) -> Result<(), String> + Send + Sync;

#[derive(Clone, PartialEq, Eq)]
enum Seen {
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
        Self { setting, path, current, take: Arc::new(take), seen: None, is_told: false }
    }

    /// Reads the file again. What is new is taken when it was there at the last look as well, so that a file that is
    /// being written is not taken half; or at once when somebody `asked`.
    async fn look(&mut self, asked: bool) {
        let path = self.path.clone();
        let read = spawn_blocking(move || read(&path)).await.map_err(io::Error::other).flatten();
        let seen = match read {
            Ok(secret) if secret == self.current => {
                self.seen = None;
                if asked {
                    tracing::info!(setting = self.setting, "the file has the secret that is in use");
                }
                return;
            }
            Ok(secret) => Seen::Secret(secret),
            Err(error) => Seen::Unreadable(error.to_string()),
        };
        if self.seen.as_ref() != Some(&seen) {
            self.is_told = false;
            if !asked {
                self.seen = Some(seen);
                return;
            }
        }
        if !self.is_told || asked {
            match self.take(&seen) {
                Ok(()) => tracing::info!(setting = self.setting, "a new secret is in use"),
                Err(error) => {
                    tracing::error!(setting = self.setting, path = %self.path.display(), error, "the file cannot be used: the former secret stays in use");
                }
            }
        }
        self.is_told = true;
        self.seen = Some(seen);
    }

    fn take(&mut self, seen: &Seen) -> Result<(), String> {
        match seen {
            Seen::Secret(secret) => {
                (self.take)(secret)?;
                self.current = secret.clone();
                Ok(())
            }
            Seen::Unreadable(error) => Err(error.clone()),
        }
    }
}

impl fmt::Debug for SecretFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretFile({} at {})", self.setting, self.path.display())
    }
}

/// Looks at these files forever, from now on. Without any, SIGHUP does what it does to any process.
///
/// # Errors
/// When the process cannot have signal handlers.
pub fn follow(mut files: Vec<SecretFile>) -> io::Result<Option<JoinHandle<()>>> {
    if files.is_empty() {
        return Ok(None);
    }
    let mut hangup = signal(SignalKind::hangup())?;
    let mut looks = interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    Ok(Some(tokio::spawn(async move {
        loop {
            let asked = tokio::select! {
                _ = hangup.recv() => true,
                _ = looks.tick() => false,
            };
            for file in &mut files {
                file.look(asked).await;
            }
        }
    })))
}

/// A file's text as a value: editors end the last line.
pub(crate) fn without_line_end(text: &str) -> &str {
    text.trim_end_matches(['\r', '\n'])
}

/// Never shows what it has read. What is no file, as a pipe, might keep it waiting forever.
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
    async fn a_change_is_taken_at_the_second_look_or_at_once_when_asked() {
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
        file.look(false).await;
        file.look(true).await;
        assert!(taken().is_empty(), "it is in use");
        write("half");
        file.look(false).await;
        write("whole\n");
        file.look(false).await;
        assert!(taken().is_empty(), "it still changes");
        file.look(false).await;
        file.look(false).await;
        assert_eq!(taken(), ["whole"]);
        write("c");
        file.look(true).await;
        assert_eq!(taken(), ["c"]);
        write("bad");
        for _ in 0..4 {
            file.look(false).await;
        }
        assert_eq!(taken(), ["bad"], "tried, and told, once");
        file.look(true).await;
        assert_eq!(taken(), ["bad"], "and once more when asked");
        std::fs::remove_file(&path).unwrap();
        for _ in 0..3 {
            file.look(false).await;
        }
        write("c");
        file.look(false).await;
        assert!(taken().is_empty(), "what is not there changes nothing");
        std::fs::remove_dir_all(&dir).unwrap();
        assert_eq!(format!("{file:?}"), format!("SecretFile(JWT_SECRET at {})", path.display()));
    }
}
