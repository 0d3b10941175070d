//! `auth serve`.

use std::mem;
use std::sync::Arc;

use tokio::task::JoinHandle;

use super::CliError;
use crate::app::App;
use crate::clock::Clock;
use crate::config::{Config, DatabaseSettings, Environment, Given};
use crate::mail::Mailer;
use crate::service::{cleanup, clock, credentials, mail, migrate, revocations, settle};
use crate::{background, http, telemetry};

pub(super) async fn run(settings: &Given<Config>, no_migrate: bool) -> Result<(), CliError> {
    let config = settings.resolve()?;
    let _guard = telemetry::init(config.log_format, &config.log_level, config.traces_endpoint().as_deref())
        .map_err(|error| CliError::Failed(format!("cannot log or export traces: {error}")))?;
    for warning in config.warnings() {
        tracing::warn!("{warning}");
    }
    let mailer = config.mail.is_on().then(|| Mailer::new(&config.mail)).transpose()?;
    // Asked for from the first moment: the first process of a container has no other way to be stopped.
    let mut shutdown = std::pin::pin!(shutdown_signal()?);
    tokio::select! {
        ready = migrate::at_start(&config.database.postgres_dsn.options, no_migrate) => ready?,
        () = &mut shutdown => return Ok(()),
    }
    let listener = http::listen(config.listen.listen_addr)
        .map_err(|error| CliError::Failed(format!("cannot listen on {}: {error}", config.listen.listen_addr)))?;
    let app = App::new(config, Clock::system())?;
    // Before the first request, so that no refusal is told apart by its time.
    cleanup::look_for_foreign_hashes(&app).await;
    // Before the first request, too.
    if let Err(error) = clock::adjust(&app).await {
        tracing::warn!(%error, "could not compare the clock with the database's");
    }
    let mut feed = revocations::Feed::default();
    if let Err(error) = feed.read(&app).await {
        tracing::warn!(%error, "could not read yet which sessions have ended");
    }
    let mails = start_tasks(&app, settings.part(), feed, mailer);
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        address = %listener.local_addr()?,
        environment = if app.config.app_env == Environment::Development { "development" } else { "production" },
        "listening"
    );
    let finished = http::serve(app.clone(), listener, shutdown).await;
    settle::settle(&app).await;
    if let Some(mails) = mails {
        let _ = mails.await;
    }
    if finished {
        tracing::info!("stopped");
    } else {
        tracing::warn!("requests in flight were cut off");
    }
    Ok(())
}

/// Starts what runs beside the requests. The task that sends mails, if there is one, ends after the requests, and is to be
/// waited for.
fn start_tasks(
    app: &App,
    database: Given<DatabaseSettings>,
    mut feed: revocations::Feed,
    mailer: Option<Mailer>,
) -> Option<JoinHandle<()>> {
    background::spawn("clean-up", app.clone(), cleanup::run);
    background::spawn("clock", app.clone(), clock::follow);
    background::spawn("ended sessions", app.clone(), move |app| revocations::follow(app, mem::take(&mut feed)));
    if database.has_files() {
        background::spawn("database password", (app.clone(), database), |(app, database)| {
            credentials::follow(app, database)
        });
    }
    let Some(mailer) = mailer else {
        tracing::info!("mail is off: SMTP_URL and MAIL_FROM are not set");
        return None;
    };
    background::spawn("age of mails", app.clone(), mail::measure);
    let state = (app.clone(), Arc::new(mailer));
    Some(background::spawn("mail", state, |(app, mailer)| mail::run(app, mailer)))
}

/// Resolves when the process is asked to stop.
pub(super) fn shutdown_signal() -> std::io::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
