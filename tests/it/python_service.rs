//! The Python service at its database: what it has written there, and what it asks and writes.

use auth::clock::Clock;
use auth::db::migrations;
use auth::db::schema::SchemaError;
use chrono::{NaiveDateTime, TimeDelta};
use serde_json::json;
use sqlx::postgres::PgArguments;
use sqlx::query::Query;
use sqlx::{PgPool, Postgres};

use crate::support::{PASSWORD, SECRET, TestApp, claims, sha256, sign};

pub(crate) const SCHEMA: &str = include_str!("../data/python-schema.sql");

/// Two accounts that differ only in case, and one of each kind of bcrypt hash. Made by bcrypt itself, at a low cost.
pub(crate) const ACCOUNTS: [(&str, &str, &str); 6] = [
    ("Cust@example.com", "another one", "$2b$04$PvZuVl8PiPZcEDmN4zESZO3n8alzoYCD8PD0lBcMeR/PgNY1eH0qC"),
    ("cust@example.com", PASSWORD, "$2b$04$AToaJW/vWh2zQWC7Y6wtaOydfsLgRPdabeYPjiMiiQiEosDnyVGEC"),
    ("2a@example.com", PASSWORD, "$2a$04$8TtV/kpdQhTnMXGDtKCiTu8edJLBWFnlIB7g9lFEcDENsXfMMGdjm"),
    ("2y@example.com", PASSWORD, "$2y$04$D8Dg6rmIjZ/PhbsvHCzgMuFj2tEtqYDuWXHPOre9u0ks7BDPfgSOW"),
    // p, 80 times
    ("long@example.com", LONG, "$2b$04$eHm7Hlt51zMAMg57og016Oy8sksUk7tuB9HcwzTHZ/QaxZl8stAKC"),
    // a, 71 times, and é, of which the first byte is the last that counts
    ("cut@example.com", CUT, "$2b$04$gSMgAf1EXANGda36dKdpm.TuHt1v1VBn6ee5xjght66Q4WPfvVt0."),
];
pub(crate) const LONG: &str = "pppppppppppppppppppppppppppppppppppppppppppppppppppppppppppppppppppppppppppppppp";
pub(crate) const CUT: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaé";

/// What the Python service asks before it refreshes a token.
const PYTHON_FINDS_TOKEN: &str = "SELECT refresh_tokens.id, users.id FROM refresh_tokens JOIN users ON users.id = refresh_tokens.user_id
    WHERE refresh_tokens.jti = $1 AND users.email = $2 AND refresh_tokens.revoked = false AND refresh_tokens.expires_at > $3";
/// And what it writes.
pub(crate) const PYTHON_ADDS_USER: &str =
    "INSERT INTO users (email, password_hash, role) VALUES ($1, $2, 'customer') RETURNING id";
const PYTHON_ADDS_TOKEN: &str = "INSERT INTO refresh_tokens (user_id, jti, token_hash, expires_at, revoked)
    SELECT id, $2, $3, $4, false FROM users WHERE email = $1 RETURNING id";
const PYTHON_REVOKES_TOKEN: &str = "UPDATE refresh_tokens SET revoked = true WHERE jti = $1";

/// A statement as the Python service sends it. Not prepared: connections here live through the migration, and a
/// statement that was prepared before it fails once after it.
pub(crate) fn python(statement: &'static str) -> Query<'static, Postgres, PgArguments> {
    sqlx::query(statement).persistent(false)
}

/// Now as the Python service writes it: UTC, and no word of that.
pub(crate) fn now() -> NaiveDateTime {
    Clock::system().now().naive_utc()
}

/// Its database, with accounts.
pub(crate) async fn python_database(db: &PgPool) {
    sqlx::raw_sql(SCHEMA).execute(db).await.unwrap();
    sqlx::raw_sql("INSERT INTO alembic_version_auth VALUES ('20250823142355')").execute(db).await.unwrap();
    for (email, _, hash) in ACCOUNTS {
        python(PYTHON_ADDS_USER).bind(email).bind(hash).execute(db).await.unwrap();
    }
}

/// A token as it signs one.
pub(crate) fn python_token(email: &str, jti: &str, days: i64) -> (String, NaiveDateTime) {
    let expires_at = now() + TimeDelta::days(days);
    let claims = json!({"sub": email, "jti": jti, "exp": expires_at.and_utc().timestamp(), "type": "refresh"});
    (sign(&claims, SECRET), expires_at)
}

/// A token as it issues one, with the row.
pub(crate) async fn python_issues(db: &PgPool, email: &str, jti: &str, days: i64) -> String {
    let (token, expires_at) = python_token(email, jti, days);
    let insert = python(PYTHON_ADDS_TOKEN).bind(email).bind(jti).bind(sha256(&token)).bind(expires_at);
    assert_eq!(insert.execute(db).await.unwrap().rows_affected(), 1);
    token
}

pub(crate) async fn python_revokes(db: &PgPool, jti: &str) {
    assert_eq!(python(PYTHON_REVOKES_TOKEN).bind(jti).execute(db).await.unwrap().rows_affected(), 1);
}

/// Whether it would take a token.
pub(crate) async fn python_takes(db: &PgPool, token: &str) -> bool {
    let claims = claims(token);
    let (jti, subject) = (claims["jti"].as_str().unwrap(), claims["sub"].as_str().unwrap());
    let query = python(PYTHON_FINDS_TOKEN).bind(jti).bind(subject).bind(now());
    query.fetch_optional(db).await.unwrap().is_some()
}

/// The Python service's database with this service on it.
pub(crate) async fn take_over(db: PgPool, flags: &[&str]) -> TestApp {
    python_database(&db).await;
    migrate(&db).await.unwrap();
    TestApp::with(db, flags)
}

pub(crate) async fn migrate(db: &PgPool) -> Result<usize, SchemaError> {
    migrations::migrate(&mut db.acquire().await.unwrap()).await.map(|migrations| migrations.len())
}
