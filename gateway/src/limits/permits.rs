//! Permits for connections: a bounded number on this gateway, and for each user.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use service::settings::Setting;

use super::is_roomy;

/// The most connections of one user.
pub const MAX_CONNECTIONS_PER_USER: Setting<usize> =
    Setting::new("MAX_CONNECTIONS_PER_USER", "10", "open connections of one user on this gateway");

/// Counts the gateway's open connections, in all and per user.
#[derive(Debug)]
pub struct ConnectionPermits {
    max: usize,
    max_per_user: usize,
    taken: AtomicUsize,
    users: Mutex<HashMap<Arc<str>, usize>>,
}

/// Why no permit is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// `MAX_CONNECTIONS` are open.
    #[error("this pod has as many connections as it takes: try again, another pod may have room")]
    Pod,
    /// The user has `MAX_CONNECTIONS_PER_USER`.
    #[error("this user has too many open connections: close one first")]
    User,
}

/// The right to one connection. Dropping it gives the permit back.
#[derive(Debug)]
pub struct ConnectionPermit {
    permits: Arc<ConnectionPermits>,
    user: Arc<str>,
}

impl ConnectionPermits {
    /// Creates `max` permits, of which each user can have `max_per_user`.
    #[must_use]
    pub fn new(max: usize, max_per_user: usize) -> Arc<Self> {
        Arc::new(Self { max, max_per_user, taken: AtomicUsize::new(0), users: Mutex::default() })
    }

    /// Takes a permit for `user`.
    ///
    /// # Errors
    /// [`Full`] when none is left.
    pub fn take(self: &Arc<Self>, user: &str) -> Result<ConnectionPermit, Full> {
        let mut users = self.users();
        if self.taken.load(Ordering::Relaxed) >= self.max {
            return Err(Full::Pod);
        }
        let user = users.get_key_value(user).map_or_else(|| Arc::from(user), |(user, _)| Arc::clone(user));
        let count = users.entry(Arc::clone(&user)).or_insert(0);
        if *count >= self.max_per_user {
            return Err(Full::User);
        }
        *count += 1;
        self.taken.fetch_add(1, Ordering::Relaxed);
        Ok(ConnectionPermit { permits: Arc::clone(self), user })
    }

    fn users(&self) -> MutexGuard<'_, HashMap<Arc<str>, usize>> {
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ConnectionPermit {
    /// Returns the id of the user that the permit was taken for.
    #[must_use]
    pub fn user(&self) -> &str {
        &self.user
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        let mut users = self.permits.users();
        if let Some(count) = users.get_mut(&*self.user) {
            *count -= 1;
            if *count == 0 {
                users.remove(&*self.user);
                if is_roomy(users.len(), users.capacity()) {
                    users.shrink_to_fit();
                }
            }
        }
        self.permits.taken.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permits_are_given_back() {
        let permits = ConnectionPermits::new(3, 2);
        let first = permits.take("a").unwrap();
        let second = permits.take("a").unwrap();
        assert_eq!(permits.take("a").unwrap_err(), Full::User);
        let third = permits.take("b").unwrap();
        assert_eq!(permits.take("c").unwrap_err(), Full::Pod);
        drop((first, second, third));
        assert_eq!(permits.taken.load(Ordering::Relaxed), 0);
        assert!(permits.users().is_empty());
    }
}
