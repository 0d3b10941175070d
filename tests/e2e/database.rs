//! A database for one test.

use std::thread;

use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, PgConnection};

use crate::forwarder::Forwarder;
use crate::stack::unique;

/// An empty database, dropped with the value.
pub(crate) struct Database {
    server: PgConnectOptions,
    name: String,
}

impl Database {
    pub(crate) async fn create() -> Self {
        let server: PgConnectOptions = std::env::var_os("DATABASE_URL")
            .and_then(|url| url.into_string().ok())
            .expect("DATABASE_URL is set: run the tests by scripts/test")
            .parse()
            .expect("DATABASE_URL is a PostgreSQL URL");
        let name = unique("database");
        execute(&server, format!("CREATE DATABASE {name}")).await;
        Self { server, name }
    }

    fn options(&self) -> PgConnectOptions {
        self.server.clone().database(&self.name)
    }

    pub(crate) async fn connect(&self) -> PgConnection {
        self.options().connect().await.expect("the database answers")
    }

    pub(crate) fn dsn(&self) -> String {
        dsn(&self.options())
    }

    /// Makes a role that can make tables here, and returns the DSN with its password. It is dropped with the database.
    pub(crate) async fn create_role(&self) -> String {
        let role = self.role();
        let statement = format!("CREATE ROLE {role} LOGIN PASSWORD 'former'; GRANT CREATE ON SCHEMA public TO {role}");
        execute(&self.options(), statement).await;
        dsn(&self.options().username(&role).password("former"))
    }

    /// Changes the role's password, ends its connections, and returns the DSN with the new password.
    pub(crate) async fn change_password(&self) -> String {
        let role = self.role();
        let statement = format!(
            "ALTER ROLE {role} PASSWORD 'new';
             SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = '{role}'"
        );
        execute(&self.options(), statement).await;
        dsn(&self.options().username(&role).password("new"))
    }

    fn role(&self) -> String {
        format!("{}_role", self.name)
    }

    /// A line to the database that can be cut, and the DSN that leads through it.
    pub(crate) async fn line(&self) -> (Forwarder, String) {
        let line = Forwarder::to(self.server.get_host(), self.server.get_port()).await;
        let dsn = dsn(&self.options().host("127.0.0.1").port(line.port()));
        (line, dsn)
    }
}

fn dsn(options: &PgConnectOptions) -> String {
    let mut url = options.to_url_lossy();
    url.set_query(None);
    url.to_string()
}

async fn execute(server: &PgConnectOptions, statement: String) {
    let mut connection = server.connect().await.expect("the server of DATABASE_URL answers");
    sqlx::raw_sql(AssertSqlSafe(statement))
        .execute(&mut connection)
        .await
        .expect("a database can be created and dropped");
    connection.close().await.ok();
}

impl Drop for Database {
    fn drop(&mut self) {
        let server = self.server.clone();
        let database = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name);
        let role = format!("DROP ROLE IF EXISTS {}", self.role());
        // A test may be at its end inside a runtime, where nothing can be waited for.
        let _ = thread::spawn(move || {
            tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime starts").block_on(
                async {
                    execute(&server, database).await;
                    execute(&server, role).await;
                },
            );
        })
        .join();
    }
}
