//! Who the bearer of an access token is.

use super::audit::Actor;
use super::verify;
use crate::app::App;
use crate::db;
use crate::db::users::User;
use crate::domain::client::ClientInfo;
use crate::domain::ids::SessionId;
use crate::error::{AccessRefusal, Error};

/// Somebody with a good access token, a living session and an account.
#[derive(Clone, Debug)]
pub struct Bearer {
    pub user: User,
    pub session_id: SessionId,
}

impl Bearer {
    /// An administrator as the one who changes the account of somebody else. Only for a bearer of [`require_admin`].
    pub fn as_admin_at(&self, client: &ClientInfo) -> Actor {
        Actor::Admin { id: self.user.id, ip: client.ip }
    }
}

/// The bearer of an access token. A good signature is not enough: account and session must exist.
pub async fn authenticate(app: &App, bearer: Option<&str>) -> Result<Bearer, Error> {
    let token = bearer.ok_or(Error::NotAuthenticated)?;
    let claims = verify::access_token(app, token)?;
    let user = db::users::of_bearer(&app.db, &claims.subject, claims.session_id).await?;
    Ok(Bearer { user: user.ok_or(AccessRefusal::Ended)?, session_id: claims.session_id })
}

/// As [`authenticate`], and the account must be an administrator's now, whatever the token says.
pub async fn require_admin(app: &App, bearer: Option<&str>) -> Result<Bearer, Error> {
    let bearer = authenticate(app, bearer).await?;
    if bearer.user.role.is_admin() { Ok(bearer) } else { Err(Error::Forbidden) }
}
