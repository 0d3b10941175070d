//! `auth user`.

use std::io::{IsTerminal, Read};

use clap::Subcommand;
use serde_json::json;
use sqlx::PgPool;

use super::output::{print, print_json, print_row};
use super::{CliError, Who, begin, email, role};
use crate::clock::Clock;
use crate::config::{DatabaseSettings, Given, MailSettings, PasswordSettings, without_byte_order_mark};
use crate::domain::ids::UserId;
use crate::domain::mail::Locale;
use crate::domain::page::PageSize;
use crate::domain::password::{self, Memory, Password, PasswordHash};
use crate::error::Error;
use crate::service::audit::Actor;
use crate::service::forgot_password::send_reset;
use crate::service::password::set_password;
use crate::service::revocations::Revocations;
use crate::service::users;

#[derive(Subcommand)]
pub(super) enum UserCommand {
    /// Create a user
    Create {
        #[command(flatten)]
        who: Who,
        /// The user's role
        #[arg(long, default_value = "customer")]
        role: String,
        #[command(flatten)]
        password: Given<PasswordSettings>,
    },
    /// List all users: id, role, e-mail
    List {
        /// Print a JSON array
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        database: Given<DatabaseSettings>,
    },
    /// Give a user another role
    SetRole {
        #[command(flatten)]
        who: Who,
        /// The new role
        #[arg(long)]
        role: String,
    },
    /// Set a user's password and end all of the user's sessions
    SetPassword {
        #[command(flatten)]
        who: Who,
        /// The language of the notice that the user gets, where mail is on
        #[arg(long, default_value = "en", value_parser = locale)]
        locale: Locale,
        #[command(flatten)]
        password: Given<PasswordSettings>,
        #[command(flatten)]
        mail: Given<MailSettings>,
    },
    /// Send a user the mail to reset a forgotten password with
    SendReset {
        #[command(flatten)]
        who: Who,
        /// The language of the mail
        #[arg(long, default_value = "en", value_parser = locale)]
        locale: Locale,
    },
    /// Delete a user and end all of the user's sessions
    Delete {
        #[command(flatten)]
        who: Who,
    },
}

pub(super) async fn run(command: UserCommand) -> Result<(), CliError> {
    let now = Clock::system().now();
    let actor = Actor::CommandLine;
    match command {
        UserCommand::Create { who, role: name, password } => {
            let (email, role) = (email(&who.email)?, role(&name)?);
            let db = begin(&who.database)?;
            let hash = read_password(&password)?;
            match users::create(&db, actor, &email, &hash, &role, now).await {
                Ok(id) => print(&format!("created user {id} ({})", role.as_str())),
                Err(Error::EmailTaken) => Err(CliError::Failed(format!("{} is already registered", who.email))),
                Err(error) => Err(error.into()),
            }
        }
        UserCommand::List { json, database } => list(&begin(&database)?, json).await,
        UserCommand::SetRole { who, role: name } => {
            let role = role(&name)?;
            let (db, user) = who.begin().await?;
            users::set_role(&db, actor, user.id, &role, now).await?;
            print(&format!("user {} is {} now", user.id, role.as_str()))
        }
        UserCommand::SetPassword { who, locale, password, mail } => {
            let mail = mail.resolve()?;
            let (db, user) = who.begin().await?;
            let hash = read_password(&password)?;
            let ended = set_password(&db, actor, user.id, &hash, &mail, locale, now).await?;
            print(&format!("password of user {} set, {ended} sessions ended", user.id))
        }
        UserCommand::SendReset { who, locale } => {
            let (db, user) = who.begin().await?;
            send_reset(&db, actor, &user, locale, now).await?;
            print(&format!("a mail for user {} is to be sent by the service, if mail is on there", user.id))
        }
        UserCommand::Delete { who } => {
            let (db, user) = who.begin().await?;
            users::delete(&db, &Revocations::default(), actor, user.id, now).await?;
            print(&format!("user {} deleted", user.id))
        }
    }
}

fn locale(tag: &str) -> Result<Locale, String> {
    Locale::from_tag(tag).ok_or_else(|| format!("there are no texts in '{tag}'"))
}

async fn list(db: &PgPool, json: bool) -> Result<(), CliError> {
    let mut listed = Vec::new();
    let mut after = UserId(i64::MIN);
    loop {
        let page = users::list(db, after, PageSize::MAX, None).await?;
        for user in &page.entries {
            if json {
                listed.push(json!({"id": user.id.0, "role": user.role.as_str(), "email": user.email}));
                continue;
            }
            print_row(&[&user.id.to_string(), user.role.as_str(), &user.email])?;
        }
        let Some(last) = page.next_after() else { break };
        after = last.id;
    }
    if json { print_json(&listed) } else { Ok(()) }
}

/// Reads a password and hashes it right here: a command has no queue.
fn read_password(settings: &Given<PasswordSettings>) -> Result<PasswordHash, CliError> {
    let cost = settings.resolve()?.hasher().cost;
    let text = if std::io::stdin().is_terminal() {
        rpassword::prompt_password("Password: ")?
    } else {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text)?;
        without_byte_order_mark(&text).trim_end_matches(['\r', '\n']).to_owned()
    };
    let password = Password::choose(text).map_err(|error| CliError::Usage(error.to_string()))?;
    Ok(password::hash(&password, cost, &mut Memory::for_cost(cost)))
}
