//! The users of Redis that the project ships (`docker/redis/users.acl`), with a password each.

use std::{fs, path::PathBuf};

use tempfile::TempDir;

use crate::redis::directory;

/// The file as it is shipped: without passwords, so that nobody is let in.
pub const SHIPPED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docker/redis/users.acl");

/// Everybody's password.
pub const PASSWORD: &str = "the-tests-password";

/// A file of users for `redis-server --aclfile`: those that are shipped, with a password, and `default`, who is the
/// test itself and may do everything.
#[derive(Debug)]
pub struct Users {
    dir: TempDir,
}

impl Users {
    /// Writes it.
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

    /// What a `redis-server` is started with: replicas are users too.
    #[must_use]
    pub fn args(&self) -> [String; 6] {
        let file = self.path().display().to_string();
        ["--aclfile", &file, "--masteruser", "replica", "--masterauth", PASSWORD].map(str::to_owned)
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("users.acl")
    }
}

/// `url` as this user gets there.
#[must_use]
pub fn as_user(url: &str, user: &str) -> String {
    let (scheme, rest) = url.split_once("://").expect("a URL");
    format!("{scheme}://{user}:{PASSWORD}@{rest}")
}
