//! What one sweep over a tile computes: an operator, or two of which the second is the only one that needs the first's
//! result, which then never leaves the registers; likewise the gradient of a clipping, which is whatever lies between two
//! numbers.

use super::plan::{Extent, Results, Statistic, Target};
use super::{MapProgram, Op};

/// One sweep over a tile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pass {
    /// The value that it makes.
    pub(super) value: usize,
    pub(super) kind: Kind,
    /// Its operands, those of the first operator before those of the second.
    pub(super) args: Vec<usize>,
}

/// What a pass does with its operands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// `op(a, b, c)`.
    One(Op),
    /// `second(first(a, b), c)`, or the second has `d` if the first has `c`; `a` has a value a position.
    Two(Op, Op),
    /// A reduction over axes that are not the rows: of `a`, or the sum or mean of `a * b`.
    Sums(Statistic),
}

/// The passes of a program whose values have these extents.
pub(super) fn passes(program: &MapProgram, extents: &[Extent], results: &Results) -> Vec<Pass> {
    let inputs = program.inputs;
    let target = |value: usize| results.iter().find(|(v, ..)| *v == value).map(|(_, target, _)| target);
    let leaves = |value: usize| target(value).is_some();
    // A copy is what it is a copy of, and And is the product of truth values.
    let mut same: Vec<usize> = (0..inputs).collect();
    let mut passes: Vec<Pass> = vec![];
    for (i, step) in program.steps.iter().enumerate() {
        let value = inputs + i;
        let args: Vec<usize> = step.args.iter().map(|&a| same[a]).collect();
        if step.op == Op::Identity && !leaves(value) {
            same.push(args[0]);
            continue;
        }
        same.push(value);
        let kind = match (step.op, target(value)) {
            (_, Some(&Target::Sums { statistic, from })) if results[from].0 == value => Kind::Sums(statistic),
            (_, Some(Target::Sums { .. })) => continue,
            (Op::And, _) => Kind::One(Op::Mul),
            (op, _) => Kind::One(op),
        };
        passes.push(Pass { value, kind, args });
    }
    let mut uses = vec![0; extents.len()];
    passes.iter().flat_map(|pass| &pass.args).for_each(|&arg| uses[arg] += 1);
    let mut at: Vec<Option<usize>> = vec![None; extents.len()];
    let mut fused: Vec<Option<Pass>> = vec![];
    for pass in passes {
        // The earlier pass whose result nothing else needs.
        let own = |arg: usize| at[arg].filter(|_| uses[arg] == 1 && !leaves(arg) && extents[arg] == Extent::All);
        let earlier: Vec<Option<usize>> = pass.args.iter().map(|&arg| own(arg)).collect();
        let made = |slot: usize| fused[(*earlier.get(slot)?)?].as_ref();
        let both = || Some((between(made(0)?, made(1)?, &pass, extents)?, 0..2));
        let one = |slot: usize| Some((join(made(slot)?, &pass, slot, extents)?, slot..slot + 1));
        let found = both().or_else(|| (0..earlier.len()).find_map(one));
        let (pass, joined) = found.unwrap_or((pass, 0..0));
        earlier[joined].iter().flatten().for_each(|&index| fused[index] = None);
        at[pass.value] = Some(fused.len());
        fused.push(Some(pass));
    }
    fused.into_iter().flatten().collect()
}

/// Both passes as one, if there is such a one; the first makes the second's operand number `slot`.
fn join(first: &Pass, second: &Pass, slot: usize, extents: &[Extent]) -> Option<Pass> {
    let mut args = first.args.clone();
    let kind = match (first.kind, second.kind) {
        (Kind::One(Op::Mul), Kind::Sums(statistic))
            if statistic != Statistic::Variance && args.iter().all(|&a| extents[a] == Extent::All) =>
        {
            Kind::Sums(statistic)
        }
        (Kind::One(a), Kind::One(b)) if a.comes_before(b) && extents[second.value] == Extent::All => {
            if extents[args[0]] != Extent::All {
                args.swap(0, 1);
                if !a.commutes() {
                    return None;
                }
            }
            match second.args[..] {
                [_] => {}
                [_, c] if slot == 0 => args.push(c),
                [c, _] if b.commutes() => args.push(c),
                _ => return None,
            }
            Kind::Two(a, b)
        }
        _ => return None,
    };
    Some(Pass { value: second.value, kind, args })
}

/// Two comparisons of the same values with numbers and their conjunction, as one pass.
fn between(a: &Pass, b: &Pass, both: &Pass, extents: &[Extent]) -> Option<Pass> {
    let (above, below) = match (a.kind, b.kind) {
        (Kind::One(Op::Greater), Kind::One(Op::Less)) => (a, b),
        (Kind::One(Op::Less), Kind::One(Op::Greater)) => (b, a),
        _ => return None,
    };
    let (x, low, high) = (above.args[0], above.args[1], below.args[1]);
    let fits = both.kind == Kind::One(Op::Mul)
        && below.args[0] == x
        && extents[x] == Extent::All
        && [low, high].iter().all(|&bound| extents[bound] == Extent::One);
    fits.then(|| Pass { value: both.value, kind: Kind::One(Op::Between), args: vec![x, low, high] })
}
