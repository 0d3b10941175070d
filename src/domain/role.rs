//! A user's role: any name of 1 to 32 characters. Only `admin` means something to this service.

/// A role as it stands in `users.role` and in the `role` claim.
#[derive(Clone, Debug, PartialEq, Eq, sqlx::Type)]
#[sqlx(transparent)]
pub struct Role(String);

/// Why a text is no role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RoleError {
    /// More than [`Role::MAX_CHARACTERS`].
    #[error("a role has at most 32 characters")]
    TooLong,
    /// PostgreSQL stores no NUL.
    #[error("a role contains no NUL character")]
    Nul,
}

impl Role {
    /// The width of the column.
    pub const MAX_CHARACTERS: usize = 32;

    /// The role of a registration without one.
    pub fn customer() -> Self {
        Self("customer".to_owned())
    }

    /// The role that may list, change and delete users.
    pub fn admin() -> Self {
        Self("admin".to_owned())
    }

    /// Takes `text` as a role; an empty one is `customer`, as the service has always had it.
    pub fn parse(text: &str) -> Result<Self, RoleError> {
        if text.is_empty() {
            return Ok(Self::customer());
        }
        if text.chars().count() > Self::MAX_CHARACTERS {
            return Err(RoleError::TooLong);
        }
        if text.contains('\0') {
            return Err(RoleError::Nul);
        }
        Ok(Self(text.to_owned()))
    }

    pub fn is_admin(&self) -> bool {
        self.0 == "admin"
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}
