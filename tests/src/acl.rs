//! The users of Redis that the project ships (`docker/redis/users.acl`), each with a password.

use std::{fs, path::PathBuf};

use tempfile::TempDir;

use crate::directory::directory;

/// The shipped file. It has no passwords, so Redis refuses every user.
pub const SHIPPED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docker/redis/users.acl");

/// The password of every user.
pub const PASSWORD: &str = "the-tests-password";

/// A file of users for `redis-server --aclfile`: the shipped users with a password, and `default` with every
/// permission, for the test itself.
#[derive(Debug)]
pub struct Users {
    dir: TempDir,
}

impl Users {
    /// Writes the file.
    #[must_use]
    pub fn make() -> Self {
        let users = Self { dir: directory() };
        let shipped = fs::read_to_string(SHIPPED).expect("it is part of the checkout");
        let with_password = |line: &str| match line.strip_prefix("user default ") {
            Some(_) => "user default on nopass ~* &* +@all\n".to_owned(),
            None => format!("{line} >{PASSWORD}\n"),
        };
        let lines: String = shipped.lines().map(with_password).collect();
        fs::write(users.path(), lines).expect("the directory is writable");
        users
    }

    /// The arguments of a `redis-server` with these users, and with the user as which it replicates.
    #[must_use]
    pub fn args(&self) -> [String; 6] {
        let file = self.path().display().to_string();
        ["--aclfile", &file, "--masteruser", "replica", "--masterauth", PASSWORD].map(str::to_owned)
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("users.acl")
    }
}

/// Returns `url` with this user and the password.
#[must_use]
pub fn as_user(url: &str, user: &str) -> String {
    let (scheme, rest) = url.split_once("://").expect("a URL");
    format!("{scheme}://{user}:{PASSWORD}@{rest}")
}
