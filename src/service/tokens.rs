//! The tokens that a login or a refresh issues.

use chrono::{DateTime, Utc};

use crate::app::App;
use crate::db::sessions::{NewSession, OpenedSession};
use crate::db::users::User;
use crate::domain::client::ClientInfo;
use crate::domain::ids::SessionId;
use crate::domain::password::PasswordHash;
use crate::domain::throttle::Bucket;
pub use crate::domain::tokens::TokenPair;
use crate::domain::tokens::{Jti, RefreshToken, TokenHash};

/// A session that is about to be opened, with its first tokens.
pub(super) struct IssuedSession {
    pub session_id: SessionId,
    jti: Jti,
    refresh: RefreshToken,
    token_hash: TokenHash,
    expires_at: DateTime<Utc>,
    max_sessions: i64,
    pub now: DateTime<Utc>,
}

impl IssuedSession {
    pub(super) fn issue(app: &App, user: &User, session_id: SessionId) -> Self {
        let now = app.clock.now();
        let jti = Jti::generate();
        let expires_at = app.tokens.refresh_expiry(now);
        let refresh = app.tokens.sign_refresh(&user.email, &jti, session_id, expires_at);
        let max_sessions = app.config.max_sessions_per_user;
        Self { session_id, token_hash: refresh.hash(), jti, refresh, expires_at, max_sessions, now }
    }

    pub(super) fn session(
        &self,
        user: &User,
        client: &ClientInfo,
        verified: PasswordHash,
        replacement: Option<PasswordHash>,
        counted: Vec<Bucket>,
    ) -> NewSession {
        NewSession {
            id: self.session_id,
            user_id: user.id,
            verified,
            replacement,
            client: client.clone(),
            jti: self.jti.clone(),
            token_hash: self.token_hash.clone(),
            expires_at: self.expires_at,
            counted,
            max_sessions: self.max_sessions,
            now: self.now,
        }
    }

    /// Its key, for the case that the client is not told of it.
    pub(super) fn opened(&self) -> OpenedSession {
        OpenedSession { id: self.session_id, jti: self.jti.clone() }
    }

    pub(super) fn sign(self, app: &App, user: &User) -> TokenPair {
        let access = app.tokens.sign_access(&user.email, &user.role, self.session_id, self.now);
        TokenPair { access, refresh: self.refresh }
    }
}
