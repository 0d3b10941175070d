//! Users, sessions and tokens written straight into the database, as the service would: what is measured needs no
//! password hash before it can start.

use std::time::{SystemTime, UNIX_EPOCH};

use argon2::password_hash::PasswordHasher as _;
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use sqlx::{Connection as _, PgConnection};
use uuid::Uuid;

use crate::{Outcome, hash};

/// Of every seeded user.
pub(crate) const PASSWORD: &str = "load-pass-1";

const DAY: i64 = 24 * 60 * 60;

#[derive(Serialize)]
struct RefreshPayload<'a> {
    sub: &'a str,
    jti: String,
    exp: i64,
    r#type: &'static str,
    sid: Uuid,
}

#[derive(Serialize)]
struct AccessPayload<'a> {
    sub: &'a str,
    role: &'static str,
    exp: i64,
    r#type: &'static str,
    sid: Uuid,
}

/// An access token as the service signs one.
pub(crate) fn access_token(secret: &str, email: &str, sid: Uuid) -> Outcome<String> {
    let payload = AccessPayload { sub: email, role: "customer", exp: unix_now() + 900, r#type: "access", sid };
    let key = jsonwebtoken::EncodingKey::from_secret(secret.as_bytes());
    Ok(jsonwebtoken::encode(&jsonwebtoken::Header::default(), &payload, &key)?)
}

/// The session of a token.
pub(crate) fn session_of(token: &str) -> Outcome<Uuid> {
    let claims = jsonwebtoken::dangerous::insecure_decode::<serde_json::Value>(token)?.claims;
    Ok(claims["sid"].as_str().unwrap_or_default().parse()?)
}

fn unix_now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

pub(crate) async fn database(dsn: &str) -> Outcome<PgConnection> {
    Ok(PgConnection::connect(dsn).await?)
}

pub(crate) struct User {
    pub(crate) id: i64,
    pub(crate) email: String,
}

/// Makes sure of `count` users with [`PASSWORD`] and says who they are.
pub(crate) async fn users(database: &mut PgConnection, label: &str, count: usize) -> Outcome<Vec<User>> {
    let emails: Vec<String> = (0..count).map(|index| format!("{label}-{index}@example.com")).collect();
    let hash = hash::cost()?.hash_password(PASSWORD.as_bytes()).map_err(|error| error.to_string())?.to_string();
    sqlx::query(
        "INSERT INTO users (email, password_hash, role)
         SELECT email, $2, 'customer' FROM unnest($1::text[]) AS email ON CONFLICT (email) DO NOTHING",
    )
    .bind(&emails)
    .bind(&hash)
    .execute(&mut *database)
    .await?;
    let ids: Vec<i64> = sqlx::query_scalar(
        "SELECT users.id FROM unnest($1::text[]) WITH ORDINALITY AS wanted (email, position)
         JOIN users ON users.email = wanted.email ORDER BY position",
    )
    .bind(&emails)
    .fetch_all(&mut *database)
    .await?;
    Ok(ids.into_iter().zip(emails).map(|(id, email)| User { id, email }).collect())
}

/// Opens a session for each of the users and says the refresh token of each.
pub(crate) async fn sessions<'a>(
    database: &mut PgConnection,
    secret: &str,
    users: impl IntoIterator<Item = &'a User>,
) -> Outcome<Vec<String>> {
    let key = jsonwebtoken::EncodingKey::from_secret(secret.as_bytes());
    let exp = unix_now() + 30 * DAY;
    let (mut ids, mut jtis, mut hashes, mut sids) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut tokens = Vec::new();
    for user in users {
        let (jti, sid) = (Uuid::new_v4().simple().to_string(), Uuid::now_v7());
        let payload = RefreshPayload { sub: &user.email, jti: jti.clone(), exp, r#type: "refresh", sid };
        let token = jsonwebtoken::encode(&jsonwebtoken::Header::default(), &payload, &key)?;
        let digest: Vec<String> = Sha256::digest(&token).iter().map(|byte| format!("{byte:02x}")).collect();
        ids.push(user.id);
        jtis.push(jti);
        hashes.push(digest.concat());
        sids.push(sid);
        tokens.push(token);
    }
    sqlx::query(
        "WITH seeded AS (
             SELECT * FROM unnest($1::bigint[], $2::text[], $3::text[], $4::uuid[])
                 AS seeded (user_id, jti, token_hash, session_id)
         ), opened AS (
             INSERT INTO sessions (id, user_id, created_at, last_seen_at)
             SELECT session_id, user_id, now() AT TIME ZONE 'utc', now() AT TIME ZONE 'utc' FROM seeded
         )
         INSERT INTO refresh_tokens (user_id, jti, token_hash, expires_at, session_id)
         SELECT user_id, jti, token_hash, to_timestamp($5) AT TIME ZONE 'utc', session_id FROM seeded",
    )
    .bind(&ids)
    .bind(&jtis)
    .bind(&hashes)
    .bind(&sids)
    .bind(i32::try_from(exp).map(f64::from)?)
    .execute(database)
    .await?;
    Ok(tokens)
}
