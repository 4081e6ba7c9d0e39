//! A set of values of one graph.

use crate::ValueId;

/// A set of values of one graph, a bit for each: what passes keep while they walk over the nodes.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ValueSet(Vec<u64>);

impl ValueSet {
    /// True when the value is in the set.
    pub fn contains(&self, id: ValueId) -> bool {
        let (word, bit) = place(id);
        self.0.get(word).is_some_and(|w| w & bit != 0)
    }

    /// Adds a value; false when it was in the set.
    pub fn insert(&mut self, id: ValueId) -> bool {
        let (word, bit) = place(id);
        if word >= self.0.len() {
            self.0.resize(word + 1, 0);
        }
        let new = self.0[word] & bit == 0;
        self.0[word] |= bit;
        new
    }
}

fn place(id: ValueId) -> (usize, u64) {
    (id.0 as usize / 64, 1 << (id.0 % 64))
}

impl Extend<ValueId> for ValueSet {
    fn extend<I: IntoIterator<Item = ValueId>>(&mut self, ids: I) {
        ids.into_iter().for_each(|id| _ = self.insert(id));
    }
}

impl FromIterator<ValueId> for ValueSet {
    fn from_iter<I: IntoIterator<Item = ValueId>>(ids: I) -> ValueSet {
        let mut set = ValueSet::default();
        set.extend(ids);
        set
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_what_was_put_in() {
        let mut set: ValueSet = [3, 64, 200].map(ValueId).into_iter().collect();
        assert!(!set.insert(ValueId(64)) && set.insert(ValueId(63)));
        assert!(!set.contains(ValueId(100_000)));
        let held: Vec<u32> = (0..300).filter(|&i| set.contains(ValueId(i))).collect();
        assert_eq!(held, [3, 63, 64, 200]);
    }
}
