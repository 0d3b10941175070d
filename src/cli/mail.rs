//! `auth mail`.

use chrono::{DateTime, Utc};
use clap::Subcommand;
use uuid::Uuid;

use super::output::{print, print_row};
use super::{CliError, begin};
use crate::clock::Clock;
use crate::config::{DatabaseSettings, Given};
use crate::domain::page::PageSize;
use crate::service::audit::Actor;
use crate::service::mail::{self, Unsent};

#[derive(Subcommand)]
pub(super) enum MailCommand {
    /// List the mails that wait to be sent, and those that were given up
    List {
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
        MailCommand::List { database } => {
            let db = begin(&database)?;
            print_row(&["id", "template", "asked for", "state", "attempts", "address", "last error"])?;
            let mut after = Uuid::nil();
            loop {
                let page = mail::list_unsent(&db, after, PageSize::MAX).await?;
                page.entries.iter().try_for_each(print_mail)?;
                let Some(last) = page.next_after() else { return Ok(()) };
                after = last.id;
            }
        }
        MailCommand::Retry { id, database } => {
            let retried = mail::retry(&begin(&database)?, Actor::CommandLine, id, Clock::system().now()).await?;
            print(&format!("{retried} mails to be sent at once"))
        }
        MailCommand::Drop { id, database } => {
            let deleted = mail::delete_unsent(&begin(&database)?, Actor::CommandLine, id).await?;
            print(&format!("{deleted} mails deleted"))
        }
    }
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
