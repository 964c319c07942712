//! Usage as a chart: per group a bar for its requests and one for its cost, each on its own scale.

use std::path::Path;

use anyhow::{Context, anyhow};
use plotters::{
    prelude::{IntoDrawingArea, Rectangle, SVGBackend, Text},
    style::{Color, IntoFont, RGBColor, WHITE},
};

use super::usage::Bar;

const ROW_HEIGHT: i32 = 40;
const BAR_HEIGHT: i32 = 14;
const MARGIN: i32 = 16;
const LABEL_WIDTH: i32 = 220;
const CHART_WIDTH: i32 = 420;
const VALUE_WIDTH: i32 = 130;
const REQUESTS: RGBColor = RGBColor(60, 110, 180);
const COST: RGBColor = RGBColor(220, 140, 60);

/// Writes an SVG.
pub(super) fn draw(bars: &[Bar], path: &Path) -> anyhow::Result<()> {
    let rows = i32::try_from(bars.len()).unwrap_or(i32::MAX / ROW_HEIGHT - 10);
    let height = 2 * MARGIN + 30 + rows * ROW_HEIGHT;
    let width = 2 * MARGIN + LABEL_WIDTH + CHART_WIDTH + VALUE_WIDTH;
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (width.unsigned_abs(), height.unsigned_abs())).into_drawing_area();
        let failed = |error| anyhow!("drawing {}: {error:?}", path.display());
        area.fill(&WHITE).map_err(failed)?;
        let label = ("sans-serif", 13).into_font();
        let title = Text::new("requests and cost", (MARGIN, MARGIN), ("sans-serif", 16).into_font());
        area.draw(&title).map_err(failed)?;
        let most = |figure: fn(&Bar) -> u64| bars.iter().map(figure).max().unwrap_or_default().max(1);
        let (most_requests, most_cost) = (most(|bar| bar.requests), most(|bar| bar.cost_micro_usd));
        let mut top = MARGIN + 34;
        for bar in bars {
            area.draw(&Text::new(bar.name.clone(), (MARGIN, top + 6), label.clone())).map_err(failed)?;
            let cost = format!("${}.{:06}", bar.cost_micro_usd / 1_000_000, bar.cost_micro_usd % 1_000_000);
            for (place, value, most, text, color) in [
                (top, bar.requests, most_requests, bar.requests.to_string(), REQUESTS),
                (top + BAR_HEIGHT + 2, bar.cost_micro_usd, most_cost, cost, COST),
            ] {
                let left = MARGIN + LABEL_WIDTH;
                let share = u128::from(value) * CHART_WIDTH.unsigned_abs() as u128 / u128::from(most);
                let right = left + i32::try_from(share).unwrap_or(CHART_WIDTH);
                area.draw(&Rectangle::new([(left, place), (right, place + BAR_HEIGHT)], color.filled()))
                    .map_err(failed)?;
                area.draw(&Text::new(text, (right + 8, place + 1), label.clone())).map_err(failed)?;
            }
            top += ROW_HEIGHT;
        }
        area.present().map_err(failed)?;
    }
    std::fs::write(path, svg).with_context(|| format!("writing {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_names_every_group() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("usage.svg");
        let bar = |name: &str, requests| Bar { name: name.to_owned(), requests, cost_micro_usd: requests * 7 };
        draw(&[bar("2026-01-30", 2), bar("2026-01-31", 0)], &path).unwrap();
        let svg = std::fs::read_to_string(path).unwrap();
        assert!(svg.contains("2026-01-30") && svg.contains("2026-01-31") && svg.contains("$0.000014"), "{svg}");
        draw(&[], &directory.path().join("empty.svg")).unwrap();
    }
}
