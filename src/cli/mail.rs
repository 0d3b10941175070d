//! `auth mail`.

use chrono::{DateTime, Utc};
use clap::Subcommand;
use serde_json::{Value, json};
use uuid::Uuid;

use super::output::{print, print_json, print_row};
use super::{CliError, begin};
use crate::clock::Clock;
use crate::config::{DatabaseSettings, Given};
use crate::domain::page::PageSize;
use crate::error::Error;
use crate::service::audit::Actor;
use crate::service::mail::{self, Unsent};

#[derive(Subcommand)]
pub(super) enum MailCommand {
    /// List the mails that wait to be sent, and those that were given up
    List {
        /// Print a JSON array
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        database: Given<DatabaseSettings>,
    },
    /// Have a mail sent at once that waits or was given up, or all of them
    Retry {
        /// Only this one
        #[arg(long)]
        id: Option<Uuid>,
        #[command(flatten)]
        database: Given<DatabaseSettings>,
    },
    /// Delete a mail that waits or was given up, or all that were given up
    Drop {
        /// Only this one
        #[arg(long)]
        id: Option<Uuid>,
        #[command(flatten)]
        database: Given<DatabaseSettings>,
    },
}

pub(super) async fn run(command: MailCommand) -> Result<(), CliError> {
    match command {
        MailCommand::List { json, database } => {
            let db = begin(&database)?;
            let mut listed = Vec::new();
            if !json {
                print_row(&["id", "template", "asked for", "state", "attempts", "address", "last error"])?;
            }
            let mut after = Uuid::nil();
            loop {
                let page = mail::list_unsent(&db, after, PageSize::MAX).await?;
                if json {
                    listed.extend(page.entries.iter().map(described));
                } else {
                    page.entries.iter().try_for_each(print_mail)?;
                }
                let Some(last) = page.next_after() else { break };
                after = last.id;
            }
            if json { print_json(&listed) } else { Ok(()) }
        }
        MailCommand::Retry { id, database } => {
            let retried = mail::retry(&begin(&database)?, Actor::CommandLine, id, Clock::system().now()).await;
            let retried = retried.map_err(said)?;
            print(&format!("mails to be sent at once: {retried}"))
        }
        MailCommand::Drop { id, database } => {
            let deleted = mail::delete_unsent(&begin(&database)?, Actor::CommandLine, id).await.map_err(said)?;
            print(&format!("mails deleted: {deleted}"))
        }
    }
}

fn said(error: Error) -> CliError {
    match error {
        Error::NotFound => CliError::Failed("no mail with this id waits or was given up".to_owned()),
        error => error.into(),
    }
}

fn described(mail: &Unsent) -> Value {
    json!({
        "id": mail.id, "template": mail.template, "created_at": mail.created_at, "due_at": mail.due_at,
        "is_being_sent": mail.is_being_sent, "attempts": mail.attempts, "email": mail.email,
        "last_error": mail.last_error,
    })
}

fn print_mail(mail: &Unsent) -> Result<(), CliError> {
    let time = |time: DateTime<Utc>| time.format("%F %T").to_string();
    let state = match mail.due_at {
        None => "given up".to_owned(),
        Some(_) if mail.is_being_sent => "being sent".to_owned(),
        Some(due_at) => format!("due {}", time(due_at)),
    };
    print_row(&[
        &mail.id.to_string(),
        &mail.template,
        &time(mail.created_at),
        &state,
        &mail.attempts.to_string(),
        &mail.email,
        mail.last_error.as_deref().unwrap_or("-"),
    ])
}
