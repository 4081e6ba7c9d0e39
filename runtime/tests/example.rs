//! The example runs on a bundle.

mod common;

#[allow(dead_code)]
#[path = "../examples/run_bundle.rs"]
mod run_bundle;

#[cfg(feature = "tract")]
#[test]
fn the_example_answers() {
    for (labels, answer) in [(true, "class 0 (east), the label is 0"), (false, "class 0 (east)")] {
        let dir = tempfile::tempdir().unwrap();
        common::write(dir.path(), labels);
        assert_eq!(run_bundle::answer(dir.path()).unwrap(), answer);
    }
    let nothing = tempfile::tempdir().unwrap();
    assert!(run_bundle::answer(nothing.path()).unwrap_err().to_string().contains("bundle.json"));
}
