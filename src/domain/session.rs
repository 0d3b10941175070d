//! Why a session ended.

/// The reason a session ended, as stored in `sessions.end_reason` and told in `X-Auth-Reason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndReason {
    /// Its own log-out.
    Logout,
    /// Ended from another session of the same user.
    LoggedOutElsewhere,
    /// A refresh token came back that had long been exchanged: it or its successor was stolen (RFC 9700 §4.14.2).
    ReplayDetected,
    /// The user changed the password in another session.
    PasswordChanged,
    /// An administrator ended it.
    ByAdmin,
    /// Its last refresh token expired unused.
    Expired,
    /// The user was deleted.
    UserDeleted,
    /// The user opened more sessions than one may have (`MAX_SESSIONS_PER_USER`); this was the oldest.
    SessionLimit,
    /// The password was reset with a token from a mail.
    PasswordReset,
}

impl EndReason {
    const ALL: [Self; 9] = [
        Self::Logout,
        Self::LoggedOutElsewhere,
        Self::ReplayDetected,
        Self::PasswordChanged,
        Self::ByAdmin,
        Self::Expired,
        Self::UserDeleted,
        Self::SessionLimit,
        Self::PasswordReset,
    ];

    /// The name that is stored and sent.
    pub fn label(self) -> &'static str {
        match self {
            Self::Logout => "logout",
            Self::LoggedOutElsewhere => "logged_out_elsewhere",
            Self::ReplayDetected => "replay_detected",
            Self::PasswordChanged => "password_changed",
            Self::ByAdmin => "by_admin",
            Self::Expired => "expired",
            Self::UserDeleted => "user_deleted",
            Self::SessionLimit => "session_limit",
            Self::PasswordReset => "password_reset",
        }
    }

    /// Reads a stored name; the table's check constraint admits no other.
    pub fn from_label(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.label() == name)
    }
}
