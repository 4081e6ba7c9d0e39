//! Copies and sums of rows that lie at distances, and of rows of every second value.

/// Copies `rows` runs of `cols` values between two slices with the given distances from row to row.
///
/// Narrow maps are frequent and a call of `memcpy` a row is slow for them, so common widths are compiled in; a block without gaps is one run.
#[inline(always)]
pub(crate) fn copy_block(to: &mut [f32], to_stride: usize, from: &[f32], from_stride: usize, rows: usize, cols: usize) {
    #[inline(always)]
    fn fixed<const COLS: usize>(to: &mut [f32], to_stride: usize, from: &[f32], from_stride: usize, rows: usize) {
        for row in 0..rows {
            to[row * to_stride..][..COLS].copy_from_slice(&from[row * from_stride..][..COLS]);
        }
    }
    macro_rules! widths {
        ($($width:literal)*) => {
            match cols {
                _ if to_stride == cols && from_stride == cols => to[..rows * cols].copy_from_slice(&from[..rows * cols]),
                $($width => fixed::<$width>(to, to_stride, from, from_stride, rows),)*
                _ => {
                    for row in 0..rows {
                        copy_row(&mut to[row * to_stride..][..cols], &from[row * from_stride..][..cols]);
                    }
                }
            }
        };
    }
    widths!(1 2 3 4 5 6 7 8 9 10 12 14 16 24 28 32);
}

/// Copies one row in pieces of fixed length, the last of which may overlap the one before.
#[inline(always)]
fn copy_row(to: &mut [f32], from: &[f32]) {
    const PIECE: usize = 16;
    let cols = to.len();
    if cols < PIECE {
        return to.copy_from_slice(from);
    }
    for (to, from) in to.as_chunks_mut::<PIECE>().0.iter_mut().zip(from.as_chunks::<PIECE>().0) {
        *to = *from;
    }
    if !cols.is_multiple_of(PIECE) {
        to[cols - PIECE..].copy_from_slice(&from[cols - PIECE..]);
    }
}

/// `to[i] = from[2 i]`; a plain loop over pairs, which compilers make vectors of.
#[inline(always)]
pub(crate) fn every_second(to: &mut [f32], from: &[f32]) {
    let Some((last, to)) = to.split_last_mut() else { return };
    *last = from[2 * to.len()];
    for (to, from) in to.iter_mut().zip(from.as_chunks::<2>().0) {
        *to = from[0];
    }
}

/// `even[i] = from[2 i], odd[i] = from[2 i + 1]`, of the former as many or one more; a plain loop over pairs, which compilers
/// make vectors of.
#[inline(always)]
pub(crate) fn deinterleave(even: &mut [f32], odd: &mut [f32], from: &[f32]) {
    let both = odd.len();
    let (pairs, (even, last)) = (&from.as_chunks::<2>().0[..both], even.split_at_mut(both));
    for i in 0..both {
        [even[i], odd[i]] = pairs[i];
    }
    if let [last] = last {
        *last = from[2 * both];
    }
}

/// `to = [even[0], odd[0], even[1], odd[1], ...]`; a plain loop over pairs, which compilers make vectors of.
#[inline(always)]
pub(crate) fn interleave(to: &mut [f32], even: &[f32], odd: &[f32]) {
    let (pairs, last) = to.as_chunks_mut::<2>();
    if let [last] = last {
        *last = even[pairs.len()];
    }
    for (pair, (even, odd)) in pairs.iter_mut().zip(even.iter().zip(odd)) {
        *pair = [*even, *odd];
    }
}

/// As [`copy_block`], adding to what is there.
pub(crate) fn add_block(to: &mut [f32], to_stride: usize, from: &[f32], from_stride: usize, rows: usize, cols: usize) {
    for row in 0..rows {
        let (to, from) = (&mut to[row * to_stride..][..cols], &from[row * from_stride..][..cols]);
        to.iter_mut().zip(from).for_each(|(t, f)| *t += f);
    }
}
