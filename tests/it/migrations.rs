//! Migrating the database of the Python service (`tests/data/python-schema.sql`) or an empty one: what there is then, and what
//! is refused and left alone.

use std::collections::BTreeSet;

use auth::db::migrations;
use auth::db::schema::SchemaError;
use serde_json::{Value, json};
use sqlx::{PgConnection, PgPool};

use crate::python_service::{SCHEMA, migrate, python, python_database, python_issues, take_over};
use crate::support::{TestApp, together};

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
