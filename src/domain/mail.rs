//! Which mails there are, and in which languages. What they say stands in `mail/templates`.

use chrono::TimeDelta;

/// What a mail is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Template {
    ResetPassword,
    VerifyEmail,
    PasswordChanged,
    PasswordReset,
    NewSignIn,
}

impl Template {
    pub const ALL: [Self; 5] =
        [Self::ResetPassword, Self::VerifyEmail, Self::PasswordChanged, Self::PasswordReset, Self::NewSignIn];

    /// Its name in the database, in metrics and in the names of files.
    pub fn label(self) -> &'static str {
        match self {
            Self::ResetPassword => "reset_password",
            Self::VerifyEmail => "verify_email",
            Self::PasswordChanged => "password_changed",
            Self::PasswordReset => "password_reset",
            Self::NewSignIn => "new_sign_in",
        }
    }

    pub fn from_label(label: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|template| template.label() == label)
    }

    /// How long the token of such a mail is valid; notices have none.
    pub fn token_lifetime(self) -> Option<TimeDelta> {
        match self {
            Self::ResetPassword => Some(TimeDelta::minutes(30)),
            Self::VerifyEmail => Some(TimeDelta::hours(24)),
            Self::PasswordChanged | Self::PasswordReset | Self::NewSignIn => None,
        }
    }
}

/// The language of a mail.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Locale {
    #[default]
    En,
    De,
}

impl Locale {
    pub const ALL: [Self; 2] = [Self::En, Self::De];

    /// Its name in the database and in the names of files (ISO 639-1).
    pub fn label(self) -> &'static str {
        match self {
            Self::En => "en",
            Self::De => "de",
        }
    }

    /// The locale of a language tag such as `de-AT` (RFC 5646), if there are texts in its language.
    pub fn from_tag(tag: &str) -> Option<Self> {
        let language = tag.trim().split(['-', '_']).next().unwrap_or_default();
        Self::ALL.into_iter().find(|locale| locale.label().eq_ignore_ascii_case(language))
    }

    /// What an `Accept-Language` header prefers among the languages that there are texts in (RFC 9110 §12.5.4).
    pub fn accepted(header: &str) -> Option<Self> {
        let weighted = header.split(',').filter_map(|entry| {
            let (tag, weight) = entry.split_once(';').unwrap_or((entry, "q=1"));
            let weight: f32 = weight.trim().strip_prefix("q=")?.parse().ok()?;
            Some((Self::from_tag(tag)?, weight)).filter(|_| weight > 0.0)
        });
        // Of equal ones the first counts.
        weighted.reduce(|best, next| if next.1 > best.1 { next } else { best }).map(|(locale, _)| locale)
    }
}
