//! The report as a chart: one bar per figure and way of measuring, its spread as a line.

use std::path::Path;

use anyhow::{Context, anyhow};
use plotters::{
    prelude::{IntoDrawingArea, PathElement, Rectangle, SVGBackend, Text},
    style::{BLACK, Color, IntoFont, RGBColor, WHITE},
};

use super::report::{Report, spread};

const BAR_HEIGHT: i32 = 26;
const MARGIN: i32 = 16;
const LABEL_WIDTH: i32 = 250;
const CHART_WIDTH: i32 = 420;
const VALUE_WIDTH: i32 = 90;
/// One per way of measuring.
const COLORS: [RGBColor; 3] = [RGBColor(60, 110, 180), RGBColor(220, 140, 60), RGBColor(130, 130, 130)];

/// Writes an SVG. All bars have one scale, from 0: a longer bar is a larger figure.
pub(super) fn draw(report: &Report, path: &Path) -> anyhow::Result<()> {
    let rows = report.rows();
    let bars: i32 = rows.iter().map(|(_, ways)| i32::try_from(ways.len()).unwrap_or(0)).sum();
    let height = 2 * MARGIN + 30 + bars * BAR_HEIGHT + i32::try_from(rows.len()).unwrap_or(0) * 10;
    let width = 2 * MARGIN + LABEL_WIDTH + CHART_WIDTH + VALUE_WIDTH;
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (width.unsigned_abs(), height.unsigned_abs())).into_drawing_area();
        let failed = |error| anyhow!("drawing {}: {error:?}", path.display());
        area.fill(&WHITE).map_err(failed)?;
        let title = ("sans-serif", 16).into_font();
        let label = ("sans-serif", 13).into_font();
        area.draw(&Text::new(report.title(), (MARGIN, MARGIN), title)).map_err(failed)?;
        let mut top = MARGIN + 34;
        let samples = rows.iter().flat_map(|(_, ways)| ways).flat_map(|(_, samples)| samples);
        let largest = samples.copied().fold(f64::MIN_POSITIVE, f64::max);
        // Pixels: the value is between 0 and the largest.
        #[expect(clippy::cast_possible_truncation, reason = "a width in pixels, below CHART_WIDTH")]
        let place = |value: f64| MARGIN + LABEL_WIDTH + (value / largest * f64::from(CHART_WIDTH)).round() as i32;
        for (name, ways) in rows {
            for ((way, samples), color) in ways.iter().zip(COLORS) {
                let [low, middle, high] = spread(samples);
                let text = Text::new(format!("{name}, {way}"), (MARGIN, top + 5), label.clone());
                area.draw(&text).map_err(failed)?;
                let bar = [(place(0.0), top), (place(middle), top + BAR_HEIGHT - 8)];
                area.draw(&Rectangle::new(bar, color.filled())).map_err(failed)?;
                let center = top + (BAR_HEIGHT - 8) / 2;
                let spread_line = vec![(place(low), center), (place(high), center)];
                area.draw(&PathElement::new(spread_line, BLACK)).map_err(failed)?;
                let value = Text::new(format!("{middle:.1} t/s"), (place(high) + 8, top + 5), label.clone());
                area.draw(&value).map_err(failed)?;
                top += BAR_HEIGHT;
            }
            top += 10;
        }
        area.present().map_err(failed)?;
    }
    std::fs::write(path, svg).with_context(|| format!("writing {}", path.display()))
}
