//! Links the runtime alone and runs a bundle: opens it (sizes, hashes, self-test) and asks it about one input.
//!
//! `cargo run --release` makes one; then `cargo run --example run_bundle -- limbeck-demo/bundle-0`

use limbeck::runtime::{Bundle, CompileOptions, engine};

fn main() -> anyhow::Result<()> {
    let folder = std::env::args().nth(1).unwrap_or_else(|| "limbeck-demo/bundle-0".into());
    let bundle = Bundle::open(folder)?;
    // The session is refused when the engine does not reproduce the bundle's self-test.
    let session = bundle.session(engine("tract")?, &CompileOptions::default())?;
    let held_out = bundle.gate()?.ok_or_else(|| anyhow::anyhow!("the bundle holds no rows to try"))?;
    let x = held_out["x"].rows(0..1)?;
    let answer = session.predict(&[("x", &x)])?;
    let logits = answer["logits"].to_f64_vec()?;
    let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap_or(0);
    println!("answer {}, label {}", bundle.manifest().classes[best], held_out["y"].to_i64_vec()?[0]);
    Ok(())
}
