//! How Reshape, Flatten, Squeeze and Unsqueeze tie axes.

use super::rules::Rule;
use limbeck_graph::{Dim, ValueId};

impl Rule<'_> {
    /// Runs of axes with equal products correspond. One axis against one ties; several merged into one tie by the one
    /// that can still lose positions; one divided into several ties whole blocks of the first.
    pub(super) fn reshape(&mut self, x: ValueId, y: ValueId) -> Option<()> {
        let (from, to) = (self.graph.ty(x)?.dims.clone()?, self.graph.ty(y)?.dims.clone()?);
        // A leading batch of unknown extent stays what it is.
        let lead = usize::from(from.first()?.known().is_none() && to.first().is_some_and(|d| d.known().is_none()));
        let real = |dims: &[Dim]| -> Option<Vec<(usize, usize)>> {
            let known = dims.iter().enumerate().skip(lead).map(|(i, d)| d.known().map(|n| (i, n)));
            Some(known.collect::<Option<Vec<_>>>()?.into_iter().filter(|&(_, n)| n != 1).collect())
        };
        let (from, to) = (real(&from)?, real(&to)?);
        let (mut i, mut j) = (0, 0);
        while i < from.len() && j < to.len() {
            let (first_i, first_j) = (i, j);
            let (mut a, mut b) = (from[i].1, to[j].1);
            (i, j) = (i + 1, j + 1);
            while a != b {
                if a < b {
                    a *= from.get(i)?.1;
                    i += 1;
                } else {
                    b *= to.get(j)?.1;
                    j += 1;
                }
            }
            self.run(x, &from[first_i..i], y, &to[first_j..j]);
        }
        Some(())
    }

    fn run(&mut self, x: ValueId, from: &[(usize, usize)], y: ValueId, to: &[(usize, usize)]) {
        match (from, to) {
            ([(a, _)], [(b, _)]) => self.tie((x, *a), (y, *b)),
            (many, [(b, _)]) => {
                let free: Vec<usize> =
                    (0..many.len()).filter(|&k| !self.links.is_fixed(self.graph, (x, many[k].0))).collect();
                let [k] = free[..] else { return self.freeze_run(x, many, y, to) };
                let inner: usize = many[k + 1..].iter().map(|(_, n)| n).product();
                let extent = many[k].1;
                for (axis, _) in many.iter().enumerate().filter(|(i, _)| *i != k).map(|(_, m)| *m) {
                    self.freeze((x, axis), "merges it with another axis");
                }
                self.links.tie_by(self.graph, (y, *b), (x, many[k].0), |i| i / inner % extent);
            }
            ([(a, _)], many) => {
                let inner: usize = many[1..].iter().map(|(_, n)| n).product();
                self.links.tie_by(self.graph, (x, *a), (y, many[0].0), |i| i / inner);
                many[1..].iter().for_each(|&(axis, _)| self.freeze((y, axis), "divides an axis into whole blocks"));
            }
            _ => self.freeze_run(x, from, y, to),
        }
    }

    fn freeze_run(&mut self, x: ValueId, from: &[(usize, usize)], y: ValueId, to: &[(usize, usize)]) {
        from.iter().for_each(|&(axis, _)| self.freeze((x, axis), "mixes several axes"));
        to.iter().for_each(|&(axis, _)| self.freeze((y, axis), "mixes several axes"));
    }
}
