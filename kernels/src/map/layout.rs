//! The space that a map walks through: broadcast extents with everything merged that all operands allow, and its tiles.

/// Values of a block: few enough that the handful of blocks in use stays near the first-level cache, and so many that what
/// a sweep costs besides its values is small.
const BLOCK: usize = 2048;

/// The longest row whose reduction may be used in the same map.
pub(super) const LONGEST_ROW: usize = 1 << 14;

/// The walk through the broadcast extents, in tiles of whole rows or pieces of one row. A tile is contiguous in a dense
/// tensor of the broadcast shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Layout {
    /// Extents, outermost first, at least two.
    dims: Vec<usize>,
    /// Of a tile: rows (of the last axis but one), and columns.
    pub(super) tile: [usize; 2],
}

/// Where a tile lies.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tile {
    /// Rows and columns.
    pub(super) rows: usize,
    pub(super) cols: usize,
    /// Of its first value, in a dense tensor.
    pub(super) start: usize,
    /// Number of its first row.
    pub(super) row: usize,
}

/// Distances between neighbours along each axis of a [`Layout`], 0 where a tensor is broadcast.
pub(super) type Strides = Vec<usize>;

impl Layout {
    /// Merges the axes of `shape` that `operands` (strides for each of its axes) allow, and cuts tiles. Returns the
    /// operands' strides for the merged axes.
    pub(super) fn new(shape: &[usize], operands: &[Strides]) -> (Layout, Vec<Strides>) {
        let mut dims: Vec<usize> = vec![];
        let mut strides = vec![vec![]; operands.len()];
        for (axis, &extent) in shape.iter().enumerate().filter(|(_, extent)| **extent != 1) {
            let joins = |(merged, own): (&Strides, &Strides)| merged.last() == Some(&(own[axis] * extent));
            let merged = if strides.iter().zip(operands).all(joins) { dims.pop() } else { None };
            if merged.is_some() {
                strides.iter_mut().for_each(|s| s.truncate(dims.len()));
            }
            dims.push(merged.unwrap_or(1) * extent);
            strides.iter_mut().zip(operands).for_each(|(s, own)| s.push(own[axis]));
        }
        while dims.len() < 2 {
            dims.insert(0, 1);
            strides.iter_mut().for_each(|s| s.insert(0, 0));
        }
        let [rows, cols] = [dims[dims.len() - 2], dims[dims.len() - 1]];
        let tile = match cols {
            // One row, along which operands a row are one number.
            _ if cols > BLOCK / 4 => [1, cols.div_ceil(cols.div_ceil(BLOCK))],
            _ => [(BLOCK / cols.max(1)).clamp(1, rows.max(1)), cols],
        };
        (Layout { dims, tile }, strides)
    }

    /// With tiles of whole rows, however long.
    pub(super) fn by_row(self) -> Layout {
        let tile = [(BLOCK / self.cols().max(1)).clamp(1, self.rows().max(1)), self.cols()];
        Layout { tile, ..self }
    }

    fn rows(&self) -> usize {
        self.dims[self.dims.len() - 2]
    }

    /// Values of a row.
    pub(super) fn cols(&self) -> usize {
        self.dims[self.dims.len() - 1]
    }

    /// Number of values.
    pub(super) fn len(&self) -> usize {
        self.dims.iter().product()
    }

    /// Number of tiles in a row, and in a plane of the last two axes.
    fn tiles_of(&self) -> [usize; 2] {
        let across = self.cols().div_ceil(self.tile[1].max(1));
        [across, across * self.rows().div_ceil(self.tile[0])]
    }

    /// Number of tiles.
    pub(super) fn tiles(&self) -> usize {
        self.dims[..self.dims.len() - 2].iter().product::<usize>() * self.tiles_of()[1]
    }

    /// The tile of this number; the number of tiles gives an empty one at the end.
    pub(super) fn at(&self, index: usize) -> Tile {
        let [across, plane] = self.tiles_of();
        let (outer, within) = (index / plane.max(1), index % plane.max(1));
        let (row, col) = (within / across.max(1) * self.tile[0], within % across.max(1) * self.tile[1]);
        let (rows, cols) = (self.tile[0].min(self.rows() - row), self.tile[1].min(self.cols() - col));
        let row = outer * self.rows() + row;
        Tile { rows, cols, start: row * self.cols() + col, row }
    }

    /// The position of a tile's first value along each axis.
    pub(super) fn position(&self, tile: &Tile, position: &mut Vec<usize>) {
        position.clear();
        let mut rest = tile.start;
        for (axis, &dim) in self.dims.iter().enumerate().rev() {
            // The outermost position is what is left.
            position.push(if axis == 0 { rest } else { rest % dim });
            rest = if rest < dim { 0 } else { rest / dim };
        }
        position.reverse();
    }

    /// Where an operand's value for a position lies.
    #[inline(always)]
    pub(super) fn offset(&self, position: &[usize], strides: &Strides) -> usize {
        position.iter().zip(strides).map(|(at, stride)| at * stride).sum()
    }
}

/// Strides of a dense tensor of extents `own` under the broadcast extents `shape`, which are at least as many.
pub(super) fn strides(own: &[usize], shape: &[usize]) -> Strides {
    let mut strides = vec![0; shape.len()];
    let mut step = 1;
    for (stride, &extent) in strides.iter_mut().rev().zip(own.iter().rev()) {
        if extent != 1 {
            *stride = step;
        }
        step *= extent;
    }
    strides
}

/// The extents to which all of `shapes` broadcast, as ONNX has it.
pub(super) fn broadcast(shapes: &[&[usize]]) -> Option<Vec<usize>> {
    let rank = shapes.iter().map(|s| s.len()).max().unwrap_or(0);
    let mut joint = vec![1; rank];
    for shape in shapes {
        for (joint, &extent) in joint.iter_mut().rev().zip(shape.iter().rev()) {
            match (*joint, extent) {
                (a, b) if a == b || b == 1 => {}
                (1, b) => *joint = b,
                _ => return None,
            }
        }
    }
    Some(joint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_cover_the_space_in_order() {
        for (shape, own) in [
            (vec![3, 5, 700], vec![5, 1]),
            (vec![7, 3, 5], vec![3, 1]),
            (vec![2, 3000], vec![2, 3000]),
            (vec![], vec![]),
            (vec![1, 1], vec![1]),
            (vec![4, 1, 6], vec![6]),
        ] {
            let operand = strides(&own, &shape);
            let (layout, merged) = Layout::new(&shape, std::slice::from_ref(&operand));
            let mut next = 0;
            for tile in (0..layout.tiles()).map(|i| layout.at(i)) {
                assert_eq!(tile.start, next);
                next += tile.rows * tile.cols;
                let mut position = tile.start;
                let want: usize = shape
                    .iter()
                    .zip(&operand)
                    .rev()
                    .map(|(d, s)| {
                        let at = position % d;
                        position /= d;
                        at * s
                    })
                    .sum();
                let mut at = vec![];
                layout.position(&tile, &mut at);
                assert_eq!(layout.offset(&at, &merged[0]), want, "{shape:?} {tile:?}");
            }
            assert_eq!(next, shape.iter().product::<usize>());
        }
    }

    #[test]
    fn equal_shapes_become_one_row() {
        let dense = strides(&[4, 5, 600], &[4, 5, 600]);
        let (layout, merged) = Layout::new(&[4, 5, 600], &[dense.clone(), dense]);
        assert_eq!((layout.dims, merged), (vec![1, 12000], vec![vec![0, 1]; 2]));
    }
}
