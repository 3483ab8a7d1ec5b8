//! Settings with which a service refuses to start (README, "Configuration").

use tests::{Http, Launch, Redis, Stack, launch::Finished, tokens};

#[test]
fn a_gateway_says_everything_that_is_wrong_at_once() {
    let stack = Stack::shared();
    let finished = Launch::gateway(stack.redis())
        .env("HEARTBEAT_INTERVAL", "often")
        .env("RESUME_MAX", "-1")
        .env("JWT_SECRET", "short")
        .env("LISTEN", "nowhere")
        .args(&["--nonsense", "1"])
        .run();
    refused(&finished, &["HEARTBEAT_INTERVAL", "RESUME_MAX", "JWT_SECRET", "LISTEN", "--nonsense"]);
    assert!(!finished.err.contains("short\""), "secrets are not shown: {}", finished.err);
}

#[test]
fn a_publisher_says_everything_that_is_wrong_at_once() {
    let stack = Stack::shared();
    let finished = Launch::publisher(stack.redis())
        .env("HISTORY_LEN", "long")
        .without("ADMIN_JWT_SECRET")
        .args(&["--nonsense", "1"])
        .run();
    refused(&finished, &["HISTORY_LEN", "ADMIN_JWT_SECRET", "--nonsense"]);
    refused(&Launch::publisher(stack.redis()).without("REDIS_URL").run(), &["REDIS_URL"]);
    let finished = Launch::publisher(stack.redis()).env("REDIS_URL", "http://127.0.0.1:1").run();
    refused(&finished, &["REDIS_URL"]);
    assert_eq!(finished.status.code(), Some(2), "{}", finished.err);
}

#[test]
fn with_redis_a_secret_is_required() {
    let stack = Stack::shared();
    refused(&Launch::gateway(stack.redis()).without("JWT_SECRET").run(), &["JWT_SECRET"]);
    refused(&Launch::gateway(stack.redis()).env("REDIS_URL", "http://127.0.0.1:1").run(), &["REDIS_URL"]);
}

#[tokio::test]
async fn open_tokens_are_refused_on_a_listener_that_others_can_reach() {
    let stack = Stack::shared();
    let public = || Launch::gateway(stack.redis()).env("LISTEN", "0.0.0.0:0");
    let finished = public().run();
    refused(&finished, &["ALLOW_OPEN_TOKENS"]);
    assert!(finished.err.contains("TOKEN_API_KEY"), "{}", finished.err);

    for allowed in
        [public().env("ALLOW_OPEN_TOKENS", "true"), public().env("TOKEN_API_KEY", "a key of the application")]
    {
        let gateway = allowed.start();
        let health = format!("http://127.0.0.1:{}/api/ws/health", gateway.api.port());
        assert_eq!(Http::default().get(&health).await.status, 200);
    }
}

#[tokio::test]
async fn a_setting_may_be_a_flag_or_come_from_a_file() {
    let stack = Stack::shared();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("secret");
    std::fs::write(&file, format!("{}\n", tokens::JWT_SECRET)).unwrap();
    let gateway = Launch::gateway(stack.redis())
        .without("JWT_SECRET")
        .env("JWT_SECRET_FILE", file.to_str().unwrap())
        .args(&["--max-markets-per-connection", "1", "--heartbeat-interval=2s"])
        .start();
    let mut socket = tests::Socket::connect(gateway.api, &tokens::for_user(tests::fresh_user())).await;
    assert_eq!(socket.subscribe(&[1, 2]).await.rejected.len(), 1);
    let both = Launch::gateway(stack.redis()).env("JWT_SECRET_FILE", file.to_str().unwrap()).run();
    refused(&both, &["JWT_SECRET_FILE"]);
}

#[test]
fn help_lists_the_settings() {
    let redis = Redis::start();
    for launch in [Launch::gateway(&redis), Launch::publisher(&redis)] {
        let finished = launch.args(&["--help"]).run();
        assert!(finished.status.success(), "{}", finished.err);
        let text = format!("{}{}", finished.out, finished.err);
        for name in ["REDIS_URL", "LISTEN", "OPS_LISTEN", "HISTORY_LEN"] {
            assert!(text.contains(name), "{name} in {text}");
        }
    }
}

#[test]
fn a_token_for_the_desk_is_minted_on_the_command_line() {
    let redis = Redis::start();
    let mint = |args: &[&str]| Launch::publisher(&redis).args(&[&["token"], args].concat()).run();
    let minted = mint(&["--sub", "desk-1", "--role", "trader", "--ttl", "8h"]);
    assert!(minted.status.success(), "{}", minted.err);
    assert_eq!(minted.out.trim().split('.').count(), 3, "only the token: {:?}", minted.out);
    assert!(!mint(&["--sub", "desk-1", "--role", "king", "--ttl", "8h"]).status.success());
}

fn refused(finished: &Finished, names: &[&str]) {
    assert!(!finished.status.success(), "it must not start");
    for name in names {
        assert!(finished.err.contains(name), "{name} is named in: {}", finished.err);
    }
}
