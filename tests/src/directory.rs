//! Directories for servers' files.

use tempfile::TempDir;

/// Creates a directory for a server's files.
pub(crate) fn directory() -> TempDir {
    tempfile::tempdir().expect("a temporary directory")
}
