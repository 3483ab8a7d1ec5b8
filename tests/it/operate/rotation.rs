//! New secrets in the files of a running process (`docs/operations.md#secrets-and-tokens`).

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use protocol::Secret;
use serde_json::Value;
use service::token::{Audience, Keyring, Role, WsClaims};
use tests::{
    Admin, Http, Launch, Redis, Service, Socket, eventually, fresh_user, launch::log_field, process::Stream,
    tokens,
};

const OLD: &str = "the old secret is long enough as it has to be";
const NEW: &str = "the new secret is long enough as it has to be";

/// A secret as Kubernetes mounts it: the file is a link into a directory that is a link, and that one is replaced.
struct Mounted {
    dir: tempfile::TempDir,
    version: u32,
}

impl Mounted {
    fn new(secret: &str) -> Self {
        let mut mounted = Self { dir: tempfile::tempdir().unwrap(), version: 0 };
        mounted.write(secret);
        symlink("..data/secret", mounted.path()).unwrap();
        mounted
    }

    fn write(&mut self, secret: &str) {
        self.version += 1;
        let (dir, version) = (self.dir.path(), format!("..{}", self.version));
        fs::create_dir(dir.join(&version)).unwrap();
        fs::write(dir.join(&version).join("secret"), format!("{secret}\n")).unwrap();
        symlink(&version, dir.join("..data_tmp")).unwrap();
        fs::rename(dir.join("..data_tmp"), dir.join("..data")).unwrap();
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("secret")
    }
}

#[tokio::test]
async fn keys_change_with_their_file_and_nobody_with_a_good_token_notices() {
    let redis = Redis::start();
    let mut secret = Mounted::new(&format!("old:{OLD}"));
    let gateway = with_file(Launch::gateway(&redis), "JWT_SECRET", &secret.path()).start();
    let (old_keys, new_keys) = (keys(&format!("old:{OLD}")), keys(&format!("new:{NEW}")));
    let user = fresh_user();
    let old_token = sign(&old_keys, user);
    let mut socket = Socket::connect(gateway.api, &old_token).await;

    secret.write(&format!("new:{NEW},old:{OLD}"));
    eventually("the new key signs", async || new_keys.verify::<WsClaims>(&issue(&gateway, user).await).ok())
        .await;
    for token in [&old_token, &sign(&new_keys, user)] {
        assert_eq!(handshake(&gateway, token).await, 101);
        refresh(&mut socket, token).await;
        assert!(socket.ack().await.ok);
    }
    refresh(&mut socket, &old_token).await;
    assert!(socket.ack().await.ok);

    secret.write(&format!("new:{NEW}"));
    eventually("the old key is gone", async || (handshake(&gateway, &old_token).await == 401).then_some(()))
        .await;
    socket.expect_silence().await;
    refresh(&mut socket, &old_token).await;
    assert_eq!(socket.error().await.code, "UNAUTHORIZED");
    refresh(&mut socket, &sign(&new_keys, user)).await;
    assert!(socket.ack().await.ok);
}

#[tokio::test]
async fn a_file_that_cannot_be_used_changes_nothing_and_the_log_says_why_without_the_secret() {
    let redis = Redis::start();
    let mut secret = Mounted::new(&format!("old:{OLD}"));
    let gateway = with_file(Launch::gateway(&redis), "JWT_SECRET", &secret.path()).start();
    let token = sign(&keys(&format!("old:{OLD}")), fresh_user());
    let told = |why: &str| {
        gateway.process.expect_line(why, |line| log_field(line, "error").filter(|error| error.contains(why)))
    };
    for (bad, why) in
        [(format!("new:{NEW},old:short-one"), "at least 32 bytes"), (format!("{NEW},{OLD}"), "kid1:secret1")]
    {
        secret.write(&bad);
        told(why);
        assert_eq!(handshake(&gateway, &token).await, 101);
    }
    fs::remove_file(secret.path()).unwrap();
    told("No such file");
    assert_eq!(handshake(&gateway, &token).await, 101);
    // The service takes the next good secret.
    symlink("..data/secret", secret.path()).unwrap();
    secret.write(&format!("new:{NEW}"));
    let new = sign(&keys(&format!("new:{NEW}")), fresh_user());
    eventually("the new key is good", async || (handshake(&gateway, &new).await == 101).then_some(())).await;
    let said = gateway.process.last_lines();
    assert!(!said.contains(NEW) && !said.contains(OLD) && !said.contains("short-one"), "{said}");
}

/// A pipe would keep whoever reads it waiting forever, and with it the next good secret.
#[tokio::test]
async fn what_is_no_file_or_a_large_one_is_not_read() {
    let redis = Redis::start();
    let secret = Mounted::new(OLD);
    let gateway = with_file(Launch::gateway(&redis), "JWT_SECRET", &secret.path()).start();
    let said = |part: &str| gateway.process.said(Stream::Err).matches(part).count();
    let replace = |make: &dyn Fn(&Path)| {
        fs::remove_file(secret.path()).unwrap();
        make(&secret.path());
        gateway.process.hang_up();
    };
    let pipe = |path: &Path| assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
    let large = |path: &Path| fs::write(path, "x".repeat(64 * 1024 + 1)).unwrap();
    for (refusals, make) in [(1, &pipe as &dyn Fn(&Path)), (2, &large)] {
        replace(make);
        eventually("a refusal", async || {
            (said("not a file of at most 65536 bytes") == refusals).then_some(())
        })
        .await;
        assert_eq!(handshake(&gateway, &sign(&keys(OLD), fresh_user())).await, 101);
    }
    replace(&|path| fs::write(path, NEW).unwrap());
    let new = sign(&keys(NEW), fresh_user());
    eventually("the new key is good", async || (handshake(&gateway, &new).await == 101).then_some(())).await;
}

#[tokio::test]
async fn sighup_reads_all_files_at_once() {
    let redis = Redis::start();
    let (mut ws, mut api_key) = (Mounted::new(OLD), Mounted::new("the application's old key"));
    let mut admin = Mounted::new(&format!("old:{OLD}"));
    let gateway = with_file(Launch::gateway(&redis), "JWT_SECRET", &ws.path());
    let gateway = with_file(gateway, "TOKEN_API_KEY", &api_key.path()).start();
    let publisher = with_file(Launch::publisher(&redis), "ADMIN_JWT_SECRET", &admin.path()).start();
    ws.write(NEW);
    api_key.write("the application's new key");
    admin.write(&format!("new:{NEW},old:{OLD}"));
    for service in [&gateway, &publisher] {
        service.process.hang_up();
    }
    for (service, setting) in
        [(&gateway, "JWT_SECRET"), (&gateway, "TOKEN_API_KEY"), (&publisher, "ADMIN_JWT_SECRET")]
    {
        service.process.expect_line(&format!("a word on {setting}"), |line| {
            let is_new = log_field(line, "message")?.contains("a new secret is in use");
            (is_new && log_field(line, "setting")? == setting).then_some(())
        });
    }
    assert_eq!(handshake(&gateway, &sign(&keys(NEW), fresh_user())).await, 101);
    assert_eq!(handshake(&gateway, &sign(&keys(OLD), fresh_user())).await, 401);
    for (key, status) in [("the application's new key", 200), ("the application's old key", 401)] {
        let headers = [("content-type", "application/json"), ("authorization", &*format!("Bearer {key}"))];
        let url = gateway.url("/api/ws/token");
        assert_eq!(
            Http::default().post_with(&url, &headers, r#"{"userId":1}"#).await.status,
            status,
            "{key}"
        );
    }
    for (keys, status) in [("new", NEW, 200), ("old", OLD, 200), ("old", NEW, 401)]
        .map(|(kid, secret, status)| (admin_keys(&format!("{kid}:{secret}")), status))
    {
        let token = tokens::admin_signed(&keys, Role::Viewer);
        let admin = Admin::with_token(publisher.url(""), &token);
        assert_eq!(admin.audit("marketId=1").await.status, status);
    }
    // An empty key would let every client in. The service refuses it, as at start.
    api_key.write("");
    gateway.process.hang_up();
    gateway.process.expect_line("a refusal", |line| {
        log_field(line, "error").filter(|error| error.contains("must not be empty"))
    });
}

#[test]
fn an_empty_token_api_key_is_refused_at_start() {
    let empty = Mounted::new("");
    let launch = Launch::embedded().env("TOKEN_API_KEY_FILE", empty.path().to_str().unwrap());
    let finished = launch.run();
    assert!(!finished.status.success() && finished.err.contains("TOKEN_API_KEY"), "{}", finished.err);
}

fn with_file(launch: Launch, setting: &str, path: &Path) -> Launch {
    launch.without(setting).env(&format!("{setting}_FILE"), path.to_str().unwrap())
}

fn keys(secrets: &str) -> Keyring {
    Keyring::parse(&Secret::new(secrets), Audience::Ws).unwrap()
}

fn admin_keys(secrets: &str) -> Keyring {
    Keyring::parse(&Secret::new(secrets), Audience::Admin).unwrap()
}

fn sign(keys: &Keyring, user: u64) -> String {
    tokens::signed(keys, user)
}

async fn issue(gateway: &Service, user: u64) -> String {
    let answer =
        Http::default().post(&gateway.url("/api/ws/token"), &format!(r#"{{"userId":{user}}}"#)).await;
    answer.ok::<Value>()["token"].as_str().unwrap().to_owned()
}

async fn refresh(socket: &mut Socket, token: &str) {
    socket.send(format_args!(r#"{{"type":"refresh","token":"{token}"}}"#)).await;
}

async fn handshake(gateway: &Service, token: &str) -> u16 {
    Http::default().handshake(&gateway.url(&format!("/ws/odds?token={token}")), &[]).await.status
}
