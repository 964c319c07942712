//! `hearth bench index`: recall against queries per second of the vector index, on one thread.
//!
//! The vectors come from a file or are generated: clusters of vectors that vary along a few directions each, one in ten
//! nearly equal to another, like vectors of documents. The exact scan defines the right results. Filters let a share of
//! the vectors through, drawn regardless of their position.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use candle_core::{DType, Device, Tensor};
use comfy_table::{CellAlignment, Table, presets::ASCII_MARKDOWN};
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{index_plot, output::OutputArgs};
use hearth_kernels::index::{GraphParameters, Hit, Keys, SearchParameters, VectorIndex};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Vectors to index, a file of numpy.save with [n, dimensions] floats, instead of made ones
    #[arg(long, value_name = "FILE")]
    vectors: Option<PathBuf>,
    /// Vectors to search for, of the same kind; without it the last ones of the vectors, which are then not indexed
    #[arg(long, value_name = "FILE", requires = "vectors")]
    queries: Option<PathBuf>,
    /// How many vectors are made
    #[arg(long, default_value_t = 100_000, value_name = "N", conflicts_with = "vectors")]
    count: usize,
    #[arg(long, default_value_t = 384, value_name = "N", conflicts_with = "vectors")]
    dimensions: usize,
    /// How many of them are searched for
    #[arg(long, default_value_t = 1000, value_name = "N", conflicts_with = "queries")]
    num_queries: usize,
    /// Results of each search
    #[arg(short, long, default_value_t = 10, value_name = "N")]
    limit: usize,
    /// Candidates that the graph search keeps, with commas
    #[arg(long, value_delimiter = ',', default_values_t = [16, 32, 64, 128, 256, 512], value_name = "N")]
    candidates: Vec<usize>,
    /// Write the vectors and queries, vectors.npy and queries.npy, into this directory for others to be measured on
    #[arg(long, value_name = "DIR")]
    save: Option<PathBuf>,
    /// Curves of other libraries to draw beside, from the script that measures them
    #[arg(long, value_name = "FILE")]
    beside: Option<PathBuf>,
    #[command(flatten)]
    output: OutputArgs,
}

/// `[n, dimensions]`
type Rows = Vec<Vec<f32>>;

/// A library's recall at several settings.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Curve {
    pub name: String,
    pub points: Vec<Point>,
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(super) struct Point {
    /// The setting that produced it.
    #[serde(default)]
    pub candidates: usize,
    /// Share of the right results that were found, 0 to 1.
    pub recall: f64,
    pub queries_per_second: f64,
}

/// Shares of the vectors that a filter lets through.
const SELECTIVITIES: [f64; 3] = [0.01, 0.1, 0.5];
/// Vectors inserted at a time.
const INSERTED_AT_A_TIME: usize = 4096;
/// Least time that one figure is measured.
const MEASURED_AT_LEAST: Duration = Duration::from_millis(500);
/// Exact searches are slow, and need no more for a steady figure.
const EXACT_QUERIES: usize = 100;

pub fn run(args: &Args) -> anyhow::Result<()> {
    ensure!(args.limit >= 1, "--limit must be at least 1");
    let (vectors, queries) = data(args)?;
    let dim = vectors.first().map_or(0, Vec::len);
    ensure!(!vectors.is_empty() && !queries.is_empty(), "there must be vectors and queries");
    if let Some(directory) = &args.save {
        std::fs::create_dir_all(directory).with_context(|| format!("--save {}", directory.display()))?;
        write_npy(&vectors, &directory.join("vectors.npy"))?;
        write_npy(&queries, &directory.join("queries.npy"))?;
    }
    let index = VectorIndex::new(dim, GraphParameters { graph_min: 2, ..GraphParameters::default() });
    let entries: Vec<(u64, &[f32])> = (0..).zip(vectors.iter().map(Vec::as_slice)).collect();
    for entries in entries.chunks(INSERTED_AT_A_TIME) {
        index.insert(entries)?;
    }
    let began = Instant::now();
    index.rebuild()?;
    let build_seconds = began.elapsed().as_secs_f64();
    let stats = index.stats();

    let exact = SearchParameters { exact: true, ..SearchParameters::default() };
    let search =
        |query: &Vec<f32>, filter: Option<&Keys>, parameters| index.search(query, args.limit, filter, parameters);
    let truth: Vec<Vec<Hit>> = queries.iter().map(|query| search(query, None, exact)).collect::<Result<_, _>>()?;
    let (_, exact_rate) = timed(&queries[..queries.len().min(EXACT_QUERIES)], |query| search(query, None, exact))?;
    let mut curve = Curve { name: "Hearth".to_owned(), points: Vec::new() };
    for &candidates in &args.candidates {
        let parameters = SearchParameters { candidates, exact: false };
        let (found, queries_per_second) = timed(&queries, |query| search(query, None, parameters))?;
        curve.points.push(Point { candidates, recall: recall(&found, &truth), queries_per_second });
    }
    let mut filtered = Vec::new();
    let mut random = StdRng::seed_from_u64(1);
    for selectivity in SELECTIVITIES {
        let filter: Keys = (0..vectors.len() as u64).filter(|_| random.random_bool(selectivity)).collect();
        let queries = &queries[..queries.len().min(EXACT_QUERIES)];
        let (truth, exact_rate) = timed(queries, |query| search(query, Some(&filter), exact))?;
        let (found, rate) = timed(queries, |query| search(query, Some(&filter), SearchParameters::default()))?;
        filtered.push(json!({
            "selectivity": selectivity,
            "recall": recall(&found, &truth),
            "queries_per_second": rate,
            "exact_queries_per_second": exact_rate,
        }));
    }
    let report = json!({
        "vectors": vectors.len(),
        "dimensions": dim,
        "queries": queries.len(),
        "limit": args.limit,
        "build_seconds": build_seconds,
        "bytes_per_vector": stats.memory_bytes / stats.vectors.max(1),
        "exact_queries_per_second": exact_rate,
        "default_candidates": SearchParameters::default().candidates,
        "curve": curve,
        "filtered": filtered,
    });
    let json = serde_json::to_string_pretty(&report)?;
    let bytes = stats.memory_bytes / stats.vectors.max(1);
    let summary = format!(
        "{} vectors of {dim} dimensions, built in {build_seconds:.1} s, {bytes} bytes each; exact scan {exact_rate:.0} \
         queries/s\n{}",
        vectors.len(),
        table(&curve, &filtered, args.limit),
    );
    args.output.write(summary, &json)?;
    if let Some(path) = &args.output.plot {
        let mut curves = vec![curve];
        if let Some(path) = &args.beside {
            let text = std::fs::read_to_string(path).with_context(|| format!("--beside {}", path.display()))?;
            let others: Vec<Curve> =
                serde_json::from_str(&text).with_context(|| format!("--beside {} holds no curves", path.display()))?;
            curves.extend(others);
        }
        index_plot::draw(&curves, args.limit, path)?;
    }
    Ok(())
}

fn table(curve: &Curve, filtered: &[serde_json::Value], limit: usize) -> Table {
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN);
    table.set_header(vec!["search".to_owned(), format!("recall@{limit}"), "queries/s".to_owned(), "exact".to_owned()]);
    for point in &curve.points {
        let Point { candidates, recall, queries_per_second } = point;
        table.add_row(vec![
            format!("{candidates} candidates"),
            format!("{recall:.4}"),
            format!("{queries_per_second:.0}"),
            String::new(),
        ]);
    }
    for row in filtered {
        let number = |name: &str| row[name].as_f64().unwrap_or(0.0);
        table.add_row(vec![
            format!("filter of {} %", number("selectivity") * 100.0),
            format!("{:.4}", number("recall")),
            format!("{:.0}", number("queries_per_second")),
            format!("{:.0}", number("exact_queries_per_second")),
        ]);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// The results of each query, and queries per second: first a tenth of the queries to warm up, then all of them,
/// repeated until the time is long enough for a steady figure.
fn timed<E>(
    queries: &[Vec<f32>],
    search: impl Fn(&Vec<f32>) -> Result<Vec<Hit>, E>,
) -> Result<(Vec<Vec<Hit>>, f64), E> {
    for query in &queries[..queries.len() / 10] {
        search(query)?;
    }
    let began = Instant::now();
    let mut rounds = 0;
    loop {
        let found = queries.iter().map(&search).collect::<Result<Vec<_>, E>>()?;
        rounds += 1;
        let elapsed = began.elapsed();
        if elapsed >= MEASURED_AT_LEAST {
            return Ok((found, (rounds * queries.len()) as f64 / elapsed.as_secs_f64()));
        }
    }
}

/// Share of the right results among the found ones. A result as near as the last right one is right: equal vectors are
/// interchangeable.
fn recall(found: &[Vec<Hit>], truth: &[Vec<Hit>]) -> f64 {
    let (mut right, mut all) = (0, 0);
    for (found, truth) in found.iter().zip(truth) {
        let Some(last) = truth.last() else { continue };
        right += found.iter().filter(|hit| hit.similarity >= last.similarity - 1e-6).count().min(truth.len());
        all += truth.len();
    }
    right as f64 / f64::from(all.max(1) as u32)
}

/// The vectors to index, and the queries.
fn data(args: &Args) -> anyhow::Result<(Rows, Rows)> {
    let mut vectors = match &args.vectors {
        Some(path) => read_npy(path)?,
        None => made(args.count + args.num_queries, args.dimensions),
    };
    let queries = match &args.queries {
        Some(path) => read_npy(path)?,
        None => vectors.split_off(vectors.len().saturating_sub(args.num_queries)),
    };
    Ok((vectors, queries))
}

/// Clusters of 200, each varying along 16 directions of its own and slightly along all; one vector in ten is nearly
/// equal to the one before.
fn made(count: usize, dim: usize) -> Rows {
    const CLUSTER: usize = 200;
    const DIRECTIONS: usize = 16;
    let mut random = StdRng::seed_from_u64(0);
    // The sum of twelve uniform draws is close enough to normal.
    let mut normal = || (0..12).map(|_| random.random_range(-0.5..0.5_f32)).sum::<f32>();
    let mut clusters: Vec<Vec<Vec<f32>>> = Vec::new();
    for _ in 0..count.div_ceil(CLUSTER).max(1) {
        clusters.push((0..=DIRECTIONS).map(|_| (0..dim).map(|_| normal()).collect()).collect());
    }
    let mut vectors: Vec<Vec<f32>> = Vec::with_capacity(count);
    for index in 0..count {
        let vector: Vec<f32> = if index % 10 == 9 {
            vectors[index - 1].iter().map(|x| x + 0.01 * normal()).collect()
        } else {
            // Scattered over the clusters, so that queries taken from the end come from everywhere.
            let cluster = &clusters[index * 7919 % clusters.len()];
            let weights: Vec<f32> = (0..DIRECTIONS).map(|_| 0.35 * normal()).collect();
            (0..dim)
                .map(|at| {
                    let along: f32 = weights.iter().zip(&cluster[1..]).map(|(weight, axis)| weight * axis[at]).sum();
                    cluster[0][at] + along + 0.3 * normal()
                })
                .collect()
        };
        vectors.push(vector);
    }
    vectors
}

fn read_npy(path: &PathBuf) -> anyhow::Result<Rows> {
    let read = || -> candle_core::Result<_> { Tensor::read_npy(path)?.to_dtype(DType::F32)?.to_vec2::<f32>() };
    read().with_context(|| format!("{} does not hold an array of [n, dimensions] floats", path.display()))
}

fn write_npy(vectors: &[Vec<f32>], path: &PathBuf) -> anyhow::Result<()> {
    let dim = vectors.first().map_or(0, Vec::len);
    let write = || Tensor::from_vec(vectors.concat(), (vectors.len(), dim), &Device::Cpu)?.write_npy(path);
    write().with_context(|| format!("writing {}", path.display()))
}
