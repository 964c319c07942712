//! Recall against queries per second as a picture: up and to the right is better.

use std::path::Path;

use anyhow::{Context, anyhow};
use plotters::{
    chart::{ChartBuilder, SeriesLabelPosition},
    prelude::{Circle, IntoDrawingArea, IntoLogRange, LineSeries, PathElement, SVGBackend},
    style::{BLACK, Color, RGBColor, WHITE},
};

use super::index::Curve;

const SIZE: (u32, u32) = (760, 480);
const COLORS: [RGBColor; 6] = [
    RGBColor(60, 110, 180),
    RGBColor(220, 140, 60),
    RGBColor(90, 160, 90),
    RGBColor(180, 80, 100),
    RGBColor(130, 110, 170),
    RGBColor(130, 130, 130),
];

/// Writes an SVG.
pub(super) fn draw(curves: &[Curve], limit: usize, path: &Path) -> anyhow::Result<()> {
    let points = || curves.iter().flat_map(|curve| &curve.points);
    let lowest = points().map(|point| point.recall).fold(1.0, f64::min);
    let rates = || points().map(|point| point.queries_per_second).filter(|&rate| rate > 0.0);
    let (slowest, fastest) = (rates().fold(f64::INFINITY, f64::min), rates().fold(1.0, f64::max));
    let failed = |error: &dyn std::fmt::Debug| anyhow!("drawing {}: {error:?}", path.display());
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        area.fill(&WHITE).map_err(|error| failed(&error))?;
        let mut chart = ChartBuilder::on(&area)
            .margin(16)
            .x_label_area_size(40)
            .y_label_area_size(64)
            .caption(format!("recall@{limit} against queries per second, one thread"), ("sans-serif", 16))
            .build_cartesian_2d(
                (lowest - 0.01).max(0.0)..1.001,
                (slowest.min(fastest) * 0.8..fastest * 1.3).log_scale(),
            )
            .map_err(|error| failed(&error))?;
        chart
            .configure_mesh()
            .x_desc(format!("recall@{limit}"))
            .y_desc("queries per second")
            .light_line_style(WHITE.mix(0.0))
            .draw()
            .map_err(|error| failed(&error))?;
        for (curve, color) in curves.iter().zip(COLORS.iter().cycle()) {
            let line: Vec<_> = curve.points.iter().map(|point| (point.recall, point.queries_per_second)).collect();
            chart
                .draw_series(LineSeries::new(line.clone(), color.stroke_width(2)))
                .map_err(|error| failed(&error))?
                .label(&curve.name)
                .legend(|(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2)));
            let dots = line.into_iter().map(|place| Circle::new(place, 3, color.filled()));
            chart.draw_series(dots).map_err(|error| failed(&error))?;
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::LowerLeft)
            .background_style(WHITE.mix(0.9))
            .border_style(BLACK.mix(0.3))
            .draw()
            .map_err(|error| failed(&error))?;
        area.present().map_err(|error| failed(&error))?;
    }
    std::fs::write(path, svg).with_context(|| format!("writing {}", path.display()))
}
