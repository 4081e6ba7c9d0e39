//! Line charts: loss curves, accuracy over time with its spread.

use super::axis::{self, Axis};
use super::svg::{TOP, WIDTH, clean, document, drawable, empty, legend, marker, px, series_class};
use maud::{Markup, html};

/// Most points of a series that get a marker each; longer ones have one at their end.
const MARKED: usize = 40;

/// One line of a chart.
#[derive(Clone, Debug)]
pub struct Series {
    /// The name in the legend.
    pub name: String,
    /// (x, y) in drawing order. A point that is not finite is left out and leaves a gap.
    pub points: Vec<(f64, f64)>,
    /// A band around the line, such as mean ± standard deviation: (low, high) for each point.
    pub band: Option<Vec<(f64, f64)>>,
    /// Whether the line is dashed, as for a reference.
    pub dashed: bool,
}

impl Series {
    /// A solid line without a band.
    pub fn new(name: impl Into<String>, points: Vec<(f64, f64)>) -> Series {
        Series { name: name.into(), points, band: None, dashed: false }
    }

    /// The series with a band: (low, high) for each point.
    pub fn band(self, band: Vec<(f64, f64)>) -> Series {
        Series { band: Some(band), ..self }
    }

    /// The series as a dashed line.
    pub fn dashed(self) -> Series {
        Series { dashed: true, ..self }
    }

    /// The series of several runs (one `y` per `x` each): their mean, and a band of one sample standard deviation.
    /// A run that has ended leaves the others to go on; values that are not finite are left out.
    pub fn of_runs(name: impl Into<String>, x: &[f64], runs: &[Vec<f64>]) -> Series {
        let mut points = Vec::with_capacity(x.len());
        let mut band = Vec::with_capacity(x.len());
        for (index, &x) in x.iter().enumerate() {
            let values: Vec<f64> =
                runs.iter().filter_map(|run| run.get(index).copied()).filter(|&v| drawable(v)).collect();
            let n = values.len() as f64;
            let mean = values.iter().sum::<f64>() / n;
            let squares = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>();
            let sd = if values.len() > 1 { (squares / (n - 1.0)).sqrt() } else { 0.0 };
            points.push((x, mean));
            band.push((mean - sd, mean + sd));
        }
        Series::new(name, points).band(band)
    }

    /// The runs of consecutive drawable points, with the band's edges where there are any.
    fn segments(&self) -> Vec<Vec<Point>> {
        let point = |(index, &(x, y)): (usize, &(f64, f64))| {
            let band = self.band.as_ref().and_then(|band| band.get(index)).copied();
            let band = band.filter(|(lo, hi)| drawable(*lo) && drawable(*hi));
            (drawable(x) && drawable(y)).then_some(Point { x, y, band })
        };
        let points: Vec<Option<Point>> = self.points.iter().enumerate().map(point).collect();
        points.split(Option::is_none).map(|run| run.iter().flatten().copied().collect()).collect()
    }
}

#[derive(Clone, Copy)]
struct Point {
    x: f64,
    y: f64,
    band: Option<(f64, f64)>,
}

/// A chart of lines over a common x axis, with a legend. Without drawable points it says so.
pub fn line_chart(title: &str, x_label: &str, y_label: &str, series: &[Series]) -> String {
    let lines: Vec<Vec<Vec<Point>>> = series.iter().map(Series::segments).collect();
    let points = || lines.iter().flatten().flatten();
    let names: Vec<(String, bool)> = series.iter().map(|s| (s.name.clone(), s.dashed)).collect();
    let (key, key_height) = legend(&names, TOP);
    let top = TOP + key_height + 4.0;
    let bottom = top + 260.0;
    let x = Axis::linear(points().map(|p| p.x), 64.0, WIDTH - 24.0, false);
    let heights = points().flat_map(|p| [Some(p.y), p.band.map(|b| b.0), p.band.map(|b| b.1)]).flatten();
    let (Some(x), Some(y)) = (x, Axis::linear(heights, bottom, top, true)) else {
        return empty(title);
    };
    let body = html! {
        (key)
        (axis::draw(&x, &y, x_label, y_label))
        @for (index, segments) in lines.iter().enumerate() {
            g class=(series_class(index)) { @for segment in segments { (area(segment, &x, &y)) } }
        }
        @for (index, (series, segments)) in series.iter().zip(&lines).enumerate() {
            (line(index, series, segments, &x, &y))
        }
    };
    document(title, WIDTH, bottom + 54.0, body)
}

/// The band of one segment: along the upper edge and back along the lower one, once for each unbroken part.
fn area(segment: &[Point], x: &Axis, y: &Axis) -> Markup {
    let outline = |part: &[Point]| {
        let upper = part.iter().filter_map(|p| Some((p.x, p.band?.1)));
        let lower = part.iter().rev().filter_map(|p| Some((p.x, p.band?.0)));
        path(upper.chain(lower), x, y) + "z"
    };
    html! {
        @for part in segment.split(|p| p.band.is_none()).filter(|part| part.len() > 1) {
            path.area d=(outline(part)) {}
        }
    }
}

fn line(index: usize, series: &Series, segments: &[Vec<Point>], x: &Axis, y: &Axis) -> Markup {
    let count: usize = segments.iter().map(Vec::len).sum();
    let skip = if count <= MARKED { 0 } else { count - 1 };
    let name = clean(&series.name);
    let hint = |p: &Point| format!("{name}: {} at {}", y.label(p.y), x.label(p.x));
    html! {
        g class=(series_class(index)) {
            @for segment in segments.iter().filter(|segment| !segment.is_empty()) {
                path.line.dashed[series.dashed] d=(path(segment.iter().map(|p| (p.x, p.y)), x, y)) {}
            }
            @for point in segments.iter().flatten().skip(skip) {
                (marker(index, x.at(point.x), y.at(point.y), &hint(point)))
            }
        }
    }
}

/// Path data through the points; a single point becomes a dot by its round line cap.
fn path(points: impl Iterator<Item = (f64, f64)>, x: &Axis, y: &Axis) -> String {
    let steps: Vec<String> = points.map(|(px_, py_)| format!("{} {}", px(x.at(px_)), px(y.at(py_)))).collect();
    match steps.as_slice() {
        [only] => format!("M{only}h0"),
        _ => format!("M{}", steps.join("L")),
    }
}
