//! Values by name. The names themselves are the values' own.

use crate::ValueId;
use crate::ir::Value;
use hashbrown::{DefaultHashBuilder, HashTable};
use std::hash::BuildHasher;

/// An index of values by their names, which are read from the list of values that every method takes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Names {
    table: HashTable<ValueId>,
    hasher: DefaultHashBuilder,
}

impl Names {
    /// The value of this name.
    pub(crate) fn find(&self, values: &[Value], name: &str) -> Option<ValueId> {
        self.table.find(self.hasher.hash_one(name), |&id| name_of(values, id) == name).copied()
    }

    /// Enters a value, whose name no entered one has.
    pub(crate) fn insert(&mut self, values: &[Value], id: ValueId) {
        let hash = |&id: &ValueId| self.hasher.hash_one(name_of(values, id));
        self.table.insert_unique(hash(&id), id, hash);
    }

    /// Takes a value out, which must still have the name that it was entered with.
    pub(crate) fn remove(&mut self, values: &[Value], id: ValueId) {
        let hash = self.hasher.hash_one(name_of(values, id));
        if let Ok(entry) = self.table.find_entry(hash, |&other| other == id) {
            entry.remove();
        }
    }
}

/// It follows from the values, which are compared themselves.
impl PartialEq for Names {
    fn eq(&self, _: &Names) -> bool {
        true
    }
}

fn name_of(values: &[Value], id: ValueId) -> &str {
    &values[id.0 as usize].name
}
