//! `auth session`.

use chrono::{DateTime, Utc};
use clap::Subcommand;
use serde_json::{Value, json};

use super::output::{print, print_json, print_row};
use super::{CliError, Who};
use crate::clock::Clock;
use crate::domain::ids::SessionId;
use crate::domain::page::PageSize;
use crate::domain::session::EndReason;
use crate::service::audit::Actor;
use crate::service::revocations::Revocations;
use crate::service::sessions::{self, Session};

#[derive(Subcommand)]
pub(super) enum SessionCommand {
    /// List a user's sessions, the ended ones with the reason
    List {
        #[command(flatten)]
        who: Who,
        /// Print a JSON array
        #[arg(long)]
        json: bool,
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
        SessionCommand::List { who, json } => {
            let (db, user) = who.begin().await?;
            let mut listed = Vec::new();
            if !json {
                print_row(&["id", "opened", "last seen", "state", "address", "user agent"])?;
            }
            let mut after = None;
            loop {
                let page = sessions::list_all(&db, user.id, after, PageSize::MAX).await?;
                if json {
                    listed.extend(page.entries.iter().map(described));
                } else {
                    page.entries.iter().try_for_each(print_session)?;
                }
                let Some(last) = page.next_after() else { break };
                after = Some(last.id);
            }
            if json { print_json(&listed) } else { Ok(()) }
        }
        SessionCommand::End { who, id } => {
            let (db, user) = who.begin().await?;
            let ended =
                sessions::end_of(&db, &Revocations::default(), Actor::CommandLine, user.id, id.map(SessionId), now)
                    .await?;
            print(&format!("{ended} sessions of user {} ended", user.id))
        }
    }
}

/// As the routes show one, and with its end.
fn described(session: &Session) -> Value {
    json!({
        "id": session.id.0, "created_at": session.created_at, "last_seen_at": session.last_seen_at,
        "ended_at": session.ended.map(|(at, _)| at),
        "end_reason": session.ended.and_then(|(_, reason)| reason).map(EndReason::label),
        "ip": session.ip, "user_agent": session.user_agent,
    })
}

fn print_session(session: &Session) -> Result<(), CliError> {
    let time = |time: DateTime<Utc>| time.format("%F %T").to_string();
    let state = session.ended.map_or("live".to_owned(), |(at, reason)| {
        format!("{} {}", reason.map_or("ended", |reason| reason.label()), time(at))
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
