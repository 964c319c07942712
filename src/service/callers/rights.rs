//! The rights of a key or a token, as JSON in the store and in tokens, and as a [`Caller`].
//!
//! Both are read strictly where they restrict: an unknown limit is an error, because ignoring it would allow more than
//! was intended.

use std::{
    collections::BTreeSet,
    num::{NonZeroU32, NonZeroU64},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use hearth_domain::{Budget, Caller, CallerLimits, RoutingPolicy, Scope, StorageQuota};

/// A [`Caller`] without a name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rights {
    pub scopes: BTreeSet<Scope>,
    /// Models that may be named; `None` means all.
    pub models: Option<Vec<String>>,
    pub local_only: bool,
    pub policy: Option<RoutingPolicy>,
    pub limits: CallerLimits,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RightsJson {
    scopes: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    models: Option<Vec<String>>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    local_only: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<String>,
    limits: LimitsJson,
}

/// Limits in JSON. A limit of zero is an error, because it would refuse every request, and scopes exist for that; a
/// budget of zero money is allowed.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct LimitsJson {
    #[serde(skip_serializing_if = "Option::is_none")]
    requests_per_minute: Option<NonZeroU32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tokens_per_minute: Option<NonZeroU32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    concurrent_requests: Option<NonZeroU32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    daily_micro_usd: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    monthly_micro_usd: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    daily_compute_seconds: Option<NonZeroU64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    monthly_compute_seconds: Option<NonZeroU64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    storage_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    documents: Option<u64>,
}

/// The limits of a token.
pub(super) fn limits_of(json: Map<String, Value>) -> Result<CallerLimits, String> {
    serde_json::from_value::<LimitsJson>(json.into()).map(Into::into).map_err(|error| error.to_string())
}

impl From<LimitsJson> for CallerLimits {
    fn from(json: LimitsJson) -> Self {
        let number = |number: Option<NonZeroU32>| number.map(NonZeroU32::get);
        let compute = |seconds: Option<NonZeroU64>| seconds.map(|seconds| Duration::from_secs(seconds.get()));
        Self {
            requests_per_minute: number(json.requests_per_minute),
            tokens_per_minute: number(json.tokens_per_minute),
            concurrent_requests: number(json.concurrent_requests),
            daily: Budget { micro_usd: json.daily_micro_usd, compute: compute(json.daily_compute_seconds) },
            monthly: Budget { micro_usd: json.monthly_micro_usd, compute: compute(json.monthly_compute_seconds) },
            storage: StorageQuota { bytes: json.storage_bytes, documents: json.documents },
        }
    }
}

impl From<CallerLimits> for LimitsJson {
    fn from(limits: CallerLimits) -> Self {
        let number = |number: Option<u32>| number.and_then(NonZeroU32::new);
        let seconds = |compute: Option<Duration>| compute.and_then(|compute| NonZeroU64::new(compute.as_secs()));
        Self {
            requests_per_minute: number(limits.requests_per_minute),
            tokens_per_minute: number(limits.tokens_per_minute),
            concurrent_requests: number(limits.concurrent_requests),
            daily_micro_usd: limits.daily.micro_usd,
            monthly_micro_usd: limits.monthly.micro_usd,
            daily_compute_seconds: seconds(limits.daily.compute),
            monthly_compute_seconds: seconds(limits.monthly.compute),
            storage_bytes: limits.storage.bytes,
            documents: limits.storage.documents,
        }
    }
}

impl Rights {
    /// # Errors
    /// If it is not such JSON, or contains a word that this version does not know.
    pub fn from_json(json: &str) -> Result<Self, String> {
        // An array would be read as the fields in order.
        let object: Map<String, Value> = serde_json::from_str(json).map_err(|error| error.to_string())?;
        let RightsJson { scopes, models, local_only, policy, limits } =
            serde_json::from_value(Value::Object(object)).map_err(|error| error.to_string())?;
        Ok(Self {
            scopes: scopes.iter().map(|scope| scope.parse()).collect::<Result<_, _>>()?,
            models,
            local_only,
            policy: policy.map(|policy| policy.parse()).transpose()?,
            limits: limits.into(),
        })
    }

    pub fn to_json(&self) -> String {
        let json = RightsJson {
            scopes: self.scopes.iter().map(|scope| scope.as_str().to_owned()).collect(),
            models: self.models.clone(),
            local_only: self.local_only,
            policy: self.policy.map(|policy| policy.as_str().to_owned()),
            limits: self.limits.into(),
        };
        serde_json::to_string(&json).expect("strings and numbers are JSON")
    }

    /// A caller's.
    pub fn of(caller: &Caller) -> Self {
        let Caller { id: _, key_id: _, scopes, allowed_models, local_only, policy, limits } = caller.clone();
        Self { scopes, models: allowed_models, local_only, policy, limits }
    }

    pub fn caller(self, id: String, key_id: Option<String>) -> Caller {
        let Self { scopes, models, local_only, policy, limits } = self;
        Caller { id, key_id, scopes, allowed_models: models, local_only, policy, limits }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rights_are_read_as_they_were_written() {
        let rights = Rights {
            scopes: [Scope::Chat, Scope::Admin].into(),
            models: Some(vec!["a".to_owned()]),
            local_only: true,
            policy: Some(RoutingPolicy::LocalOnly),
            limits: CallerLimits {
                requests_per_minute: Some(60),
                tokens_per_minute: Some(1000),
                concurrent_requests: Some(4),
                daily: Budget { micro_usd: Some(0), compute: Some(Duration::from_secs(60)) },
                monthly: Budget { micro_usd: Some(1_500_000), compute: None },
                storage: StorageQuota { bytes: Some(0), documents: Some(10) },
            },
        };
        assert_eq!(Rights::from_json(&rights.to_json()).unwrap(), rights);
        assert_eq!(Rights::from_json(&Rights::default().to_json()).unwrap(), Rights::default());
    }

    #[test]
    fn what_nobody_knows_allows_nothing() {
        for json in [
            "",
            "[]",
            r#"{"scopes": ["root"]}"#,
            r#"{"scopes": ["chat"], "only_local": true}"#,
            r#"{"limits": {"requests_per_second": 1}}"#,
            r#"{"limits": {"requests_per_minute": 0}}"#,
            r#"{"limits": {"daily_micro_usd": -1}}"#,
            r#"{"policy": "cheapest"}"#,
        ] {
            assert!(Rights::from_json(json).is_err(), "{json}");
        }
    }
}
