//! `hearth keys`: creates, lists and revokes API keys. A server on the same data directory, or every server that shares the database,
//! notices within a second.

use std::{
    collections::BTreeSet,
    io::{self, Write},
    num::NonZeroU32,
    str::FromStr,
    time::Duration,
};

use anyhow::{Context, ensure};
use clap::Subcommand;
use comfy_table::{Table, presets::NOTHING};
use hearth_domain::{Budget, CallerLimits, RoutingPolicy, Scope, StorageQuota};
use jiff::{Span, Timestamp, civil::Date, tz::TimeZone};
use serde_json::{Value, json};

use crate::{
    config::{KeyPlace, KeyPlaceSettings},
    service::callers::{KeySecret, NewKey, OTHER_SECRET, Rights, id_of},
    store::{KeyTable, StoredKey, create_directory},
};

const NAME_CHARS_MAX: usize = 64;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    place: KeyPlaceSettings,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a key and print it, this once
    Create(Box<Create>),
    /// Which keys there are
    List {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// End keys, by what `list` calls them
    Revoke {
        #[arg(required = true, value_name = "ID")]
        ids: Vec<String>,
    },
}

#[derive(Debug, clap::Args)]
struct Create {
    /// Whose key it is: several keys of one caller share documents and limits [default: a caller of its own]
    #[arg(long, value_name = "NAME")]
    caller: Option<String>,
    /// What it is for, to know it by in the list
    #[arg(long, default_value = "", hide_default_value = true, value_name = "TEXT")]
    name: String,
    /// What it may do: chat, embed, documents, admin
    #[arg(long, default_value = "chat,embed,documents", value_name = "SCOPES", value_delimiter = ',')]
    scopes: Vec<Scope>,
    /// Models that it may name; several with commas [default: all]
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    models: Vec<String>,
    /// Requests in a minute
    #[arg(long, value_name = "N")]
    rpm: Option<NonZeroU32>,
    /// Tokens in a minute, prompts and answers together
    #[arg(long, value_name = "N")]
    tpm: Option<NonZeroU32>,
    /// Requests at the same time
    #[arg(long, value_name = "N")]
    concurrent: Option<NonZeroU32>,
    /// US dollars in a day
    #[arg(long, value_name = "USD", allow_negative_numbers = true)]
    daily_usd: Option<Money>,
    /// US dollars in a month
    #[arg(long, value_name = "USD", allow_negative_numbers = true)]
    monthly_usd: Option<Money>,
    /// Seconds of computing in a day
    #[arg(long, value_name = "SECONDS")]
    daily_compute: Option<NonZeroU32>,
    /// Seconds of computing in a month
    #[arg(long, value_name = "SECONDS")]
    monthly_compute: Option<NonZeroU32>,
    /// MiB of uploaded files that its caller may keep
    #[arg(long, value_name = "MIB")]
    storage_mib: Option<u32>,
    /// Documents that its caller may have
    #[arg(long, value_name = "N")]
    documents: Option<u32>,
    /// Nothing that is sent with it leaves this machine
    #[arg(long)]
    local_only: bool,
    /// Which side serves: local-first, local-only, hosted-first or hosted-only [default: the server's own]
    #[arg(long, value_name = "POLICY")]
    policy: Option<RoutingPolicy>,
    /// When it ends: after a time such as 12h or 30d, or on a day such as 2027-01-31, in UTC [default: never]
    #[arg(long, value_name = "WHEN")]
    expires: Option<Expiry>,
    /// As JSON, with what it allows
    #[arg(long)]
    json: bool,
}

/// Millionths of a US dollar.
#[derive(Clone, Copy, Debug)]
struct Money(u64);

impl FromStr for Money {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const MOST: f64 = 1e9;
        let usd: f64 = text.parse().map_err(|_| format!("{text:?} is no amount of US dollars, such as 2.50"))?;
        if (0.0..=MOST).contains(&usd) {
            Ok(Self((usd * 1e6).round() as u64))
        } else {
            Err(format!("must be from 0 to {MOST}"))
        }
    }
}

/// Milliseconds since 1970.
#[derive(Clone, Copy, Debug)]
struct Expiry(i64);

impl FromStr for Expiry {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let now = Timestamp::now();
        let at = if let Ok(instant) = text.parse::<Timestamp>() {
            Some(instant)
        } else if let Ok(day) = text.parse::<Date>() {
            day.to_zoned(TimeZone::UTC).ok().map(|day| day.timestamp())
        } else {
            let span: Option<Span> = text.parse().ok();
            span.and_then(|span| now.to_zoned(TimeZone::UTC).checked_add(span).ok()).map(|then| then.timestamp())
        };
        let at =
            at.ok_or_else(|| format!("{text:?} is neither a time such as 12h or 30d nor a day such as 2027-01-31"))?;
        if at > now { Ok(Self(at.as_millisecond())) } else { Err(format!("{text} is over already")) }
    }
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let place = args.place.place()?;
    let mut out = io::stdout().lock();
    match args.command {
        Command::Create(wanted) => create(&place, *wanted, &mut out),
        Command::List { json } => list(&place, json, &mut out),
        Command::Revoke { ids } => revoke(&place, &ids),
    }
}

fn table(place: &KeyPlace) -> anyhow::Result<Box<KeyTable>> {
    Ok(match &place.shared {
        Some(shared) => KeyTable::connect(shared)?,
        None => KeyTable::open(&place.data_dir)?,
    })
}

fn create(place: &KeyPlace, wanted: Create, out: &mut dyn Write) -> anyhow::Result<()> {
    let NewKey { id, key } = NewKey::random().context("asking for random numbers")?;
    let caller = wanted.caller.clone().unwrap_or_else(|| id.clone());
    // Ids of tokens' callers contain a colon.
    let is_plain = |character: char| character.is_ascii_alphanumeric() || "._@-".contains(character);
    ensure!(
        (1..=NAME_CHARS_MAX).contains(&caller.len()) && caller.chars().all(is_plain),
        "--caller {caller:?}: use 1 to {NAME_CHARS_MAX} letters, digits, and . _ @ -"
    );
    ensure!(
        wanted.name.chars().count() <= NAME_CHARS_MAX && !wanted.name.chars().any(char::is_control),
        "--name: use at most {NAME_CHARS_MAX} characters, on one line"
    );
    ensure!(wanted.models.iter().all(|model| !model.is_empty()), "--models: a name is empty");
    let table = table(place)?;
    let secret_place = place.secret_file.as_deref().unwrap_or(&place.data_dir);
    if place.secret_file.is_none() {
        // Where servers share a database, nothing else has made the directory.
        create_directory(secret_place)?;
    }
    let secret = KeySecret::load_or_make(secret_place)?;
    ensure!(table.agrees_on_secret(&secret.check_value())?, OTHER_SECRET);
    let stored = StoredKey {
        id,
        caller,
        hash: secret.hash(&key),
        rights: wanted.rights().to_json(),
        created_ms: Timestamp::now().as_millisecond(),
        expires_ms: wanted.expires.map(|Expiry(at)| at),
        revoked_ms: None,
        last_used_ms: None,
        name: wanted.name,
    };
    ensure!(table.insert(&stored)?, "there is such a key already; try again");
    if wanted.json {
        let mut answer = description(&stored)?;
        answer["key"] = json!(key);
        writeln!(out, "{answer:#}")?;
    } else {
        writeln!(out, "{key}")?;
    }
    // Standard output carries the key alone, for scripts.
    writeln!(
        io::stderr(),
        "This is {}, of the caller {}. Keep the key now: it is not stored and cannot be shown again.",
        stored.id,
        stored.caller
    )?;
    Ok(())
}

impl Create {
    fn rights(&self) -> Rights {
        let compute = |seconds: Option<NonZeroU32>| seconds.map(|seconds| Duration::from_secs(seconds.get().into()));
        let budget = |usd: Option<Money>, seconds| Budget {
            micro_usd: usd.map(|Money(micro_usd)| micro_usd),
            compute: compute(seconds),
        };
        Rights {
            scopes: self.scopes.iter().copied().collect::<BTreeSet<_>>(),
            models: (!self.models.is_empty()).then(|| self.models.clone()),
            local_only: self.local_only,
            policy: self.policy,
            limits: CallerLimits {
                requests_per_minute: self.rpm.map(NonZeroU32::get),
                tokens_per_minute: self.tpm.map(NonZeroU32::get),
                concurrent_requests: self.concurrent.map(NonZeroU32::get),
                daily: budget(self.daily_usd, self.daily_compute),
                monthly: budget(self.monthly_usd, self.monthly_compute),
                storage: StorageQuota {
                    bytes: self.storage_mib.map(|mib| u64::from(mib) << 20),
                    documents: self.documents.map(u64::from),
                },
            },
        }
    }
}

fn list(place: &KeyPlace, json: bool, out: &mut dyn Write) -> anyhow::Result<()> {
    let keys = table(place)?.list()?;
    if json {
        let keys = keys.iter().map(description).collect::<anyhow::Result<Vec<_>>>()?;
        writeln!(out, "{:#}", json!({ "keys": keys }))?;
        return Ok(());
    }
    if keys.is_empty() {
        writeln!(io::stderr(), "There is no key yet: `hearth keys create` makes one.")?;
        return Ok(());
    }
    let mut table = Table::new();
    table.load_style(NOTHING).set_header([
        "ID",
        "CALLER",
        "NAME",
        "STATE",
        "SCOPES",
        "RESTRICTIONS",
        "EXPIRES",
        "LAST USED",
    ]);
    for key in &keys {
        let rights = rights_of(key)?;
        let scopes: Vec<_> = rights.scopes.iter().map(|scope| scope.as_str()).collect();
        table.add_row([
            key.id.clone(),
            key.caller.clone(),
            key.name.clone(),
            state(key).to_owned(),
            scopes.join(","),
            restrictions(&rights),
            key.expires_ms.map_or_else(|| "never".to_owned(), time),
            key.last_used_ms.map_or_else(|| "never".to_owned(), time),
        ]);
    }
    writeln!(out, "{table}")?;
    Ok(())
}

fn revoke(place: &KeyPlace, ids: &[String]) -> anyhow::Result<()> {
    let table = table(place)?;
    for id in ids {
        // A whole key will do, too.
        let id = id_of(id).unwrap_or(id);
        let has_ended = table.revoke(id).context("`hearth keys list` shows which there are")?;
        writeln!(io::stderr(), "{id} {}.", if has_ended { "is revoked" } else { "was revoked before" })?;
    }
    Ok(())
}

fn rights_of(key: &StoredKey) -> anyhow::Result<Rights> {
    Rights::from_json(&key.rights).map_err(|wrong| anyhow::anyhow!("what {} allows cannot be read: {wrong}", key.id))
}

fn state(key: &StoredKey) -> &'static str {
    match key.revoked_ms {
        Some(_) => "revoked",
        None if !key.is_valid() => "expired",
        None => "valid",
    }
}

/// In UTC, to the second.
fn time(milliseconds: i64) -> String {
    Timestamp::from_second(milliseconds.div_euclid(1000)).map_or_else(|_| milliseconds.to_string(), |at| at.to_string())
}

fn restrictions(rights: &Rights) -> String {
    fn spent(budget: Budget, per: &str) -> Vec<String> {
        let usd = budget.micro_usd.map(|micro_usd| format!("{} USD/{per}", micro_usd as f64 / 1e6));
        let compute = budget.compute.map(|compute| format!("{} s computing/{per}", compute.as_secs()));
        usd.into_iter().chain(compute).collect()
    }
    let limits = &rights.limits;
    let said = [
        rights.local_only.then(|| "local only".to_owned()),
        rights.policy.map(|policy| policy.as_str().to_owned()),
        rights.models.as_ref().map(|models| format!("models {}", models.join(","))),
        limits.requests_per_minute.map(|number| format!("{number} requests/min")),
        limits.tokens_per_minute.map(|number| format!("{number} tokens/min")),
        limits.concurrent_requests.map(|number| format!("{number} at a time")),
        limits.storage.bytes.map(|bytes| format!("{} MiB stored", bytes >> 20)),
        limits.storage.documents.map(|number| format!("{number} documents")),
    ];
    let said: Vec<_> =
        said.into_iter().flatten().chain(spent(limits.daily, "day")).chain(spent(limits.monthly, "month")).collect();
    if said.is_empty() { "none".to_owned() } else { said.join(", ") }
}

/// Everything but the key and its hash.
fn description(key: &StoredKey) -> anyhow::Result<Value> {
    let rights: Value = serde_json::from_str(&key.rights).with_context(|| format!("what {} allows", key.id))?;
    let times = |at: Option<i64>| at.map(time);
    Ok(json!({
        "id": key.id,
        "caller": key.caller,
        "name": key.name,
        "state": state(key),
        "rights": rights,
        "created": time(key.created_ms),
        "expires": times(key.expires_ms),
        "revoked": times(key.revoked_ms),
        "last_used": times(key.last_used_ms),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_ends_after_a_time_or_on_a_day() {
        let in_hours = |text: &str| {
            let Expiry(at) = text.parse().expect(text);
            (at - Timestamp::now().as_millisecond() + 1000) / 3_600_000
        };
        assert_eq!((in_hours("12h"), in_hours("30d"), in_hours("1 day")), (12, 720, 24));
        let Expiry(at) = "2999-01-01".parse().unwrap();
        assert_eq!(time(at), "2999-01-01T00:00:00Z");
        for wrong in ["", "soon", "-3d", "0s", "2020-01-01", "12"] {
            assert!(wrong.parse::<Expiry>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn money_is_counted_in_millionths() {
        let micro_usd = |text: &str| text.parse::<Money>().map(|Money(micro_usd)| micro_usd);
        assert_eq!((micro_usd("2.5"), micro_usd("0"), micro_usd("0.000001")), (Ok(2_500_000), Ok(0), Ok(1)));
        for wrong in ["", "-1", "NaN", "inf", "1e12", "a lot"] {
            assert!(micro_usd(wrong).is_err(), "{wrong}");
        }
    }
}
