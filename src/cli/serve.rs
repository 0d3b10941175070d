//! `auth serve`.

use super::CliError;
use crate::app::App;
use crate::clock::Clock;
use crate::config::{Config, DatabaseSettings, Environment, Given};
use crate::mail::Mailer;
use crate::service::{cleanup, clock, credentials, mail, migrate, revocations};
use crate::{http, service, telemetry};

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
    tokio::spawn(cleanup::run(app.clone()));
    // Before the first request, too.
    if let Err(error) = clock::adjust(&app).await {
        tracing::warn!(%error, "could not compare the clock with the database's");
    }
    tokio::spawn(clock::follow(app.clone()));
    let mut feed = revocations::Feed::default();
    if let Err(error) = feed.read(&app).await {
        tracing::warn!(%error, "could not read yet which sessions have ended");
    }
    tokio::spawn(revocations::follow(app.clone(), feed));
    let database = settings.part::<DatabaseSettings>();
    if database.has_files() {
        tokio::spawn(credentials::follow(app.clone(), database));
    }
    let mails = match mailer {
        Some(mailer) => tokio::spawn(mail::run(app.clone(), mailer)),
        None => tokio::spawn(async { tracing::info!("mail is off: SMTP_URL and MAIL_FROM are not set") }),
    };
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        address = %listener.local_addr()?,
        environment = if app.config.app_env == Environment::Development { "development" } else { "production" },
        "listening"
    );
    let finished = http::serve(app.clone(), listener, shutdown).await;
    service::settle(&app).await;
    let _ = mails.await;
    if finished {
        tracing::info!("stopped");
    } else {
        tracing::warn!("requests in flight were cut off");
    }
    Ok(())
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
