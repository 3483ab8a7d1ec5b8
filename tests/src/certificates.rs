//! TLS for servers on 127.0.0.1.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::TempDir;

use crate::directory::directory;

const CERTIFICATE: &str = "server.crt";
const KEY: &str = "server.key";

/// A certificate for 127.0.0.1, and the authority that signed it.
#[derive(Debug)]
pub struct Certificates {
    dir: TempDir,
}

impl Certificates {
    /// Creates both with the `openssl` command.
    #[must_use]
    pub fn make() -> Self {
        let dir = directory();
        make_certificate(dir.path(), "ca", &[]);
        let signed = ["-CA", "ca.crt", "-CAkey", "ca.key"];
        let names =
            ["-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE"];
        make_certificate(dir.path(), "server", &[signed.as_slice(), &names].concat());
        Self { dir }
    }

    /// The file with the authority's certificate.
    #[must_use]
    pub fn ca_file(&self) -> PathBuf {
        self.file("ca.crt")
    }

    /// The settings of a Redis node or a sentinel that speaks only TLS, to clients and to other nodes.
    #[must_use]
    pub fn settings(&self) -> [(&'static str, String); 6] {
        let file = |name: &str| self.file(name).display().to_string();
        [
            ("tls-cert-file", file(CERTIFICATE)),
            ("tls-key-file", file(KEY)),
            ("tls-ca-cert-file", file("ca.crt")),
            ("tls-auth-clients", "no".to_owned()),
            ("tls-replication", "yes".to_owned()),
            ("tls-cluster", "yes".to_owned()),
        ]
    }

    /// The files with the server's certificate and with its key.
    #[must_use]
    pub fn server_files(&self) -> [PathBuf; 2] {
        [self.file(CERTIFICATE), self.file(KEY)]
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

fn make_certificate(dir: &Path, name: &str, more: &[&str]) {
    let output = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"])
        .args(["-days", "2", "-subj", &format!("/CN=KMarket tests {name}")])
        .args(["-keyout", &format!("{name}.key"), "-out", &format!("{name}.crt")])
        .args(more)
        .current_dir(dir)
        .output()
        .expect("these tests need the openssl command");
    assert!(output.status.success(), "openssl: {}", String::from_utf8_lossy(&output.stderr));
}
