//! Every suite runs on the engines that this machine has; this one says which those are not.
#![allow(missing_docs)]

use limbeck::runtime::{ENGINES, engine, engines};
use std::io::Write;

#[test]
fn at_least_one_engine_is_tested_and_the_others_are_named() {
    for name in ENGINES {
        if let Err(reason) = engine(name) {
            // Written past the harness, which would keep it to itself.
            writeln!(std::io::stderr(), "NOT TESTED: {name}: {reason}").unwrap();
        }
    }
    assert!(!engines().is_empty());
}
