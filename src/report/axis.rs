//! Axes: from values to a range with round ticks, and from values to coordinates.

use super::format::MISSING;
use super::svg::{px, shorten};
use maud::{Markup, html};

/// One axis of a plot: a range of values laid on a range of coordinates.
pub(super) struct Axis {
    lo: f64,
    hi: f64,
    log: bool,
    start: f64,
    end: f64,
    ticks: Vec<(f64, String)>,
}

impl Axis {
    /// A linear axis over drawable values (see [`super::svg::drawable`]). `snap` widens the range to whole ticks.
    /// None without values.
    pub(super) fn linear(values: impl Iterator<Item = f64>, start: f64, end: f64, snap: bool) -> Option<Axis> {
        let (mut lo, mut hi) = extent(values)?;
        if hi - lo <= 1e-9 * lo.abs().max(hi.abs()) {
            let pad = if lo == 0.0 { 1.0 } else { lo.abs() * 0.1 };
            (lo, hi) = (lo - pad, hi + pad);
        } else if snap && lo > 0.0 && lo < 0.3 * hi {
            lo = 0.0;
        }
        let step = round_step((hi - lo) / 5.0);
        if snap {
            (lo, hi) = ((lo / step + 1e-9).floor() * step, (hi / step - 1e-9).ceil() * step);
        }
        let (first, last) = ((lo / step - 1e-9).ceil() as i64, (hi / step + 1e-9).floor() as i64);
        let ticks = (first..=last).map(|i| (i as f64 * step, linear_label(i as f64 * step, step))).collect();
        Some(Axis { lo, hi, log: false, start, end, ticks })
    }

    /// A logarithmic axis over drawable values above zero, with a margin at both ends. None without values.
    pub(super) fn log(values: impl Iterator<Item = f64>, start: f64, end: f64) -> Option<Axis> {
        let (lo, hi) = extent(values.map(f64::log10))?;
        let pad = ((hi - lo) * 0.15).max(0.2);
        let (lo, hi) = (lo - pad, hi + pad);
        let (first, last) = (lo.floor() as i32, hi.ceil() as i32);
        let every = ((last - first) / 8).max(1) as usize;
        let digits: &[f64] = if hi - lo <= 2.5 { &[1.0, 2.0, 5.0] } else { &[1.0] };
        let ticks = (first..=last)
            .step_by(every)
            .flat_map(|decade| digits.iter().map(move |digit| digit * 10f64.powi(decade)))
            .filter(|tick| (lo..=hi).contains(&tick.log10()))
            .map(|tick| (tick, log_label(tick)))
            .collect();
        Some(Axis { lo, hi, log: true, start, end, ticks })
    }

    /// The coordinate of a value.
    pub(super) fn at(&self, value: f64) -> f64 {
        let value = if self.log { value.log10() } else { value };
        self.start + (value - self.lo) / (self.hi - self.lo) * (self.end - self.start)
    }

    /// A value as text, with one digit more than the ticks have.
    pub(super) fn label(&self, value: f64) -> String {
        if self.log { log_label(value) } else { linear_label(value, (self.hi - self.lo) / 200.0) }
    }
}

/// Grid, tick labels and axis names of a plot; `y` runs upwards, so its start is the lower edge.
pub(super) fn draw(x: &Axis, y: &Axis, x_name: &str, y_name: &str) -> Markup {
    let middle = ((x.start + x.end) / 2.0, (y.start + y.end) / 2.0);
    html! {
        @for (value, label) in &y.ticks {
            line.grid x1=(px(x.start)) x2=(px(x.end)) y1=(px(y.at(*value))) y2=(px(y.at(*value))) {}
            text.end x=(px(x.start - 8.0)) y=(px(y.at(*value) + 4.0)) { (label) }
        }
        line.base x1=(px(x.start)) x2=(px(x.end)) y1=(px(y.start)) y2=(px(y.start)) {}
        @for (value, label) in &x.ticks {
            line.base x1=(px(x.at(*value))) x2=(px(x.at(*value))) y1=(px(y.start)) y2=(px(y.start + 5.0)) {}
            text.middle x=(px(x.at(*value))) y=(px(y.start + 19.0)) { (label) }
        }
        text.strong.middle x=(px(middle.0)) y=(px(y.start + 40.0)) { (shorten(x_name, 80)) }
        text.strong.middle transform={ "translate(18 " (px(middle.1)) ") rotate(-90)" } { (shorten(y_name, 36)) }
    }
}

/// Smallest and largest value, or None without values.
fn extent(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values.fold(None, |range, v| match range {
        None => Some((v, v)),
        Some((lo, hi)) => Some((v.min(lo), v.max(hi))),
    })
}

/// The next 1, 2 or 5 times a power of ten that is not below `rough` (above zero).
fn round_step(rough: f64) -> f64 {
    let decade = 10f64.powf(rough.log10().floor());
    [1.0, 2.0, 5.0].into_iter().map(|m| m * decade).find(|step| *step >= rough * 0.999).unwrap_or(10.0 * decade)
}

fn linear_label(value: f64, step: f64) -> String {
    if !value.is_finite() {
        return MISSING.into();
    }
    if value.abs() >= 1e6 || step < 1e-5 {
        let text = format!("{value:.2e}");
        return text.replace('-', "−");
    }
    let decimals = (-step.log10() - 1e-9).ceil().max(0.0) as usize;
    let text = format!("{value:.decimals$}");
    if text.trim_start_matches(['-', '0', '.']).is_empty() {
        return text.trim_start_matches('-').into();
    }
    text.replace('-', "−")
}

fn log_label(value: f64) -> String {
    let decimals = (1.0 - value.log10().floor()).clamp(0.0, 9.0) as usize;
    if !(1e-4..1e6).contains(&value) {
        return format!("{value:.1e}").replace('-', "−");
    }
    let text = format!("{value:.decimals$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').into() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(axis: &Axis) -> Vec<&str> {
        axis.ticks.iter().map(|(_, label)| label.as_str()).collect()
    }

    #[test]
    fn ticks_are_round_and_inside() {
        let axis = Axis::linear([0.13, 2.31].into_iter(), 300.0, 0.0, true).expect("two values");
        assert_eq!(labels(&axis), ["0.0", "0.5", "1.0", "1.5", "2.0", "2.5"]);
        assert_eq!((axis.at(0.0), axis.at(2.5)), (300.0, 0.0));
        let axis = Axis::linear([-3.0, 97.0].into_iter(), 0.0, 100.0, false).expect("two values");
        assert_eq!(labels(&axis), ["0", "20", "40", "60", "80"]);
        let axis = Axis::log([0.1, 40.0].into_iter(), 0.0, 1.0).expect("two values");
        assert_eq!(labels(&axis), ["0.1", "1", "10", "100"][..labels(&axis).len()]);
    }

    #[test]
    fn log_coordinates_are_logarithmic() {
        let axis = Axis::log([1.0, 100.0].into_iter(), 0.0, 100.0).expect("two values");
        assert!((axis.at(10.0) - 50.0).abs() < 1e-9);
    }

    #[test]
    fn degenerate_ranges_have_a_width() {
        for values in [vec![0.0], vec![5.0, 5.0], vec![1.0, 1.0 + 1e-15], vec![-1e99, 1e99], vec![1e-300, 2e-300]] {
            let axis = Axis::linear(values.iter().copied(), 0.0, 100.0, true).expect("values");
            assert!(axis.ticks.len() < 20 && axis.at(values[0]).is_finite(), "{values:?}");
        }
        for values in [vec![3.0], vec![1e-90, 1e90]] {
            let axis = Axis::log(values.iter().copied(), 0.0, 100.0).expect("values");
            assert!(axis.ticks.len() < 40 && axis.at(values[0]).is_finite(), "{values:?}");
        }
        assert!(Axis::linear([].into_iter(), 0.0, 1.0, true).is_none());
    }
}
