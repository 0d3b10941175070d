//! What handlers and commands are given: connections, clock, keys, password hasher, settings.

use std::sync::Arc;
use std::time::Duration;

use sqlx::PgPool;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::coalesce::Coalescer;
use crate::config::{Config, DatabaseSettings};
use crate::db;
use crate::db::batch::Batcher;
use crate::db::refresh_tokens::{Exchange, Rotation};
use crate::db::revocations::Revocations;
use crate::db::sessions::{NewSession, OpenedSession};
use crate::db::unanswered::Unanswered;
use crate::db::users::Lookup;
use crate::domain::tokens::{TokenHash, TokenPair, TokenSigner};
use crate::error::Error;
use crate::metrics::Metrics;
use crate::passwords::hasher::Hasher;

/// Batches of logins in the database at once, at most: some may wait for a row.
const LOGIN_WORKERS: u32 = 4;
/// Connections for refreshes, and batches of them in the database at once: two keep it busy.
pub const REFRESH_CONNECTIONS: u32 = 2;

/// The outcome of a refresh, as the metrics name it, and the answer.
type Decided = (&'static str, Result<TokenPair, Error>);

/// The running service, without its sockets. Cheap to clone.
#[derive(Clone, Debug)]
pub struct App(Arc<Parts>);

#[derive(Debug)]
pub struct Parts {
    pub config: Config,
    pub clock: Clock,
    pub db: PgPool,
    /// Of [`Parts::token_rotations`].
    pub refresh_db: PgPool,
    // Concurrent calls of each kind are batched into one statement.
    pub account_lookups: Batcher<Lookup>,
    pub session_inserts: Batcher<NewSession>,
    pub token_rotations: Batcher<Rotation>,
    /// Refreshes that are being decided, by the token.
    pub refreshes: Coalescer<TokenHash, Decided>,
    // Writes whose clients were not told of them.
    pub unanswered_refreshes: Unanswered<Exchange>,
    pub unanswered_logins: Unanswered<OpenedSession>,
    /// Sessions that ended, here and elsewhere.
    pub revocations: Revocations,
    pub tokens: TokenSigner,
    pub hasher: Hasher,
    pub metrics: Metrics,
    /// Wakes the mail worker of this replica: a mail is to be sent.
    pub mail_inserted: Notify,
    /// Cancelled when the process has been asked to stop, before it accepts no further connection.
    pub stopping: CancellationToken,
}

impl std::ops::Deref for App {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}

/// What the commands that need no [`App`] are given.
pub fn command_pool(database: &DatabaseSettings) -> PgPool {
    db::command_pool(&database.postgres_dsn.options)
}

impl App {
    /// Puts the service together. Connects to nothing yet; must be called on a runtime. Fails where the system gives no
    /// threads for hashing.
    pub fn new(config: Config, clock: Clock) -> std::io::Result<Self> {
        let database = &config.database.postgres_dsn.options;
        let db = db::pool(database, config.database.database_max_connections);
        let refresh_pool = db::refresh_pool(database, REFRESH_CONNECTIONS);
        Self::with_pools(config, clock, db, &refresh_pool)
    }

    /// As [`App::new`], on pools that exist.
    pub fn with_pools(config: Config, clock: Clock, db: PgPool, refresh_pool: &PgPool) -> std::io::Result<Self> {
        let metrics = Metrics::default();
        let hasher = Hasher::start(config.password.hasher(), &metrics)?;
        let tokens = TokenSigner::new(
            config.jwt_algorithm,
            &config.jwt_secret,
            &config.jwt_secret_previous,
            config.token_keys(),
            config.lifetimes(),
        );
        let revocations = Revocations::new(config.revocation_lifetime());
        let max_batch = config.batch_size;
        let account_lookups = Batcher::start(&db, LOGIN_WORKERS, max_batch);
        let session_inserts = Batcher::start(&db, LOGIN_WORKERS, max_batch);
        let workers = refresh_pool.options().get_max_connections();
        let token_rotations = Batcher::start(refresh_pool, workers, max_batch);
        let unanswered_refreshes = Unanswered::new(db.clone(), config.request_timeout);
        Ok(Self(Arc::new(Parts {
            config,
            clock,
            refreshes: Coalescer::default(),
            unanswered_refreshes,
            // A session without its tokens is of no use to the client, however short it waited.
            unanswered_logins: Unanswered::new(db.clone(), Duration::ZERO),
            db,
            refresh_db: refresh_pool.clone(),
            account_lookups,
            session_inserts,
            token_rotations,
            revocations,
            tokens,
            hasher,
            metrics,
            mail_inserted: Notify::new(),
            stopping: CancellationToken::new(),
        })))
    }
}
