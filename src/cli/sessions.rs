//! `auth session`.

use chrono::{DateTime, Utc};
use clap::Subcommand;

use super::output::{print, print_row};
use super::{CliError, Who, begin};
use crate::clock::Clock;
use crate::domain::ids::SessionId;
use crate::domain::page::PageSize;
use crate::service::audit::Actor;
use crate::service::revocations::Revocations;
use crate::service::sessions::{self, Session};

#[derive(Subcommand)]
pub(super) enum SessionCommand {
    /// List a user's sessions, the ended ones with the reason
    List {
        #[command(flatten)]
        who: Who,
    },
    /// End one session of a user, or all
    End {
        #[command(flatten)]
        who: Who,
        /// Only this one
        #[arg(long)]
        id: Option<uuid::Uuid>,
    },
}

pub(super) async fn run(command: SessionCommand) -> Result<(), CliError> {
    let now = Clock::system().now();
    match command {
        SessionCommand::List { who } => {
            let db = begin(&who.database)?;
            let user = who.find(&db).await?;
            print_row(&["id", "opened", "last seen", "state", "address", "user agent"])?;
            let mut after = None;
            loop {
                let page = sessions::list_all(&db, user.id, after, PageSize::MAX).await?;
                page.entries.iter().try_for_each(print_session)?;
                let Some(last) = page.next_after() else { return Ok(()) };
                after = Some(last.id);
            }
        }
        SessionCommand::End { who, id } => {
            let db = begin(&who.database)?;
            let user = who.find(&db).await?;
            let ended =
                sessions::end_of(&db, &Revocations::default(), Actor::CommandLine, user.id, id.map(SessionId), now)
                    .await?;
            print(&format!("{ended} sessions of user {} ended", user.id))
        }
    }
}

fn print_session(session: &Session) -> Result<(), CliError> {
    let time = |time: DateTime<Utc>| time.format("%F %T").to_string();
    let state = session.ended.map_or("live".to_owned(), |(at, reason)| {
        format!("{} {}", reason.map_or("ended", |reason| reason.as_str()), time(at))
    });
    print_row(&[
        &session.id.to_string(),
        &time(session.created_at),
        &time(session.last_seen_at),
        &state,
        &session.ip.map_or("-".to_owned(), |ip| ip.to_string()),
        session.user_agent.as_deref().unwrap_or("-"),
    ])
}
