//! Who calls, and what they may do: the result of presenting a key, a token or neither.

use std::{collections::BTreeSet, time::Duration};

use crate::usage::Allowance;

/// The caller of a server without authentication, and of commands on this machine.
pub const LOCAL: &str = "local";

/// A caller owns documents and collections, has limits, and pays. It may have several keys.
#[derive(Clone, Debug)]
pub struct Caller {
    pub id: String,
    /// The key or token presented; `None` where none is required.
    pub key_id: Option<String>,
    pub scopes: BTreeSet<Scope>,
    /// Models the caller may use; `None` means all.
    pub allowed_models: Option<Vec<String>>,
    /// Nothing that this caller sends, or that is found for it, leaves the machine.
    pub local_only: bool,
    /// The routing policy where the request names none; `None` is the server's own policy.
    pub policy: Option<RoutingPolicy>,
    pub limits: CallerLimits,
}

/// What a caller may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// Generate, ask and rerank.
    Chat,
    Embed,
    /// Upload, list, search and delete one's own documents and collections.
    Documents,
    /// See every caller's usage, and manage the server.
    Admin,
}

impl Scope {
    pub const ALL: [Self; 4] = [Self::Chat, Self::Embed, Self::Documents, Self::Admin];

    /// The scope's name on the command line, in tokens and in the store.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Embed => "embed",
            Self::Documents => "documents",
            Self::Admin => "admin",
        }
    }
}

impl std::str::FromStr for Scope {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|scope| scope.as_str() == text);
        found.ok_or_else(|| format!("{text:?} is no scope: chat, embed, documents or admin"))
    }
}

/// Which side serves a request: this machine, or a hosted upstream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum RoutingPolicy {
    /// This machine, or an upstream if this machine cannot.
    #[default]
    LocalFirst,
    LocalOnly,
    /// An upstream, or this machine if the upstream cannot.
    HostedFirst,
    HostedOnly,
}

impl RoutingPolicy {
    pub const ALL: [Self; 4] = [Self::LocalFirst, Self::LocalOnly, Self::HostedFirst, Self::HostedOnly];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::LocalFirst => "local-first",
            Self::LocalOnly => "local-only",
            Self::HostedFirst => "hosted-first",
            Self::HostedOnly => "hosted-only",
        }
    }
}

impl std::str::FromStr for RoutingPolicy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|policy| policy.as_str() == text);
        found.ok_or_else(|| format!("{text:?} is no policy: local-first, local-only, hosted-first or hosted-only"))
    }
}

/// What a caller may use; `None` means no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CallerLimits {
    pub requests_per_minute: Option<u32>,
    /// Prompt and answer together.
    pub tokens_per_minute: Option<u32>,
    pub concurrent_requests: Option<u32>,
    pub daily: Budget,
    pub monthly: Budget,
    pub storage: StorageQuota,
}

/// What a caller may store on the server; `None` means no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StorageQuota {
    /// All uploaded files together.
    pub bytes: Option<u64>,
    /// Memberships of files in collections.
    pub documents: Option<u64>,
}

impl StorageQuota {
    /// This quota, with `other` filling in the fields it leaves unset.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self { bytes: self.bytes.or(other.bytes), documents: self.documents.or(other.documents) }
    }
}

/// What may be spent in a calendar day or month (UTC).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Budget {
    /// Millionths of a US dollar.
    pub micro_usd: Option<u64>,
    pub compute: Option<Duration>,
}

/// A caller's limits, and what is left of them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Standing {
    /// The caller's own limits, or the per-caller defaults where it has none.
    pub limits: CallerLimits,
    /// Left of the current minute.
    pub allowance: Allowance,
    /// Left of the caller's daily and monthly budgets. The server's own budget is not shown: it would reveal what
    /// others spend.
    pub daily_left: Budget,
    pub monthly_left: Budget,
}

impl Caller {
    /// The caller of a server without authentication: may do everything, without limits.
    pub fn local() -> Self {
        Self {
            id: LOCAL.to_owned(),
            key_id: None,
            scopes: Scope::ALL.into(),
            allowed_models: None,
            local_only: false,
            policy: None,
            limits: CallerLimits::default(),
        }
    }
}
