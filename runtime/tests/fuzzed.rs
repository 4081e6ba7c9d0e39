//! What fuzzing found stays found: inputs that once broke a rule, replayed without the fuzzer.

mod any_bytes;
mod common;
#[path = "../../fuzz/replay.rs"]
mod replay;

#[test]
fn bundles() {
    replay::replay("bundle", any_bytes::bundle);
}

/// The seed of the fuzz target is a bundle as the other tests have it, in use. `LIMBECK_BLESS=1` writes it anew.
#[test]
fn the_seed_is_a_bundle_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let bundle = common::write(dir.path(), true);
    let entry = limbeck_runtime::LedgerEntry {
        sequence: 0,
        weights: String::new(),
        step: "adapt (portable)".into(),
        runs: 4,
        data: vec!["00".into()],
        before: Default::default(),
        after: Default::default(),
    };
    let mut weights = bundle.state().clone();
    weights.retain(|name, _| name.starts_with("student"));
    for _ in 0..2 {
        bundle.commit(&weights, &entry).unwrap();
    }
    let seed = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/regressions/bundle/in-use");
    let packed = any_bytes::pack(dir.path());
    if std::env::var_os("LIMBECK_BLESS").is_some() {
        std::fs::write(&seed, &packed).unwrap();
    }
    assert!(std::fs::read(seed).unwrap() == packed, "LIMBECK_BLESS=1 writes the seed anew");
    any_bytes::bundle(&packed);
}
