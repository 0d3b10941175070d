//! The tokens that a login issues.

use crate::app::App;
use crate::db::sessions::NewSession;
use crate::db::users::User;
use crate::domain::client::ClientInfo;
use crate::domain::ids::SessionId;
use crate::domain::password::PasswordHash;
use crate::domain::throttle::Bucket;
use crate::domain::tokens::{Jti, TokenPair};

/// A session about to be opened, and its first tokens.
pub(super) fn new_session(
    app: &App,
    user: &User,
    client: &ClientInfo,
    verified: PasswordHash,
    replacement: Option<PasswordHash>,
    counted: Vec<Bucket>,
) -> (NewSession, TokenPair) {
    let now = app.clock.now();
    let (id, jti) = (SessionId::generate(), Jti::generate());
    let expires_at = app.tokens.refresh_expiry(now);
    let refresh = app.tokens.sign_refresh(&user.email, &jti, id, expires_at);
    let access = app.tokens.sign_access(&user.email, &user.role, id, now);
    let session = NewSession {
        id,
        user_id: user.id,
        verified,
        replacement,
        client: client.clone(),
        jti,
        token_hash: refresh.hash(),
        expires_at,
        counted,
        max_sessions: app.config.max_sessions_per_user,
        notice: None,
        now,
    };
    (session, TokenPair { access, refresh })
}
