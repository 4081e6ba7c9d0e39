//! Numbers as a reader wants them: few digits, a unit, a dash where there is no value.

/// What stands for a value that does not exist (NaN, infinite, no samples).
pub const MISSING: &str = "–";

/// A fraction as a percentage with one decimal: `0.9812` is `98.1 %`.
pub fn percent(fraction: f64) -> String {
    if fraction.is_finite() { format!("{:.1} %", fraction * 100.0) } else { MISSING.into() }
}

/// A difference of two fractions in percentage points, signed: `-0.012` is `−1.2 pt`.
pub fn points(difference: f64) -> String {
    if !difference.is_finite() {
        return MISSING.into();
    }
    let size = format!("{:.1} pt", (difference * 100.0).abs());
    match size.as_str() {
        "0.0 pt" => size,
        _ if difference < 0.0 => format!("−{size}"),
        _ => format!("+{size}"),
    }
}

/// Mean and sample standard deviation (divisor n − 1): `0.52 ± 0.03`. One value has no deviation and is shown alone;
/// none, or a value that is not finite, gives [`MISSING`].
pub fn mean_sd(values: &[f64], decimals: usize) -> String {
    match moments(values) {
        None => MISSING.into(),
        Some((mean, None)) => format!("{mean:.decimals$}"),
        Some((mean, Some(sd))) => format!("{mean:.decimals$} ± {sd:.decimals$}"),
    }
}

/// [`mean_sd`] of fractions as percentages: `97.3 ± 0.4 %`.
pub fn percent_mean_sd(fractions: &[f64]) -> String {
    let percents: Vec<f64> = fractions.iter().map(|f| f * 100.0).collect();
    match mean_sd(&percents, 1) {
        missing if missing == MISSING => missing,
        text => format!("{text} %"),
    }
}

/// Mean, and the sample standard deviation where there are two values or more.
fn moments(values: &[f64]) -> Option<(f64, Option<f64>)> {
    if values.is_empty() || values.iter().any(|v| !v.is_finite()) {
        return None;
    }
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>();
    Some((mean, (values.len() > 1).then(|| (squares / (n - 1.0)).sqrt())))
}

/// A size in decimal units: `48112` is `48.1 kB`.
pub fn bytes(size: u64) -> String {
    let size = size as f64;
    match size {
        s if s < 1e3 => format!("{s:.0} B"),
        s if s < 999.95e3 => format!("{:.1} kB", s / 1e3),
        s if s < 999.95e6 => format!("{:.1} MB", s / 1e6),
        s => format!("{:.1} GB", s / 1e9),
    }
}

/// A duration given in milliseconds, with three digits and the unit that suits it: `0.042` is `42.0 µs`.
pub fn ms(duration: f64) -> String {
    if !duration.is_finite() {
        return MISSING.into();
    }
    match duration.abs() {
        d if d >= 999.5 => three_digits(duration / 1e3, "s"),
        d if d >= 0.1 || d == 0.0 => three_digits(duration, "ms"),
        _ => three_digits(duration * 1e3, "µs"),
    }
}

fn three_digits(value: f64, unit: &str) -> String {
    let decimals = match value.abs() {
        v if v >= 99.95 => 0,
        v if v >= 9.995 => 1,
        _ => 2,
    };
    format!("{value:.decimals$} {unit}")
}

/// A whole number with thousands separated: `48112` is `48,112`.
pub fn count(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_and_rounding() {
        assert_eq!(percent(0.9812), "98.1 %");
        assert_eq!(points(-0.012), "−1.2 pt");
        assert_eq!(points(0.004), "+0.4 pt");
        assert_eq!(points(-0.0001), "0.0 pt");
        assert_eq!(
            ["999 B", "1.0 kB", "48.1 kB", "1.0 MB", "2.5 GB"],
            [bytes(999).as_str(), &bytes(1000), &bytes(48_112), &bytes(999_960), &bytes(2_500_000_000),]
        );
        assert_eq!(
            ["42.0 µs", "0.42 ms", "12.3 ms", "250 ms", "1.50 s", "0.00 ms"],
            [ms(0.042).as_str(), &ms(0.42), &ms(12.34), &ms(250.0), &ms(1500.0), &ms(0.0),]
        );
        assert_eq!([count(0), count(999), count(1000), count(1_234_567)], ["0", "999", "1,000", "1,234,567"]);
    }

    #[test]
    fn deviation_is_the_sample_deviation() {
        // 2, 4, 4, 4, 5, 5, 7, 9: mean 5, squared deviations sum to 32, sqrt(32 / 7) = 2.138.
        assert_eq!(mean_sd(&[2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0], 3), "5.000 ± 2.138");
        assert_eq!(percent_mean_sd(&[0.97, 0.98, 0.99]), "98.0 ± 1.0 %");
        assert_eq!(mean_sd(&[0.5], 2), "0.50");
    }

    #[test]
    fn what_is_not_a_number_is_a_dash() {
        for text in
            [percent(f64::NAN), points(f64::INFINITY), ms(f64::NAN), mean_sd(&[], 1), percent_mean_sd(&[0.5, f64::NAN])]
        {
            assert_eq!(text, MISSING);
        }
    }
}
