//! How services, and the tests' own backbones, connect to a Redis.

use std::{fs, path::PathBuf};

use ::redis::{Client, IntoConnectionInfo, TlsCertificates};
use backbone::{RedisConfig, TailFrom};
use protocol::Secret;

/// How services connect to a Redis: `REDIS_URL` and `REDIS_CA_FILE`.
#[derive(Clone, Debug)]
pub struct Access {
    /// `REDIS_URL`.
    pub url: String,
    /// `REDIS_CA_FILE`.
    pub ca_file: Option<PathBuf>,
    /// Whether each service has a user of its own ([`crate::acl::Users`]).
    pub has_users: bool,
}

impl Access {
    /// The access to a plain Redis at this port of 127.0.0.1.
    #[must_use]
    pub fn at_port(port: u16) -> Self {
        Self { url: format!("redis://127.0.0.1:{port}"), ca_file: None, has_users: false }
    }

    /// The settings of a backbone in the test's own process.
    #[must_use]
    pub fn config(&self) -> RedisConfig {
        let ca_pem = self.ca_pem().map(|pem| Secret::new(&String::from_utf8(pem).expect("PEM is ASCII")));
        RedisConfig { url: Secret::new(&self.url), ca_pem, tail_from: TailFrom::Primary }
    }

    fn ca_pem(&self) -> Option<Vec<u8>> {
        self.ca_file.as_ref().map(|file| fs::read(file).expect("the harness wrote it"))
    }

    pub(crate) fn client(&self) -> Client {
        let info = self.url.as_str().into_connection_info().expect("the URL is well-formed");
        match self.ca_pem() {
            Some(pem) => {
                let trusted = TlsCertificates { client_tls: None, root_cert: Some(pem) };
                Client::build_with_tls(info, trusted)
            }
            None => Client::open(info),
        }
        .expect("the URL is well-formed")
    }
}

impl From<&Self> for Access {
    fn from(access: &Self) -> Self {
        access.clone()
    }
}
