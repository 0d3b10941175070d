//! What the services beside this one see: its tokens, verified by the `PyJWT` they use.

use std::{
    path::Path,
    process::Command,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde_json::{Value, json};
use sqlx::Row as _;

use crate::stack::{Answer, Database, SECRET, Service, finish, installed, post};

/// What `consumer.py` makes of a token.
fn consumer(secret: &str, seconds_behind: u32, token: &str) -> Value {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/consumer.py");
    let (code, output, complaint) = finish(
        Command::new(installed("python")).arg(script).args([secret, &seconds_behind.to_string()]),
        token,
        Duration::from_mins(1),
    );
    assert_eq!(code, 0, "{complaint}");
    serde_json::from_str(&output).expect("the consumer prints JSON")
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    i64::try_from(since.expect("it is after 1970").as_secs()).expect("it is before the year 292277026596")
}

fn names(claims: &Value) -> Vec<&str> {
    let mut names: Vec<&str> =
        claims.as_object().map(|object| object.keys().map(String::as_str).collect()).unwrap_or_default();
    names.sort_unstable();
    names
}

/// Registers a customer at `service` and signs them in.
async fn signed_in(service: &Service) -> Answer {
    let account = json!({"email": "cust@example.com", "password": "Cust-pass1"});
    assert_eq!(post(&service.url("/auth/register"), &account).await.status, 201);
    let answer = post(&service.url("/auth/login"), &account).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer
}

#[tokio::test]
async fn consumers_verify_our_tokens_with_their_clock_equal_or_behind() {
    let database = Database::create().await;
    let service = Service::start(&database.dsn()).await;
    let begin = now();
    let login = signed_in(&service).await;
    let refreshed = post(&service.url("/auth/refresh"), &json!({"refresh_token": login.text("refresh_token")})).await;

    assert_eq!(consumer(SECRET, 0, "control")["claims"]["sub"], "control");
    assert_eq!(consumer(SECRET, 5, "control"), json!({"refused": "ImmatureSignatureError"}));

    for (pair, behind) in [(&login, 0), (&login, 5), (&refreshed, 0), (&refreshed, 5)] {
        let access = consumer(SECRET, behind, &pair.text("access_token"));
        assert_eq!(access["header"], json!({"alg": "HS256", "typ": "JWT"}));
        let claims = &access["claims"];
        assert_eq!(names(claims), ["exp", "role", "sid", "sub", "type"]);
        assert_eq!(claims["type"], "access");
        assert_eq!(claims["sub"], "cust@example.com");
        assert_eq!(claims["role"], "customer");
        let lasts = claims["exp"].as_i64().expect("exp is a whole number") - begin;
        assert!((900..960).contains(&lasts), "the access token lasts {lasts} s");

        let refresh = consumer(SECRET, behind, &pair.text("refresh_token"));
        assert_eq!(refresh["header"], json!({"alg": "HS256", "typ": "JWT"}));
        let claims = &refresh["claims"];
        assert_eq!(names(claims), ["exp", "jti", "sid", "sub", "type"]);
        assert_eq!(claims["type"], "refresh");
        assert_eq!(claims["sub"], "cust@example.com");
        let jti = claims["jti"].as_str().expect("jti is a string");
        assert!(jti.len() == 32 && jti.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')));
        let lasts = claims["exp"].as_i64().expect("exp is a whole number") - begin;
        assert!((30 * 86_400..30 * 86_400 + 60).contains(&lasts), "the refresh token lasts {lasts} s");
        assert_eq!(claims["sid"], access["claims"]["sid"], "a pair is of one session");
    }
}

#[tokio::test]
async fn consumers_refuse_a_token_of_another_secret() {
    let database = Database::create().await;
    let service = Service::start(&database.dsn()).await;
    let token = signed_in(&service).await.text("access_token");
    assert_eq!(consumer("another secret, as long as that one", 0, &token), json!({"refused": "InvalidSignatureError"}));
}

#[tokio::test]
async fn the_row_of_a_refresh_token_holds_its_digest_and_not_the_token() {
    let database = Database::create().await;
    let service = Service::start(&database.dsn()).await;
    let token = signed_in(&service).await.text("refresh_token");
    let claims = consumer(SECRET, 0, &token);

    let mut connection = database.connect().await;
    let row = sqlx::query(
        "SELECT jti, token_hash = encode(sha256(convert_to($1, 'UTF8')), 'hex') AS digest, \
         strpos(to_jsonb(t)::text, $1) AS place FROM refresh_tokens t",
    )
    .bind(&token)
    .fetch_one(&mut connection)
    .await
    .expect("a login leaves one row");
    assert_eq!(claims["claims"]["jti"], row.get::<String, _>("jti"));
    assert!(row.get::<bool, _>("digest"), "token_hash is the SHA-256 of the token");
    assert_eq!(row.get::<i32, _>("place"), 0, "the token stands nowhere in its row");
}
