//! What was measured, as a table for people and JSON for programs.

use comfy_table::{CellAlignment, Table, presets::ASCII_MARKDOWN};
use hearth_domain::ModelInfo;
use hearth_kernels::device::{cpu_features, threads};
use serde_json::{Value, json};

use super::Workload;

/// Samples of one way of measuring, one per counted repetition; empty for what that way does not measure.
#[derive(Clone, Debug, Default)]
pub(super) struct Measured {
    /// Prompt tokens per second, to the first token.
    pub(super) prefill: Vec<f64>,
    /// Tokens per second of one stream, from the first token to the last.
    pub(super) decode: Vec<f64>,
    /// Tokens per second of all streams together, from the first submission to the last token.
    pub(super) concurrent_decode: Vec<f64>,
    /// Milliseconds from submission to the first token of the prefill.
    pub(super) first_token_ms: Vec<f64>,
}

impl Measured {
    /// Adds one prefill, from its seconds to the first token.
    pub(super) fn record_prefill(&mut self, workload: Workload, first_token: f64) {
        self.first_token_ms.push(first_token * 1000.0);
        self.prefill.push(workload.prompt_tokens as f64 / first_token);
    }

    /// Adds one stream, from its seconds between the first token and the last.
    pub(super) fn record_decode(&mut self, workload: Workload, seconds: f64) {
        self.decode.push((workload.decode_tokens - 1) as f64 / seconds);
    }

    /// Adds one repetition of several concurrent streams, which took this many seconds together.
    pub(super) fn record_concurrent(&mut self, workload: Workload, seconds: f64) {
        self.concurrent_decode.push((workload.parallel * workload.decode_tokens) as f64 / seconds);
    }

    /// Adds the samples of `other` after these.
    pub(super) fn append(&mut self, other: Self) {
        self.prefill.extend(other.prefill);
        self.decode.extend(other.decode);
        self.concurrent_decode.extend(other.concurrent_decode);
        self.first_token_ms.extend(other.first_token_ms);
    }
}

const BASELINE: &str = "candle-transformers";

/// A figure's name and, for each way of measuring it, the samples.
pub(super) type Row = (String, Vec<(&'static str, Vec<f64>)>);

#[derive(Clone, Debug)]
pub(super) struct Report {
    model: ModelInfo,
    workload: Workload,
    ways: Vec<(&'static str, Measured)>,
}

impl Report {
    pub(super) fn new(
        model: &ModelInfo,
        workload: Workload,
        in_process: Measured,
        over_http: Option<Measured>,
        baseline: Option<Measured>,
    ) -> Self {
        let mut ways = vec![("in-process", in_process)];
        ways.extend(over_http.map(|measured| ("http", measured)));
        ways.extend(baseline.map(|measured| (BASELINE, measured)));
        Self { model: model.clone(), workload, ways }
    }

    /// The figures' medians: name, unit-bearing column, and one value for each way of measuring.
    pub(super) fn rows(&self) -> Vec<Row> {
        let Workload { prompt_tokens, decode_tokens, depth, parallel, .. } = self.workload;
        let after = if depth > 1 { format!(" after {depth}") } else { String::new() };
        let row = |name: String, samples: fn(&Measured) -> &Vec<f64>| {
            let ways = self.ways.iter().map(|(way, measured)| (*way, samples(measured).clone()));
            (name, ways.filter(|(_, samples)| !samples.is_empty()).collect())
        };
        let mut rows = vec![
            row(format!("prefill {prompt_tokens}"), |measured| &measured.prefill),
            row(format!("decode {decode_tokens}{after}"), |measured| &measured.decode),
            row(format!("decode {decode_tokens} x {parallel} streams"), |measured| &measured.concurrent_decode),
        ];
        rows.retain(|(_, ways): &Row| !ways.is_empty());
        rows
    }

    pub(super) fn title(&self) -> String {
        format!(
            "{} ({}, {:.2} GB, {} threads)",
            self.model.id,
            self.model.quantization,
            self.model.size_bytes as f64 / 1e9,
            threads()
        )
    }

    pub(super) fn to_table(&self) -> String {
        let mut table = Table::new();
        table.load_style(ASCII_MARKDOWN);
        table.set_header(vec!["measured", "where", "tokens/s (median)", "min", "max"]);
        for (name, ways) in self.rows() {
            for (way, samples) in ways {
                let [low, middle, high] = spread(&samples).map(|value| format!("{value:.1}"));
                table.add_row(vec![name.clone(), way.to_owned(), middle, low, high]);
            }
        }
        for column in table.column_iter_mut().skip(2) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        let ratios = self.ratios_to_baseline();
        let ratios = match ratios.is_empty() {
            true => String::new(),
            false => format!("\n\nHearth to candle-transformers: {}", ratios.join(", ")),
        };
        format!("{}\n{table}{ratios}", self.title())
    }

    /// Ratios of the medians of prefill and decode, where both were measured.
    fn ratios_to_baseline(&self) -> Vec<String> {
        let (_, ours) = &self.ways[0];
        let Some((_, theirs)) = self.ways.iter().find(|(way, _)| *way == BASELINE) else { return Vec::new() };
        let pairs = [("prefill", &ours.prefill, &theirs.prefill), ("decode", &ours.decode, &theirs.decode)];
        let measured = pairs.into_iter().filter(|(_, ours, theirs)| !ours.is_empty() && !theirs.is_empty());
        measured.map(|(name, ours, theirs)| format!("{name} {:.2}", median(ours) / median(theirs))).collect()
    }

    pub(super) fn to_json(&self) -> String {
        let workload = self.workload;
        let (_, in_process) = &self.ways[0];
        let mut report = json!({
            "model": self.model.id,
            "architecture": self.model.architecture,
            "quantization": self.model.quantization,
            "file_bytes": self.model.size_bytes,
            "version": env!("CARGO_PKG_VERSION"),
            "cpu_features": cpu_features().to_string(),
            "threads": threads(),
            "prompt_tokens": workload.prompt_tokens,
            "decode_tokens": workload.decode_tokens,
            "depth": workload.depth,
            "parallel": workload.parallel,
            "repetitions": workload.repetitions,
        });
        let Value::Object(fields) = &mut report else { return report.to_string() };
        fields.extend(figures(in_process));
        for (way, measured) in &self.ways[1..] {
            fields.insert(way.replace('-', "_"), Value::Object(figures(measured)));
        }
        serde_json::to_string_pretty(&report).unwrap_or_else(|_| report.to_string())
    }
}

/// Medians and samples of what was measured.
fn figures(measured: &Measured) -> serde_json::Map<String, Value> {
    let mut fields = serde_json::Map::new();
    let mut all_samples = serde_json::Map::new();
    for (name, samples) in [
        ("prefill_tokens_per_second", &measured.prefill),
        ("decode_tokens_per_second", &measured.decode),
        ("concurrent_decode_tokens_per_second", &measured.concurrent_decode),
        ("time_to_first_token_ms", &measured.first_token_ms),
    ] {
        if !samples.is_empty() {
            fields.insert(name.to_owned(), json!(median(samples)));
            all_samples.insert(name.to_owned(), json!(samples));
        }
    }
    if !measured.concurrent_decode.is_empty() && !measured.decode.is_empty() {
        let speedup = median(&measured.concurrent_decode) / median(&measured.decode);
        fields.insert("concurrent_speedup".to_owned(), json!(speedup));
    }
    fields.insert("samples".to_owned(), Value::Object(all_samples));
    fields
}

fn median(samples: &[f64]) -> f64 {
    spread(samples)[1]
}

/// Smallest, median and largest; zeros without samples.
pub(super) fn spread(samples: &[f64]) -> [f64; 3] {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.as_slice() {
        [] => [0.0; 3],
        [low, .., high] => {
            let middle = sorted.len() / 2;
            let median =
                if sorted.len() % 2 == 1 { sorted[middle] } else { f64::midpoint(sorted[middle - 1], sorted[middle]) };
            [*low, median, *high]
        }
        [only] => [*only; 3],
    }
}

#[cfg(test)]
mod tests {
    use hearth_domain::ModelKind;

    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(spread(&[3.0, 1.0, 2.0]), [1.0, 2.0, 3.0]);
        assert_eq!(spread(&[4.0, 1.0, 2.0, 3.0]), [1.0, 2.5, 4.0]);
        assert_eq!(spread(&[5.0]), [5.0; 3]);
        assert_eq!(spread(&[]), [0.0; 3]);
    }

    #[test]
    fn what_is_not_measured_has_no_row_and_no_figure() {
        let workload = Workload {
            prompt_tokens: 4,
            decode_tokens: 3,
            depth: 7,
            parallel: 2,
            repetitions: 1,
            prefill: false,
            decode: true,
            streams: false,
        };
        let model = ModelInfo {
            id: "m".to_owned(),
            kind: ModelKind::Chat,
            architecture: "llama".to_owned(),
            context_length: 16,
            vocab_size: 8,
            embedding_length: None,
            parameters: 1,
            quantization: "Q4_K".to_owned(),
            size_bytes: 1,
            supports_tools: false,
            supports_reasoning: false,
            created: 0,
            fingerprint: String::new(),
        };
        let mut measured = Measured::default();
        measured.record_decode(workload, 0.5);
        let report = Report::new(&model, workload, measured.clone(), None, Some(measured));
        assert_eq!(report.rows().into_iter().map(|(name, _)| name).collect::<Vec<_>>(), ["decode 3 after 7"]);
        assert_eq!(report.ratios_to_baseline(), ["decode 1.00"]);
        let json: Value = serde_json::from_str(&report.to_json()).unwrap();
        assert_eq!(json["samples"], json!({"decode_tokens_per_second": [4.0]}));
        assert_eq!(json["depth"], 7);
    }
}
