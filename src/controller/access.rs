//! Who may report what, and who may read: the check of a request's token, and what is cut from a report.
//!
//! *Why digests*: the configuration holds SHA-256 digests of tokens, so who reads it can report nothing. A token that comes
//! in is looked up by its digest. How long that takes tells something of digests, not of tokens: whoever can choose what the
//! digest of a token begins with has broken SHA-256, so no comparison in constant time is needed. That holds for tokens that
//! nobody guesses, such as `tidegate token` makes.
//!
//! *What is cut*: pools and tenants outside a reporter's globs, as though the report did not speak of them; the rest is taken.
//! What is told of a pool as a whole, readings and holds, is believed of whoever tells of a tenant that it may tell of: so it is
//! `pools` that says whose word counts for a pool.
//!
//! *Whose members*: a member's boot is taken with the reporter's name, so that nobody speaks for another reporter's members.
//!
//! Pure: a header in, a [`Caller`] or why not out.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use ring::digest;

use crate::observation::{Report, TOKEN_BYTES_MAX};
use crate::quota::Grantee;

/// The tokens of one reporter: the one in use, and the next while members change over.
pub const TOKENS_MAX: usize = 2;
/// The longest glob, in bytes: no name of a pool or tenant is longer.
const GLOB_BYTES_MAX: usize = 128;
const SCHEME: &str = "bearer";
/// How the undeclared tenants together are written; a glob that is this text alone means them, and no tenant of that name.
const DEFAULT: &str = "@default";

/// SHA-256 of a token. Written as 64 hex digits; [`fmt::Debug`] shows none of them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct TokenDigest([u8; digest::SHA256_OUTPUT_LEN]);

impl TokenDigest {
    /// The digest of a token.
    #[must_use]
    pub fn of(token: &[u8]) -> Self {
        let mut bytes = [0; digest::SHA256_OUTPUT_LEN];
        bytes.copy_from_slice(digest::digest(&digest::SHA256, token).as_ref());
        Self(bytes)
    }
}

/// Text that is no digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected 64 hex digits: the SHA-256 of a token")]
pub struct NoDigest;

impl FromStr for TokenDigest {
    type Err = NoDigest;

    fn from_str(text: &str) -> Result<Self, NoDigest> {
        let digits: Option<Vec<u8>> =
            text.chars().map(|digit| digit.to_digit(16).and_then(|n| u8::try_from(n).ok())).collect();
        let digits = digits.filter(|digits| digits.len() == 2 * digest::SHA256_OUTPUT_LEN).ok_or(NoDigest)?;
        let mut bytes = [0; digest::SHA256_OUTPUT_LEN];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = pair[0] << 4 | pair[1];
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for TokenDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for TokenDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenDigest(..)")
    }
}

/// A pattern of names: `*` stands for any text, none too; all else for itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Glob(Box<str>);

/// Text that is no glob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected 1–{GLOB_BYTES_MAX} bytes without control characters")]
pub struct NoGlob;

impl FromStr for Glob {
    type Err = NoGlob;

    fn from_str(text: &str) -> Result<Self, NoGlob> {
        let good = (1..=GLOB_BYTES_MAX).contains(&text.len()) && !text.chars().any(char::is_control);
        if good { Ok(Self(text.into())) } else { Err(NoGlob) }
    }
}

impl Glob {
    /// Whether it is all names.
    fn is_all(&self) -> bool {
        *self.0 == *"*"
    }

    /// Whether the name is one of these.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        let mut parts = self.0.split('*');
        let begin = parts.next().unwrap_or_default();
        let Some(rest) = name.strip_prefix(begin) else { return false };
        let Some(end) = parts.next_back() else { return rest.is_empty() };
        let Some(mut rest) = rest.strip_suffix(end) else { return false };
        // Each as early as it comes, which leaves the most to those behind it.
        for part in parts {
            let Some(at) = rest.find(part) else { return false };
            rest = &rest[at + part.len()..];
        }
        true
    }
}

/// What a reporter may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReporterParams {
    /// Digests of its tokens, at most [`TOKENS_MAX`]; none: it is shut out.
    pub tokens: Vec<TokenDigest>,
    /// The pools that it may report of.
    pub pools: Vec<Glob>,
    /// The tenants that it may report of; those without limits of their own are `@default`.
    pub tenants: Vec<Glob>,
    /// Whether it may read what the leader tells operators, and the metrics.
    pub read: bool,
}

/// Why a request is not served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// It bears no token.
    #[error("a reporter's token is wanted here, as Authorization: Bearer <token>")]
    NoToken,
    /// Its token is no reporter's.
    #[error("the token is no reporter's: see [controller.reporters] in the controller's configuration")]
    UnknownToken,
    /// It asks for what its reporter may not read.
    #[error("this reporter may not read: its read is not true in the controller's configuration")]
    Read,
    /// Nothing of its report is of a pool that its reporter may report of.
    #[error("this reporter may report of no pool in the report: see its globs in the controller's configuration")]
    Report,
}

impl Denied {
    /// The word for it in metrics.
    #[must_use]
    pub const fn why(self) -> &'static str {
        match self {
            Self::NoToken => "no_token",
            Self::UnknownToken => "unknown_token",
            Self::Read | Self::Report => "not_allowed",
        }
    }
}

/// The reporters, by their tokens.
#[derive(Debug)]
pub struct Access {
    callers: BTreeMap<TokenDigest, Caller>,
    /// No reporters are declared.
    open: bool,
}

/// Who asks.
#[derive(Debug, Clone)]
pub enum Caller {
    /// Whoever reaches the port, where no reporters are declared.
    Anyone,
    /// A reporter, and its name.
    Reporter(Arc<str>, Arc<ReporterParams>),
}

impl Access {
    /// For these reporters; none: everyone may do all.
    #[must_use]
    pub fn new(reporters: &BTreeMap<String, ReporterParams>) -> Self {
        let mut callers = BTreeMap::new();
        for (name, params) in reporters {
            let caller = Caller::Reporter(name.as_str().into(), Arc::new(params.clone()));
            callers.extend(params.tokens.iter().map(|digest| (*digest, caller.clone())));
        }
        Self { callers, open: reporters.is_empty() }
    }

    /// Who asks, by the request's `Authorization` header.
    ///
    /// # Errors
    /// [`Denied::NoToken`] or [`Denied::UnknownToken`].
    pub fn caller(&self, authorization: Option<&[u8]>) -> Result<Caller, Denied> {
        if self.open {
            return Ok(Caller::Anyone);
        }
        let token = authorization.and_then(bearer).ok_or(Denied::NoToken)?;
        if token.len() > TOKEN_BYTES_MAX {
            return Err(Denied::UnknownToken);
        }
        self.callers.get(&TokenDigest::of(token)).cloned().ok_or(Denied::UnknownToken)
    }
}

/// The token of a header `Bearer <token>`; the scheme's case does not matter (RFC 9110 §11.1).
fn bearer(header: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = header.split_at_checked(SCHEME.len())?;
    let token = token.strip_prefix(b" ")?.trim_ascii();
    (scheme.eq_ignore_ascii_case(SCHEME.as_bytes()) && !token.is_empty()).then_some(token)
}

impl Caller {
    /// The reporter's name, for logs.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::Anyone => None,
            Self::Reporter(name, _) => Some(name),
        }
    }

    /// Whether it may read.
    ///
    /// # Errors
    /// [`Denied::Read`].
    pub fn may_read(&self) -> Result<(), Denied> {
        match self {
            Self::Reporter(_, params) if !params.read => Err(Denied::Read),
            _ => Ok(()),
        }
    }

    /// Cuts from a report what the caller may not report of; whether that was anything that it need not have told. Every member
    /// tells of `@default`, which is nobody's.
    ///
    /// # Errors
    /// [`Denied::Report`]: it is of no pool that the caller may report of.
    pub fn cut(&self, report: &mut Report) -> Result<bool, Denied> {
        let Self::Reporter(name, params) = self else { return Ok(false) };
        let any = |globs: &[Glob], name: &str| globs.iter().any(|glob| glob.matches(name));
        let mut cut = false;
        let told = !report.pools.is_empty();
        report.pools.retain(|id, pool| {
            pool.tenants.retain(|grantee, _| match grantee {
                Grantee::Default => any(&params.tenants, DEFAULT),
                Grantee::Tenant(id) => {
                    let kept = params.tenants.iter().any(|glob| *glob.0 != *DEFAULT && glob.matches(id.as_str()));
                    cut |= !kept;
                    kept
                }
            });
            if pool.tenants.is_empty() && !params.tenants.iter().any(Glob::is_all) {
                pool.meters.clear();
                pool.hold_ms.clear();
            }
            let kept = any(&params.pools, id.as_str());
            cut |= !kept;
            kept
        });
        report.boot = format!("{}@{name}", report.boot);
        if told && report.pools.is_empty() { Err(Denied::Report) } else { Ok(cut) }
    }
}
