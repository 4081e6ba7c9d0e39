//! Means, spreads and paired intervals of a few runs.

/// Mean.
pub fn mean(v: &[f64]) -> f64 {
    v.iter().sum::<f64>() / v.len().max(1) as f64
}

/// Standard deviation with n - 1; 0 for fewer than two values.
pub fn deviation(v: &[f64]) -> f64 {
    if v.len() < 2 {
        return 0.0;
    }
    let m = mean(v);
    (v.iter().map(|x| (x - m).powi(2)).sum::<f64>() / (v.len() - 1) as f64).sqrt()
}

/// Half width of the two-sided 95 % confidence interval of the mean by Student's t. NaN for fewer than two values.
pub fn half_interval(v: &[f64]) -> f64 {
    // Quantile 0.975 of Student's t for 1 to 14 degrees of freedom.
    const T: [f64; 14] =
        [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145];
    match v.len().checked_sub(2) {
        None => f64::NAN,
        Some(i) => T.get(i).copied().unwrap_or(1.96) * deviation(v) / (v.len() as f64).sqrt(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closed_forms() {
        let v = [1.0, 2.0, 3.0, 4.0];
        assert_eq!(mean(&v), 2.5);
        assert!((deviation(&v) - (5.0f64 / 3.0).sqrt()).abs() < 1e-12);
        assert!((half_interval(&v) - 3.182 * (5.0f64 / 3.0).sqrt() / 2.0).abs() < 1e-9);
        assert!(half_interval(&[1.0]).is_nan());
    }
}
