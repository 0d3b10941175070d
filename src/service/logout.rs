//! Signing out with a refresh token.

use sqlx::Connection as _;

use super::audit::audit;
use super::tokens::verify_refresh;
use crate::app::App;
use crate::db;
use crate::db::revocations::Ending;
use crate::db::sign_out::Except;
use crate::domain::client::ClientInfo;
use crate::domain::session::EndReason;
use crate::error::Error;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    This,
    Others,
    All,
}

/// Signs out with a refresh token. A genuine one is enough to end its own session, whatever has become of it; for more
/// than that it must still be good.
pub async fn logout(app: &App, token: &str, scope: Scope, client: &ClientInfo) -> Result<(), Error> {
    let now = app.clock.now();
    let presented = &verify_refresh(app, token, now).map_err(Error::RefreshToken)?;
    // Of the others; the token's own has logged out.
    let ending = &Ending::new(&app.revocations, EndReason::LoggedOutElsewhere, now);
    if scope == Scope::This {
        let user = db::retry::execute(&app.db, |mut connection, _| async move {
            db::sign_out::log_out(&mut connection, ending, presented).await
        });
        let user = user.await?;
        ending.committed();
        audit(client, "logout", "success", user, presented.session_id);
        return Ok(());
    }
    let owner = db::refresh_tokens::owner(&app.db, presented, now).await?;
    let owner = owner.filter(|owner| owner.current).ok_or(Error::RefreshRefused(None))?;
    let others = owner.session_id.map_or(Except::Token(&presented.jti), Except::Session);
    // Once more, it finds nothing left to end.
    let ended = db::retry::execute(&app.db, |mut connection, _| async move {
        let mut transaction = connection.begin().await?;
        db::sign_out::end_all(&mut transaction, ending, owner.user_id, others).await?;
        if scope == Scope::All {
            db::sign_out::log_out(&mut transaction, ending, presented).await?;
        }
        transaction.commit().await
    });
    ended.await?;
    ending.committed();
    let event = if scope == Scope::All { "logout_all" } else { "logout_others" };
    audit(client, event, "success", Some(owner.user_id), owner.session_id);
    Ok(())
}
