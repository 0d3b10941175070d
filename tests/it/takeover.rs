//! Taking over the database of the Python service: its recorded schema (`tests/data/python-schema.sql`), with rows as it
//! leaves them, is migrated and served; and that service goes on reading and writing it.

use std::collections::BTreeSet;

use auth::clock::Clock;
use auth::db::migrations;
use auth::db::schema::SchemaError;
use axum::http::{Method, StatusCode};
use chrono::{NaiveDateTime, TimeDelta};
use serde_json::{Value, json};
use sqlx::postgres::PgArguments;
use sqlx::query::Query;
use sqlx::{PgConnection, PgPool, Postgres, Row};

use crate::support::{PASSWORD, SECRET, TestApp, claims, count, pair, sha256, sign, together};

const SCHEMA: &str = include_str!("../data/python-schema.sql");

/// Two accounts that differ only in case, and one of each kind of bcrypt hash. Made by bcrypt itself, at a low cost.
const ACCOUNTS: [(&str, &str, &str); 6] = [
    ("Cust@example.com", "another one", "$2b$04$PvZuVl8PiPZcEDmN4zESZO3n8alzoYCD8PD0lBcMeR/PgNY1eH0qC"),
    ("cust@example.com", PASSWORD, "$2b$04$AToaJW/vWh2zQWC7Y6wtaOydfsLgRPdabeYPjiMiiQiEosDnyVGEC"),
    ("2a@example.com", PASSWORD, "$2a$04$8TtV/kpdQhTnMXGDtKCiTu8edJLBWFnlIB7g9lFEcDENsXfMMGdjm"),
    ("2y@example.com", PASSWORD, "$2y$04$D8Dg6rmIjZ/PhbsvHCzgMuFj2tEtqYDuWXHPOre9u0ks7BDPfgSOW"),
    // p, 80 times
    ("long@example.com", LONG, "$2b$04$eHm7Hlt51zMAMg57og016Oy8sksUk7tuB9HcwzTHZ/QaxZl8stAKC"),
    // a, 71 times, and é, of which the first byte is the last that counts
    ("cut@example.com", CUT, "$2b$04$gSMgAf1EXANGda36dKdpm.TuHt1v1VBn6ee5xjght66Q4WPfvVt0."),
];
const LONG: &str = "pppppppppppppppppppppppppppppppppppppppppppppppppppppppppppppppppppppppppppppppp";
const CUT: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaé";

/// What the Python service asks before it refreshes a token.
const PYTHON_FINDS_TOKEN: &str = "SELECT refresh_tokens.id, users.id FROM refresh_tokens JOIN users ON users.id = refresh_tokens.user_id
    WHERE refresh_tokens.jti = $1 AND users.email = $2 AND refresh_tokens.revoked = false AND refresh_tokens.expires_at > $3";
/// And what it writes.
const PYTHON_ADDS_USER: &str =
    "INSERT INTO users (email, password_hash, role) VALUES ($1, $2, 'customer') RETURNING id";
const PYTHON_ADDS_TOKEN: &str = "INSERT INTO refresh_tokens (user_id, jti, token_hash, expires_at, revoked)
    SELECT id, $2, $3, $4, false FROM users WHERE email = $1 RETURNING id";
const PYTHON_REVOKES_TOKEN: &str = "UPDATE refresh_tokens SET revoked = true WHERE jti = $1";

/// A statement as the Python service sends it. Not prepared: connections here live through the migration, and a
/// statement that was prepared before it fails once after it.
fn python(statement: &'static str) -> Query<'static, Postgres, PgArguments> {
    sqlx::query(statement).persistent(false)
}

/// Now as the Python service writes it: UTC, and no word of that.
fn now() -> NaiveDateTime {
    Clock::system().now().naive_utc()
}

/// Its database, with accounts.
async fn python_database(db: &PgPool) {
    sqlx::raw_sql(SCHEMA).execute(db).await.unwrap();
    sqlx::raw_sql("INSERT INTO alembic_version_auth VALUES ('20250823142355')").execute(db).await.unwrap();
    for (email, _, hash) in ACCOUNTS {
        python(PYTHON_ADDS_USER).bind(email).bind(hash).execute(db).await.unwrap();
    }
}

/// A token as it signs one.
fn python_token(email: &str, jti: &str, days: i64) -> (String, NaiveDateTime) {
    let expires_at = now() + TimeDelta::days(days);
    let claims = json!({"sub": email, "jti": jti, "exp": expires_at.and_utc().timestamp(), "type": "refresh"});
    (sign(&claims, SECRET), expires_at)
}

/// A token as it issues one, with the row.
async fn python_issues(db: &PgPool, email: &str, jti: &str, days: i64) -> String {
    let (token, expires_at) = python_token(email, jti, days);
    let insert = python(PYTHON_ADDS_TOKEN).bind(email).bind(jti).bind(sha256(&token)).bind(expires_at);
    assert_eq!(insert.execute(db).await.unwrap().rows_affected(), 1);
    token
}

async fn python_revokes(db: &PgPool, jti: &str) {
    assert_eq!(python(PYTHON_REVOKES_TOKEN).bind(jti).execute(db).await.unwrap().rows_affected(), 1);
}

/// Whether it would take a token.
async fn python_takes(db: &PgPool, token: &str) -> bool {
    let claims = claims(token);
    let (jti, subject) = (claims["jti"].as_str().unwrap(), claims["sub"].as_str().unwrap());
    let query = python(PYTHON_FINDS_TOKEN).bind(jti).bind(subject).bind(now());
    query.fetch_optional(db).await.unwrap().is_some()
}

/// The Python service's database with this service on it.
async fn take_over(db: PgPool, flags: &[&str]) -> TestApp {
    python_database(&db).await;
    migrate(&db).await.unwrap();
    TestApp::with(db, flags)
}

async fn migrate(db: &PgPool) -> Result<usize, SchemaError> {
    migrations::migrate(&mut db.acquire().await.unwrap()).await.map(|migrations| migrations.len())
}

async fn value(connection: &mut PgConnection, query: &'static str) -> Value {
    sqlx::query_scalar(query).fetch_one(connection).await.unwrap()
}

/// How many migrations there are.
fn migration_count() -> usize {
    auth::db::MIGRATOR.iter().count()
}

/// All there is in the schema: tables, indexes and sequences with their columns, defaults and constraints.
const CATALOGUE: &str = "SELECT jsonb_build_object(
    'relations', (
        SELECT jsonb_object_agg(relname, relkind) FROM pg_class WHERE relnamespace = 'public'::regnamespace
    ),
    'columns', (
        SELECT jsonb_object_agg(
            attrelid::regclass || '.' || attname,
            jsonb_build_array(format_type(atttypid, atttypmod), attnotnull, pg_get_expr(adbin, adrelid))
        )
        FROM pg_attribute LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
        JOIN pg_class ON pg_class.oid = attrelid AND relkind = 'r' AND relnamespace = 'public'::regnamespace
        WHERE attnum > 0 AND NOT attisdropped
    ),
    'constraints', (
        SELECT jsonb_object_agg(conname, conrelid::regclass || ' ' || pg_get_constraintdef(oid))
        FROM pg_constraint WHERE connamespace = 'public'::regnamespace
    ),
    'sequences', (SELECT jsonb_object_agg(sequencename, data_type) FROM pg_sequences WHERE schemaname = 'public')
)";

const ROWS: &str = "SELECT jsonb_build_object(
    'users', (SELECT jsonb_agg(u ORDER BY id) FROM (
        SELECT id, email, password_hash, role, created_at, updated_at FROM users
    ) AS u),
    'refresh_tokens', (SELECT jsonb_agg(t ORDER BY id) FROM (
        SELECT id, user_id, jti, token_hash, expires_at, revoked, created_at FROM refresh_tokens
    ) AS t),
    'alembic', (SELECT jsonb_agg(version_num) FROM alembic_version_auth)
)";

#[sqlx::test(migrations = false)]
async fn adoption_keeps_names_and_rows_and_widens_ids(db: PgPool) {
    python_database(&db).await;
    python_issues(&db, "cust@example.com", "a1", 30).await;
    let connection = &mut *db.acquire().await.unwrap();
    let (catalogue, rows) = (value(connection, CATALOGUE).await, value(connection, ROWS).await);
    assert_eq!(rows["alembic"], json!(["20250823142355"]));
    assert_eq!(migrations::migrate(connection).await.unwrap().len(), migration_count());
    let (adopted, kept) = (value(connection, CATALOGUE).await, value(connection, ROWS).await);
    assert_eq!(kept, rows);
    for part in ["relations", "constraints"] {
        for (name, what) in catalogue[part].as_object().unwrap() {
            assert_eq!(&adopted[part][name], what, "{name}");
        }
    }
    for (name, before) in catalogue["columns"].as_object().unwrap() {
        let mut expected = before.clone();
        if ["users.id", "refresh_tokens.id", "refresh_tokens.user_id"].contains(&name.as_str()) {
            expected[0] = json!("bigint");
        }
        assert_eq!(adopted["columns"][name], expected, "{name}");
    }
    assert_eq!(adopted["sequences"], json!({"users_id_seq": "bigint", "refresh_tokens_id_seq": "bigint"}));
    // Its inserts know nothing of the columns that are new.
    for (name, column) in adopted["columns"].as_object().unwrap() {
        let inherited = name.starts_with("users.") || name.starts_with("refresh_tokens.");
        let added = inherited && catalogue["columns"].get(name).is_none();
        assert!(!added || column[1] == json!(false), "{name} may not be required");
    }
}

#[sqlx::test(migrations = false)]
async fn accounts_that_differ_in_case_each_sign_in_with_their_own_spelling(db: PgPool) {
    let app = take_over(db, &[]).await;
    for (email, password, _) in &ACCOUNTS[..2] {
        let tokens = pair(&app.try_login(email, password).await);
        assert_eq!(claims(&tokens.access)["sub"], *email);
        assert_eq!(app.get_as("/users/me", &tokens.access).await.json()["email"], *email);
        assert_eq!(claims(&pair(&app.refresh(&tokens.refresh).await).refresh)["sub"], *email);
    }
    // The password of one opens the other in no spelling; a third spelling means the one in lower case.
    app.try_login("Cust@example.com", PASSWORD).await.assert_detail(401, "Invalid credentials");
    app.try_login("cust@example.com", "another one").await.assert_detail(401, "Invalid credentials");
    let tokens = pair(&app.try_login("CUST@Example.com", PASSWORD).await);
    assert_eq!(claims(&tokens.access)["sub"], "cust@example.com");
    let answer = app.post("/auth/register", json!({"email": "CUST@example.com", "password": PASSWORD})).await;
    answer.assert_detail(409, "Email already registered");
    // A password is changed for the one who asks.
    let tokens = pair(&app.try_login("Cust@example.com", "another one").await);
    let body = json!({"current_password": "another one", "new_password": "yet another"});
    pair(&app.request_as(Method::POST, "/auth/password", &tokens.access, Some(body)).await);
    pair(&app.try_login("Cust@example.com", "yet another").await);
    pair(&app.try_login("cust@example.com", PASSWORD).await);
}

#[sqlx::test(migrations = false)]
async fn a_bcrypt_hash_verifies_by_72_bytes_and_is_replaced_at_login(db: PgPool) {
    let app = take_over(db, &[]).await;
    let (cut, long) = (&CUT[..71], &LONG[..71]);
    for (email, wrong) in [("long@example.com", long), ("cut@example.com", cut), ("2y@example.com", "P@ssw0rd")] {
        app.try_login(email, wrong).await.assert_detail(401, "Invalid credentials");
    }
    for (email, password, _) in ACCOUNTS {
        // What bcrypt does not count may be anything.
        let tried = match password {
            LONG => LONG[..72].to_owned(),
            CUT => CUT.replace('é', "ê, and more"),
            _ => password.to_owned(),
        };
        pair(&app.try_login(email, &tried).await);
        let query = "SELECT password_hash, updated_at > created_at FROM users WHERE email = $1";
        let (hash, touched): (String, bool) = sqlx::query_as(query).bind(email).fetch_one(&app.db).await.unwrap();
        assert!(hash.starts_with("$argon2id$v=19$m=7168,t=5,p=1$") && touched, "{email} {hash}");
        // From then on all of the password counts.
        pair(&app.try_login(email, &tried).await);
        app.try_login(email, &format!("{tried}x")).await.assert_detail(401, "Invalid credentials");
    }
}

#[sqlx::test(migrations = false)]
async fn five_logins_at_once_replace_a_hash_once_and_all_succeed(db: PgPool) {
    let app = take_over(db, &[]).await;
    sqlx::raw_sql(
        "CREATE TABLE replaced (hash text);
         CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS
             'BEGIN INSERT INTO replaced VALUES (NEW.password_hash); RETURN NEW; END';
         CREATE TRIGGER note AFTER UPDATE OF password_hash ON users FOR EACH ROW EXECUTE FUNCTION note()",
    )
    .execute(&app.db)
    .await
    .unwrap();
    let answers = together((0..5).map(|_| {
        let app = app.clone();
        async move { app.try_login("cust@example.com", PASSWORD).await }
    }))
    .await;
    assert_eq!(count(&answers, 200), 5);
    assert_eq!(app.value::<i64>("SELECT count(*) FROM replaced").await, 1);
    assert_eq!(app.value::<i64>("SELECT count(*) FROM sessions WHERE ended_at IS NULL").await, 5);
    for answer in answers {
        assert_eq!(app.refresh(&pair(&answer).refresh).await.status, 200);
    }
}

#[sqlx::test(migrations = false)]
async fn with_rehashing_off_no_hash_changes(db: PgPool) {
    let app = take_over(db, &["--password-rehash=off"]).await;
    let before = app.rows().await["users"].clone();
    for (email, password, _) in ACCOUNTS {
        pair(&app.try_login(email, password).await);
        pair(&app.try_login(email, password).await);
        app.try_login(email, "wrong").await.assert_detail(401, "Invalid credentials");
    }
    assert_eq!(app.rows().await["users"], before);
}

#[sqlx::test(migrations = false)]
async fn a_hash_that_is_none_is_a_401_like_any_other(db: PgPool) {
    let app = take_over(db, &[]).await;
    let whole = ACCOUNTS[1].2;
    let odd = [
        "",
        " ",
        "!",
        PASSWORD,
        "$2b$",
        "$2b$04$",
        &whole[..59],
        &format!("{whole}x"),
        &whole.replace("$2b$", "$2x$"),
        &whole.replace("$04$", "$99$"),
        &whole.replace("$04$", "$31$"),
        &whole.replace("$04$", "$4$"),
        "$1$c2FsdA$0123456789abcdef",
        "{SSHA}c2FsdA==",
        "pbkdf2:sha256:1$salt$00",
        "$argon2id$",
        "$argon2id$v=19$m=7168",
        "$argon2id$v=19$m=4194304,t=5,p=1$c2FsdHNhbHQ$c2FsdHNhbHRzYWx0c2FsdA",
        "5f4dcc3b5aa765d61d8327deb882cf99",
        "\u{e9}\u{1F600}",
    ];
    for (at, hash) in odd.into_iter().enumerate() {
        let email = format!("odd{at}@example.com");
        app.insert_user(&email, hash).await;
        for password in [PASSWORD, hash, ""] {
            app.try_login(&email, password).await.assert_detail(401, "Invalid credentials");
        }
        let query = "SELECT password_hash FROM users WHERE email = $1";
        let kept: String = sqlx::query_scalar(query).bind(email).fetch_one(&app.db).await.unwrap();
        assert_eq!(kept, hash);
    }
    assert_eq!(app.value::<i64>("SELECT count(*) FROM sessions").await, 0);
}

#[sqlx::test(migrations = false)]
async fn tokens_from_before_the_takeover_go_on(db: PgPool) {
    python_database(&db).await;
    let mut tokens = Vec::new();
    for (jti, days) in [("refreshed", 30), ("loggedout", 30), ("revoked", 30), ("expired", -1), ("other", 30)] {
        tokens.push(python_issues(&db, "Cust@example.com", jti, days).await);
    }
    let [refreshed, logged_out, revoked, expired, other] = tokens.try_into().unwrap();
    python_revokes(&db, "revoked").await;
    migrate(&db).await.unwrap();
    let app = TestApp::new(db);
    let rows = app.rows().await;
    revoked_without_alarm(&app, &revoked).await;
    app.refresh(&expired).await.assert_refused("Invalid refresh token", Some("expired"));
    // The row alone says it, too.
    sqlx::query("UPDATE refresh_tokens SET expires_at = $1 WHERE jti = 'other'")
        .bind(now())
        .execute(&app.db)
        .await
        .unwrap();
    app.refresh(&other).await.assert_refused("Refresh token not valid", None);
    // Genuine, but not the token that the row is of.
    let (forged, _) = python_token("Cust@example.com", "refreshed", 31);
    app.refresh(&forged).await.assert_refused("Refresh token not valid", None);
    let (stranger, _) = python_token("cust@example.com", "refreshed", 30);
    app.refresh(&stranger).await.assert_refused("Refresh token not valid", None);
    assert_eq!(app.rows().await["sessions"], rows["sessions"]);

    let successor = pair(&app.refresh(&refreshed).await);
    assert_eq!(app.value::<i64>("SELECT count(*) FROM sessions").await, 1);
    assert_eq!(claims(&successor.refresh)["sub"], "Cust@example.com");
    assert!(!python_takes(&app.db, &refreshed).await && python_takes(&app.db, &successor.refresh).await);
    app.refresh(&refreshed).await.assert_refused("Refresh token not valid", None);

    for _ in 0..2 {
        assert_eq!(app.logout(&logged_out).await.status, StatusCode::OK);
    }
    assert!(!python_takes(&app.db, &logged_out).await);
    revoked_without_alarm(&app, &logged_out).await;
}

/// Refused, and taken for no theft.
async fn revoked_without_alarm(app: &TestApp, token: &str) {
    let sessions = app.rows().await["sessions"].clone();
    app.advance(60);
    app.refresh(token).await.assert_refused("Refresh token not valid", None);
    assert_eq!(app.rows().await["sessions"], sessions);
    assert_eq!(app.app.metrics.replays_detected.get(), 0);
}

#[sqlx::test(migrations = false)]
async fn what_is_issued_here_works_there(db: PgPool) {
    let app = take_over(db, &[]).await;
    let first = pair(&app.try_login("Cust@example.com", "another one").await);
    assert!(python_takes(&app.db, &first.refresh).await);
    let second = pair(&app.refresh(&first.refresh).await);
    assert!(!python_takes(&app.db, &first.refresh).await && python_takes(&app.db, &second.refresh).await);
    assert_eq!(app.logout(&second.refresh).await.status, 200);
    assert!(!python_takes(&app.db, &second.refresh).await);
    // It compares no hash, but one is there to compare.
    let query = "SELECT count(*) FROM refresh_tokens WHERE token_hash = $1";
    let found: i64 = sqlx::query_scalar(query).bind(sha256(&second.refresh)).fetch_one(&app.db).await.unwrap();
    assert_eq!(found, 1);
    app.register("New@Example.com", "customer").await;
    let third = app.login("new@example.com").await;
    assert!(python_takes(&app.db, &third.refresh).await);
}

#[sqlx::test(migrations = false)]
async fn what_the_python_service_writes_after_the_takeover_works_here(db: PgPool) {
    let app = take_over(db, &[]).await;
    let last: i64 = app.value("SELECT max(id) FROM users").await;
    let insert = python(PYTHON_ADDS_USER).bind("Late@example.com").bind(ACCOUNTS[1].2);
    assert_eq!(insert.fetch_one(&app.db).await.unwrap().get::<i64, _>("id"), last + 1);
    let tokens = pair(&app.try_login("late@example.com", PASSWORD).await);
    assert_eq!(claims(&tokens.access)["sub"], "Late@example.com");
    let token = python_issues(&app.db, "Late@example.com", "late", 30).await;
    let successor = pair(&app.refresh(&token).await);

    // It rotates a token that was issued here: the old one is revoked, the new one has no session yet.
    python_revokes(&app.db, claims(&successor.refresh)["jti"].as_str().unwrap()).await;
    let rotated = python_issues(&app.db, "Late@example.com", "rotated", 30).await;
    revoked_without_alarm(&app, &successor.refresh).await;
    let successor = pair(&app.refresh(&rotated).await);
    assert_eq!(app.get_as("/users/me", &successor.access).await.json()["email"], "Late@example.com");

    // And logs one out.
    python_revokes(&app.db, claims(&successor.refresh)["jti"].as_str().unwrap()).await;
    revoked_without_alarm(&app, &successor.refresh).await;
    let answer = app.post("/auth/register", json!({"email": "late@example.com", "password": PASSWORD})).await;
    answer.assert_detail(409, "Email already registered");
}

/// Makes the Python service's database, changes it, tries to migrate it, and takes everything back. Nothing must have
/// been touched; the answer is the sentence.
async fn refusal(db: &PgPool, change: String) -> String {
    let connection = &mut *db.acquire().await.unwrap();
    sqlx::raw_sql("BEGIN").execute(&mut *connection).await.unwrap();
    sqlx::raw_sql(SCHEMA).execute(&mut *connection).await.unwrap();
    sqlx::raw_sql(sqlx::AssertSqlSafe(change.clone())).execute(&mut *connection).await.unwrap();
    let before = value(connection, CATALOGUE).await;
    let dry = migrations::pending(connection).await.map(|_| ()).unwrap_err().to_string();
    let error = match migrations::migrate(connection).await {
        Err(error @ SchemaError::Foreign(_)) => error.to_string(),
        outcome => panic!("{change}: {outcome:?}"),
    };
    assert_eq!(dry, error);
    assert_eq!(value(connection, CATALOGUE).await, before, "{change}");
    assert!(before["relations"].get("_sqlx_migrations_auth").is_none());
    sqlx::raw_sql("ROLLBACK; RESET ROLE").execute(&mut *connection).await.unwrap();
    error.strip_prefix("refusing to touch this database: ").unwrap().to_owned()
}

#[sqlx::test(migrations = false)]
async fn another_database_is_refused_with_a_sentence_before_anything_is_changed(db: PgPool) {
    for (change, sentence) in [
        ("ALTER TABLE users DROP COLUMN role", "its table `users` has no column `role`"),
        (
            "DROP TABLE refresh_tokens; ALTER TABLE users ALTER id DROP DEFAULT, ALTER id TYPE text",
            "`users.id` is text where integer or bigint is expected",
        ),
        (
            "ALTER TABLE refresh_tokens ALTER expires_at TYPE timestamptz",
            "`refresh_tokens.expires_at` is timestamp with time zone where timestamp without time zone is expected",
        ),
        (
            "ALTER TABLE users ALTER password_hash TYPE varchar(60)",
            "`users.password_hash` holds fewer than 255 characters",
        ),
        (
            "ALTER TABLE users ADD name text NOT NULL",
            "`users.name` must be given on insert, and this service does not know it",
        ),
        ("ALTER TABLE users DROP CONSTRAINT users_email_key", "its table `users` lacks `users_email_key`"),
        (
            "ALTER TABLE refresh_tokens RENAME CONSTRAINT refresh_tokens_jti_key TO uq_jti",
            "its table `refresh_tokens` lacks `refresh_tokens_jti_key`",
        ),
        ("ALTER SEQUENCE users_id_seq RENAME TO user_ids", "its table `users` lacks `users_id_seq`"),
        ("DROP TABLE users CASCADE; CREATE VIEW users AS SELECT 1 AS id", "its table `users` has no column `email`"),
        ("CREATE TABLE sessions (id text)", "it already has a `sessions` that is not this service's"),
        (
            "CREATE ROLE takeover_owner; CREATE ROLE takeover_guest; ALTER TABLE users OWNER TO takeover_owner;
             SET LOCAL ROLE takeover_guest",
            "its table `users` belongs to the role `takeover_owner`, and only that role may alter it",
        ),
    ] {
        assert_eq!(refusal(&db, change.to_owned()).await, sentence);
    }
    // What may differ: longer texts, columns that have defaults, wide ids.
    python_database(&db).await;
    let harmless =
        "ALTER TABLE users ALTER email TYPE varchar(320), ADD note text, ADD seen boolean NOT NULL DEFAULT false;
        ALTER TABLE users ALTER id TYPE bigint";
    sqlx::raw_sql(harmless).execute(&db).await.unwrap();
    assert_eq!(migrate(&db).await.unwrap(), migration_count());
    TestApp::new(db).login("cust@example.com").await;
}

#[sqlx::test(migrations = false)]
async fn whatever_the_migrations_make_must_not_be_there_before(db: PgPool) {
    let connection = &mut *db.acquire().await.unwrap();
    sqlx::raw_sql(SCHEMA).execute(&mut *connection).await.unwrap();
    let before = value(connection, CATALOGUE).await;
    migrations::migrate(connection).await.unwrap();
    let after = value(connection, CATALOGUE).await;
    sqlx::raw_sql("DROP SCHEMA public CASCADE; CREATE SCHEMA public").execute(&mut *connection).await.unwrap();
    let names = |catalogue: &Value, part: &str| -> BTreeSet<String> {
        catalogue[part].as_object().unwrap().keys().cloned().collect()
    };
    let mut made = 0;
    for name in &names(&after, "relations") - &names(&before, "relations") {
        if !name.starts_with("_sqlx_migrations_auth") {
            let sentence = refusal(&db, format!("CREATE SEQUENCE {name}")).await;
            assert_eq!(sentence, format!("it already has a `{name}` that is not this service's"));
            made += 1;
        }
    }
    for name in &names(&after, "columns") - &names(&before, "columns") {
        if let Some(column) = name.strip_prefix("refresh_tokens.") {
            let sentence = refusal(&db, format!("ALTER TABLE refresh_tokens ADD {column} text")).await;
            assert_eq!(sentence, format!("its table `refresh_tokens` already has a column `{column}`"));
            made += 1;
        }
    }
    assert!(made >= 12, "{made}");
}

#[sqlx::test(migrations = false)]
async fn a_dry_run_lists_what_is_to_be_done_and_does_nothing(db: PgPool) {
    python_database(&db).await;
    let connection = &mut *db.acquire().await.unwrap();
    let before = (value(connection, CATALOGUE).await, value(connection, ROWS).await);
    let pending: Vec<String> =
        migrations::pending(connection).await.unwrap().into_iter().map(|migration| migration.description).collect();
    assert_eq!(pending.first().map(String::as_str), Some("adopt users and refresh tokens"));
    assert_eq!((value(connection, CATALOGUE).await, value(connection, ROWS).await), before);
    let error = migrations::require_migrated(connection).await.unwrap_err();
    let sentence =
        format!("the schema is not up to date: {} migration(s) pending; run `auth migrate`", migration_count());
    assert_eq!(error.to_string(), sentence);
    let applied: Vec<String> =
        migrations::migrate(connection).await.unwrap().into_iter().map(|migration| migration.description).collect();
    assert_eq!(applied, pending);
    assert!(migrations::pending(connection).await.unwrap().is_empty());
    migrations::require_migrated(connection).await.unwrap();
}

#[sqlx::test(migrations = false)]
async fn migrating_twice_changes_nothing(db: PgPool) {
    let app = take_over(db, &[]).await;
    app.login("cust@example.com").await;
    let connection = &mut *app.db.acquire().await.unwrap();
    let (catalogue, rows) = (value(connection, CATALOGUE).await, app.rows().await);
    assert!(migrations::migrate(connection).await.unwrap().is_empty());
    assert_eq!((value(connection, CATALOGUE).await, app.rows().await), (catalogue, rows));
}

#[sqlx::test(migrations = false)]
async fn replicas_that_start_together_migrate_once(db: PgPool) {
    python_database(&db).await;
    let outcomes = together((0..4).map(|_| {
        let db = db.clone();
        async move { migrate(&db).await.unwrap() }
    }))
    .await;
    assert_eq!((outcomes.iter().sum::<usize>(), outcomes.iter().max()), (migration_count(), Some(&migration_count())));
    // None of them holds the lock any more.
    let locks: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM pg_locks JOIN pg_database ON pg_database.oid = database
         WHERE locktype = 'advisory' AND datname = current_database()",
    )
    .fetch_one(&db)
    .await
    .unwrap();
    assert_eq!(locks, 0);
    TestApp::new(db).login("cust@example.com").await;
}

#[sqlx::test(migrations = false)]
async fn an_empty_database_gets_the_same_tables(db: PgPool) {
    let connection = &mut *db.acquire().await.unwrap();
    assert_eq!(migrations::migrate(connection).await.unwrap().len(), migration_count());
    let fresh = value(connection, CATALOGUE).await;
    let version = value(connection, "SELECT jsonb_agg(version_num) FROM alembic_version_auth").await;
    assert_eq!(version, json!(["20250823142355"]));
    sqlx::raw_sql("DROP SCHEMA public CASCADE; CREATE SCHEMA public").execute(&mut *connection).await.unwrap();
    sqlx::raw_sql(SCHEMA).execute(&mut *connection).await.unwrap();
    migrations::migrate(connection).await.unwrap();
    let adopted = value(connection, CATALOGUE).await;
    assert_eq!(fresh, adopted);
}

#[sqlx::test(migrations = false)]
async fn an_old_schema_without_a_version_is_not_given_one(db: PgPool) {
    python_database(&db).await;
    sqlx::raw_sql("DROP TABLE alembic_version_auth").execute(&db).await.unwrap();
    assert_eq!(migrate(&db).await.unwrap(), migration_count());
    let known: bool =
        sqlx::query_scalar("SELECT to_regclass('alembic_version_auth') IS NOT NULL").fetch_one(&db).await.unwrap();
    assert!(!known);
}

/// That tables of ours in `public` are not made again in a schema that comes before it, whichever command asks.
async fn stays_out_of_an_earlier_schema(db: &PgPool, table: &str) {
    let connection = &mut *db.acquire().await.unwrap();
    // The search path is "$user", public.
    let role: String = sqlx::query_scalar("SELECT current_user::text").fetch_one(&mut *connection).await.unwrap();
    let create = format!("CREATE SCHEMA {role}");
    sqlx::raw_sql(sqlx::AssertSqlSafe(create)).execute(&mut *connection).await.unwrap();
    let sentence = format!(
        "`{table}` is in the schema `public`, but `{role}` comes first in the search path; \
         put `public` first, for example by `ALTER ROLE ... SET search_path`"
    );
    assert_eq!(migrations::migrate(connection).await.unwrap_err().to_string(), sentence);
    assert_eq!(migrations::pending(connection).await.unwrap_err().to_string(), sentence);
    assert_eq!(migrations::require_migrated(connection).await.unwrap_err().to_string(), sentence);
    let made = "SELECT count(*) FROM pg_class WHERE relnamespace = current_schema()::regnamespace";
    assert_eq!(sqlx::query_scalar::<_, i64>(made).fetch_one(&mut *connection).await.unwrap(), 0);
}

#[sqlx::test(migrations = false)]
async fn a_schema_that_comes_to_be_first_stops_a_restart(db: PgPool) {
    migrate(&db).await.unwrap();
    stays_out_of_an_earlier_schema(&db, "_sqlx_migrations_auth").await;
}

#[sqlx::test(migrations = false)]
async fn a_schema_that_comes_before_the_python_services_stops_the_takeover(db: PgPool) {
    python_database(&db).await;
    stays_out_of_an_earlier_schema(&db, "alembic_version_auth").await;
}

#[sqlx::test(migrations = false)]
async fn tables_of_the_same_names_in_a_later_schema_are_another_services(db: PgPool) {
    sqlx::raw_sql(
        r#"CREATE TABLE public.users (name text); CREATE TABLE public.refresh_tokens (token text);
           CREATE TABLE public.sessions (id text); CREATE SCHEMA "Shop's auth""#,
    )
    .execute(&db)
    .await
    .unwrap();
    let mut stranger = db.begin().await.unwrap();
    sqlx::raw_sql("LOCK TABLE public.users; LOCK TABLE public.refresh_tokens").execute(&mut *stranger).await.unwrap();
    let connection = &mut *db.acquire().await.unwrap();
    sqlx::raw_sql(r#"SET search_path = "Shop's auth", public"#).execute(&mut *connection).await.unwrap();
    // It would wait for the stranger for a minute.
    assert_eq!(migrations::migrate(connection).await.unwrap().len(), migration_count());
    assert!(migrations::migrate(connection).await.unwrap().is_empty());
    let emails = "SELECT coalesce(jsonb_agg(email), '[]') FROM users";
    assert_eq!(value(connection, emails).await, json!([]));
}

#[sqlx::test(migrations = false)]
async fn without_a_schema_there_is_a_sentence(db: PgPool) {
    let connection = &mut *db.acquire().await.unwrap();
    sqlx::raw_sql("SET search_path = nowhere").execute(&mut *connection).await.unwrap();
    let error = migrations::migrate(connection).await.unwrap_err().to_string();
    assert!(error.starts_with("no schema of the search path exists"), "{error}");
}

#[sqlx::test(migrations = false)]
async fn where_nothing_is_pending_no_right_to_change_the_schema_is_needed(db: PgPool) {
    migrate(&db).await.unwrap();
    let connection = &mut *db.acquire().await.unwrap();
    // A standby.
    sqlx::raw_sql("SET default_transaction_read_only = on").execute(&mut *connection).await.unwrap();
    assert!(migrations::migrate(connection).await.unwrap().is_empty());
    sqlx::raw_sql("RESET default_transaction_read_only").execute(&mut *connection).await.unwrap();
    // A role that may read and write rows only.
    let mut transaction = db.begin().await.unwrap();
    sqlx::raw_sql(
        "CREATE ROLE takeover_writer; REVOKE CREATE ON SCHEMA public FROM public;
         GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO takeover_writer;
         SET LOCAL ROLE takeover_writer",
    )
    .execute(&mut *transaction)
    .await
    .unwrap();
    assert!(migrations::migrate(&mut transaction).await.unwrap().is_empty());
    migrations::require_migrated(&mut transaction).await.unwrap();
}

/// The Python service holds locks for as long as its transactions last, on the two tables now in this order, now in
/// that. A migration that held one and waited for the other would stop it, and PostgreSQL end that at its expense.
async fn gives_way(db: PgPool, first: &'static str, second: &'static str, tried: &'static str) {
    python_database(&db).await;
    python_issues(&db, "cust@example.com", "a1", 30).await;
    let app = TestApp::new(db);
    let mut transaction = app.db.begin().await.unwrap();
    python(first).execute(&mut *transaction).await.unwrap();
    let migrating = tokio::spawn({
        let db = app.db.clone();
        async move { migrate(&db).await.unwrap() }
    });
    while !app.value::<bool>(tried).await {}
    python(second).execute(&mut *transaction).await.unwrap();
    // Others are not kept waiting for the transaction to end.
    assert_eq!(app.value::<i64>("SELECT count(*) FROM users JOIN refresh_tokens ON user_id = users.id").await, 1);
    assert!(!migrating.is_finished());
    transaction.commit().await.unwrap();
    assert_eq!(migrating.await.unwrap(), migration_count());
}

const FIRST_USERS: &str = "SELECT id FROM users WHERE email = 'cust@example.com'";
const FIRST_TOKENS: &str = "UPDATE refresh_tokens SET revoked = true";

#[sqlx::test(migrations = false)]
async fn a_migration_gives_way_to_a_transaction_that_goes_from_tokens_to_users(db: PgPool) {
    let waits = "SELECT EXISTS (SELECT FROM pg_stat_activity
        WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE 'LOCK TABLE refresh_tokens %')";
    gives_way(db, FIRST_TOKENS, FIRST_USERS, waits).await;
}

#[sqlx::test(migrations = false)]
async fn a_migration_gives_way_to_a_transaction_that_goes_from_users_to_tokens(db: PgPool) {
    let let_go_or_waits = "SELECT EXISTS (SELECT FROM pg_stat_activity
        WHERE datname = current_database() AND (state LIKE 'idle%' AND query LIKE 'ROLLBACK%'
            OR wait_event_type = 'Lock' AND query LIKE 'LOCK TABLE users %'))";
    gives_way(db, FIRST_USERS, FIRST_TOKENS, let_go_or_waits).await;
}
