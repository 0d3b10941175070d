//! Passwords, their hashes, and the schemes that turn one into the other.
//!
//! New hashes are argon2id. bcrypt hashes and argon2 hashes of other parameters verify; anything else in the table is
//! no hash at all, and no password fits it. Hashing costs tens of milliseconds: the service does it on the worker threads
//! of `passwords` only.

use argon2::password_hash::phc::{Output, PasswordHash as PhcHash, Salt};
use argon2::{Algorithm, Argon2, Block, Params, Version};
use secrecy::{ExposeSecret, SecretString};
use subtle::ConstantTimeEq;

/// A password in plain. Never stored, never logged.
#[derive(Clone, Debug)]
pub struct Password(SecretString);

/// Why a password cannot be taken for a new account.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PasswordError {
    #[error("a password has at least 8 characters")]
    TooShort,
    #[error("a password has at most 1024 bytes")]
    TooLong,
    /// bcrypt ends a password there, so the Python service could not verify it after a roll-back.
    #[error("a password contains no NUL character")]
    Nul,
}

impl Password {
    /// The least length of a new password, in characters.
    pub const MIN_CHARACTERS: usize = 8;
    /// The greatest length of a new password, in bytes.
    pub const MAX_BYTES: usize = 1024;

    /// A password somebody tries: any text may be tried.
    pub fn attempt(text: String) -> Self {
        Self(text.into())
    }

    /// A password somebody chooses. All of it counts; it is not normalised.
    pub fn choose(text: String) -> Result<Self, PasswordError> {
        if text.chars().count() < Self::MIN_CHARACTERS {
            return Err(PasswordError::TooShort);
        }
        if text.len() > Self::MAX_BYTES {
            return Err(PasswordError::TooLong);
        }
        if text.contains('\0') {
            return Err(PasswordError::Nul);
        }
        Ok(Self(text.into()))
    }

    fn bytes(&self) -> &[u8] {
        self.0.expose_secret().as_bytes()
    }
}

/// A stored password hash. `Debug` does not show it.
#[derive(Clone, PartialEq, Eq, sqlx::Type)]
#[sqlx(transparent)]
pub struct PasswordHash(String);

impl std::fmt::Debug for PasswordHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PasswordHash(redacted)")
    }
}

impl PasswordHash {
    pub fn from_stored(text: String) -> Self {
        Self(text)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Cost of new hashes: argon2id with `m` KiB, `t` passes, one lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Argon2Cost {
    pub m_kib: u32,
    pub t: u32,
}

impl Argon2Cost {
    /// Above these a stored hash is refused, so that an imported one cannot buy a gigabyte or a minute.
    pub const MAX_M_KIB: u32 = 64 * 1024;
    pub const MAX_T: u32 = 10;
    pub const MAX_LANES: u32 = 4;
    /// bcrypt's cost is a power of two; 15 is about two seconds.
    pub const MAX_BCRYPT: u32 = 15;

    fn params(self) -> Params {
        Params::new(self.m_kib, self.t, 1, None).expect("BUG: the configuration checks the cost")
    }
}

/// What takes time about a hash: its scheme and parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HashCost {
    Argon2 { m_kib: u32, t: u32, lanes: u32 },
    Bcrypt { cost: u32 },
}

impl HashCost {
    /// Of a stored hash; `None` where it is unusable.
    pub fn of(hash: &PasswordHash) -> Option<Self> {
        Scheme::of(hash).map(|scheme| scheme.cost())
    }

    /// Of hashes that begin with this text; `None` where they are unusable.
    pub fn from_parameters(text: &str) -> Option<Self> {
        let argon2 = || Some(Self::of_argon2(&usable_argon2(&PhcHash::new(text).ok()?)?));
        usable_bcrypt(text).map(|cost| Self::Bcrypt { cost }).or_else(argon2)
    }

    fn of_argon2(argon2: &Argon2<'_>) -> Self {
        let params = argon2.params();
        Self::Argon2 { m_kib: params.m_cost(), t: params.t_cost(), lanes: params.p_cost() }
    }

    /// Computes such a hash of nothing, for the time it takes.
    pub fn compute(self, memory: &mut Memory) {
        match self {
            Self::Argon2 { m_kib, t, lanes } => {
                if let Ok(params) = Params::new(m_kib, t, lanes, None) {
                    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
                    memory.fill(&argon2, &Password::attempt(String::new()), &[0; 16], &mut [0; 32]);
                }
            }
            Self::Bcrypt { cost } => {
                let _ = bcrypt::hash_with_salt("", cost, [0; 16]);
            }
        }
    }
}

impl From<Argon2Cost> for HashCost {
    fn from(cost: Argon2Cost) -> Self {
        Self::Argon2 { m_kib: cost.m_kib, t: cost.t, lanes: 1 }
    }
}

fn usable_bcrypt(text: &str) -> Option<u32> {
    let rest = ["$2a$", "$2b$", "$2y$"].iter().find_map(|prefix| text.strip_prefix(prefix))?;
    rest.get(..2)?.parse().ok().filter(|cost| (4..=Argon2Cost::MAX_BCRYPT).contains(cost))
}

fn usable_argon2(parsed: &PhcHash) -> Option<Argon2<'static>> {
    let algorithm = Algorithm::try_from(parsed.algorithm.as_str()).ok()?;
    let version = parsed.version.map_or(Some(Version::V0x10), |version| Version::try_from(version).ok())?;
    let params = Params::try_from(parsed).ok()?;
    let payable = params.m_cost() <= Argon2Cost::MAX_M_KIB
        && params.t_cost() <= Argon2Cost::MAX_T
        && params.p_cost() <= Argon2Cost::MAX_LANES;
    payable.then(|| Argon2::new(algorithm, version, params))
}

/// How a stored hash was made.
enum Scheme {
    Argon2(Box<PhcHash>, Argon2<'static>),
    Bcrypt { cost: u32 },
}

impl Scheme {
    /// `None` of what is unusable: empty, truncated, foreign, or dearer than we pay.
    fn of(hash: &PasswordHash) -> Option<Self> {
        let text = hash.as_str();
        Self::bcrypt(text).or_else(|| Self::argon2(text))
    }

    fn cost(&self) -> HashCost {
        match self {
            Self::Argon2(_, argon2) => HashCost::of_argon2(argon2),
            Self::Bcrypt { cost } => HashCost::Bcrypt { cost: *cost },
        }
    }

    fn bcrypt(text: &str) -> Option<Self> {
        let cost = usable_bcrypt(text)?;
        // A hash that the library cannot take apart is found out here and not after paying for it.
        text.parse::<bcrypt::HashParts>().is_ok().then_some(Self::Bcrypt { cost })
    }

    fn argon2(text: &str) -> Option<Self> {
        let parsed = PhcHash::new(text).ok()?;
        let argon2 = usable_argon2(&parsed)?;
        (parsed.salt.is_some() && parsed.hash.is_some()).then(|| Self::Argon2(Box::new(parsed), argon2))
    }

    fn is_current(&self, cost: Argon2Cost) -> bool {
        let argon2id = matches!(self, Self::Argon2(hash, _) if hash.algorithm == Algorithm::Argon2id.ident());
        argon2id && self.cost() == cost.into()
    }
}

/// What came of trying a password against a stored hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Match {
        /// The hash was made by another scheme or at another cost than new ones are.
        outdated: bool,
    },
    Mismatch,
    /// The stored text is no hash we know, or too dear to compute.
    Unusable,
}

/// Working memory for argon2, allocated once per thread and used again and again.
#[derive(Debug)]
pub struct Memory {
    blocks: Vec<Block>,
    standing: usize,
}

impl Memory {
    /// Memory for hashes of `cost`.
    pub fn for_cost(cost: Argon2Cost) -> Self {
        let standing = cost.params().block_count();
        Self { blocks: vec![Block::default(); standing], standing }
    }

    fn fill(&mut self, argon2: &Argon2<'_>, password: &Password, salt: &[u8], out: &mut [u8]) -> bool {
        // A stored hash may have been made with more memory; what it needs beyond the standing share is given back.
        let needed = argon2.params().block_count();
        if needed > self.blocks.len() {
            self.blocks.resize(needed, Block::default());
        }
        let filled = argon2.hash_password_into_with_memory(password.bytes(), salt, out, &mut self.blocks[..needed]);
        if self.blocks.len() > self.standing {
            self.blocks.truncate(self.standing);
            self.blocks.shrink_to_fit();
        }
        filled.is_ok()
    }
}

/// Hashes a chosen password with a fresh salt.
pub fn hash(password: &Password, cost: Argon2Cost, memory: &mut Memory) -> PasswordHash {
    let salt: [u8; 16] = rand::random();
    let mut out = [0; Params::DEFAULT_OUTPUT_LEN];
    let params = cost.params();
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    let filled = memory.fill(&argon2, password, &salt, &mut out);
    assert!(filled, "BUG: the configuration checks the cost, and salt and output have their standard lengths");
    let salt = Salt::new(&salt).expect("BUG: 16 bytes are a salt");
    let output = Output::new(&out).expect("BUG: 32 bytes are an output");
    PasswordHash(format!("$argon2id$v=19$m={},t={},p=1${salt}${output}", cost.m_kib, cost.t))
}

/// Tries a password against a stored hash.
pub fn verify(password: &Password, stored: &PasswordHash, cost: Argon2Cost, memory: &mut Memory) -> Verdict {
    let Some(scheme) = Scheme::of(stored) else {
        // It costs what a hash would have cost: an outsider is not told which accounts are broken.
        let _ = hash(password, cost, memory);
        return Verdict::Unusable;
    };
    let matches = match &scheme {
        Scheme::Bcrypt { .. } => {
            // bcrypt repeats a short password with a NUL between, so one with a NUL of its own could fit another's
            // hash. It is computed all the same, for the time it takes.
            let fits = bcrypt::verify(password.bytes(), stored.as_str()).unwrap_or(false);
            fits && !password.bytes().contains(&0)
        }
        Scheme::Argon2(parsed, argon2) => {
            let (Some(salt), Some(expected)) = (&parsed.salt, &parsed.hash) else { return Verdict::Unusable };
            let mut out = vec![0; expected.len()];
            memory.fill(argon2, password, salt, &mut out) && bool::from(out.ct_eq(expected.as_bytes()))
        }
    };
    if matches { Verdict::Match { outdated: !scheme.is_current(cost) } } else { Verdict::Mismatch }
}
