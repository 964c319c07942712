//! `hearth usage`: the usage and cost of requests, as a table, as JSON, in bars or as a picture.
//!
//! The command asks the server that owns the data directory; if none runs, it reads the ledger there.

use std::{io::Write, path::PathBuf};

use comfy_table::{CellAlignment, Table, presets::NOTHING};
use serde_json::Value;

use super::{client::running_server, usage_plot};
use crate::{
    config::{Config, Settings},
    metering::ledger::Ledger,
    service::spending::usage_of_store,
    store::{Store, StoreError},
    telemetry,
    wire::spending::UsageParameters,
};

/// Characters of the longest bar.
const BAR_WIDTH: usize = 30;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// From this date, time (RFC 3339) or Unix second on [default: 30 days ago]
    #[arg(long, value_name = "TIME")]
    from: Option<String>,
    /// Up to this date, which is counted in, time or Unix second [default: now]
    #[arg(long, value_name = "TIME")]
    to: Option<String>,
    /// Add up by day, caller, model or provider; several with commas
    #[arg(long, value_name = "WHAT", default_value = "day")]
    group_by: String,
    /// Of this caller alone
    #[arg(long, value_name = "CALLER")]
    caller: Option<String>,
    /// As JSON
    #[arg(long)]
    json: bool,
    /// Draw cost and requests of each group as an SVG
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let Args { from, to, group_by, caller, json, plot, mut settings } = args;
    settings.log.get_or_insert_with(|| "warn".to_owned());
    let config = Config::load(settings)?;
    telemetry::init_logs(&config.log_filter, config.log_format)?;
    let report = fetch(&config, UsageParameters { from, to, group_by: Some(group_by), caller })?;
    let mut out = std::io::stdout();
    if let Some(path) = plot {
        usage_plot::draw(&bars(&report), &path)?;
        writeln!(std::io::stderr(), "Drew {}.", path.display())?;
    }
    if json {
        writeln!(out, "{report:#}")?;
    } else if report["data"].as_array().is_none_or(Vec::is_empty) {
        writeln!(std::io::stderr(), "No request has ended in this time.")?;
    } else {
        writeln!(out, "{}", table(&report))?;
    }
    Ok(())
}

/// The report, from the server that owns the data directory or from the directory itself.
fn fetch(config: &Config, parameters: UsageParameters) -> anyhow::Result<Value> {
    let opened = match &config.shared {
        Some(shared) => Store::connect(shared, &config.data_dir, None),
        None => Store::open(&config.data_dir),
    };
    match opened {
        Ok(store) => {
            let ledger = Ledger::open(store.clone())?;
            let report = usage_of_store(&ledger, &parameters)?;
            drop(ledger);
            // Servers that share it need not count this program any longer.
            store.close();
            Ok(serde_json::to_value(report)?)
        }
        Err(error @ StoreError::Locked { .. }) => {
            let Some(client) = running_server(config)? else { return Err(error.into()) };
            let mut query = url::form_urlencoded::Serializer::new(String::new());
            let UsageParameters { from, to, group_by, caller } = parameters;
            for (name, value) in [("from", from), ("to", to), ("group_by", group_by), ("caller", caller)] {
                if let Some(value) = value {
                    query.append_pair(name, &value);
                }
            }
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(client.get(&format!("/v1/usage?{}", query.finish())))
        }
        Err(error) => Err(error.into()),
    }
}

fn entries(report: &Value) -> &[Value] {
    report["data"].as_array().map(Vec::as_slice).unwrap_or_default()
}

/// An entry's keys, one after the other.
fn names(report: &Value, entry: &Value) -> Vec<String> {
    let keys = report["group_by"].as_array().map(Vec::as_slice).unwrap_or_default();
    let name = |key: &Value| entry[key.as_str().unwrap_or_default()].as_str().unwrap_or_default().to_owned();
    // A request that used no model has none.
    keys.iter().map(name).map(|name| if name.is_empty() { "-".to_owned() } else { name }).collect()
}

/// A group's bar.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Bar {
    pub(super) name: String,
    pub(super) requests: u64,
    pub(super) cost_micro_usd: u64,
}

fn bars(report: &Value) -> Vec<Bar> {
    let number = |entry: &Value, key: &str| entry[key].as_u64().unwrap_or_default();
    let bar = |entry: &Value| Bar {
        name: names(report, entry).join(" "),
        requests: number(entry, "requests"),
        cost_micro_usd: number(entry, "cost_micro_usd"),
    };
    entries(report).iter().map(bar).collect()
}

fn table(report: &Value) -> Table {
    let mut table = Table::new();
    let keys = report["group_by"].as_array().map(Vec::as_slice).unwrap_or_default();
    let figures = ["REQUESTS", "NOT FINISHED", "INPUT", "OUTPUT", "LATENCY", "COMPUTE", "COST", ""];
    let keys: Vec<String> = keys.iter().map(|key| key.as_str().unwrap_or_default().to_uppercase()).collect();
    let num_keys = keys.len();
    table.load_style(NOTHING).set_header(keys.into_iter().chain(figures.map(str::to_owned)));
    let most = bars(report).iter().map(|bar| bar.requests).max().unwrap_or_default();
    for entry in entries(report) {
        table.add_row(names(report, entry).into_iter().chain(figures_of(entry, most)));
    }
    if entries(report).len() > 1 && num_keys > 0 {
        let all = std::iter::once("all".to_owned()).chain(std::iter::repeat_n(String::new(), num_keys - 1));
        table.add_row(all.chain(figures_of(&report["total"], 0)));
    }
    for column in table.column_iter_mut().skip(num_keys).take(figures.len() - 1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// The figures of a group; the last is its bar, scaled to its share of the `most` requests.
fn figures_of(entry: &Value, most: u64) -> [String; 8] {
    let number = |key: &str| entry[key].as_u64().unwrap_or_default();
    let decimal = |key: &str| entry[key].as_f64().unwrap_or_default();
    let requests = number("requests");
    let bar = requests.saturating_mul(BAR_WIDTH as u64).div_ceil(most.max(1));
    let micro_usd = number("cost_micro_usd");
    [
        requests.to_string(),
        requests.saturating_sub(number("finished")).to_string(),
        number("prompt_tokens").to_string(),
        number("completion_tokens").to_string(),
        format!("{:.0} ms", decimal("avg_latency_ms")),
        format!("{:.1} s", decimal("compute_seconds")),
        format!("${}.{:06}", micro_usd / 1_000_000, micro_usd % 1_000_000),
        if most == 0 { String::new() } else { "▇".repeat(usize::try_from(bar).unwrap_or(BAR_WIDTH)) },
    ]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn entry(day: &str, requests: u64) -> Value {
        json!({"day": day, "model": "", "requests": requests, "finished": 1, "prompt_tokens": 3, "completion_tokens": 4,
               "avg_latency_ms": 12.3, "compute_seconds": 0.5, "cost_micro_usd": 1_234_567})
    }

    #[test]
    fn each_group_has_a_line_and_all_have_one() {
        let report = json!({
            "group_by": ["day", "model"],
            "data": [entry("2026-01-30", 2), entry("2026-01-31", 4)],
            "total": entry("", 6),
        });
        let shown = table(&report).to_string();
        let lines: Vec<&str> = shown.lines().collect();
        assert_eq!(lines.len(), 4, "{shown}");
        assert!(lines[1].contains("$1.234567") && lines[1].contains("12 ms"), "{shown}");
        assert_eq!(lines[1].matches('▇').count() * 2, lines[2].matches('▇').count(), "{shown}");
        assert!(lines[3].trim_start().starts_with("all"), "{shown}");
        assert_eq!(bars(&report)[1].name, "2026-01-31 -");
    }
}
