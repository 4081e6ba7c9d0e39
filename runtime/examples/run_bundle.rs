//! Links the runtime alone and runs a bundle: opens it (sizes, hashes, self-test) and asks it about one held-out row.
//!
//! `cargo run -p limbeck-runtime --example run_bundle -- BUNDLE`

use limbeck_runtime::{Bundle, CompileOptions, RuntimeError, engine, rows};
use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::args().nth(1).ok_or("name a bundle's folder")?;
    println!("{}", answer(Path::new(&folder))?);
    Ok(())
}

/// What the student says to the first held-out row.
pub(crate) fn answer(folder: &Path) -> Result<String, RuntimeError> {
    let bundle = Bundle::open(folder)?;
    // The session is refused when the engine does not reproduce the bundle's self-test.
    let session = bundle.session(engine("tract")?, &CompileOptions::default())?;
    let Some(held_out) = bundle.gate()? else { return Ok("the bundle holds no rows to try".into()) };
    let (inputs, outputs) = (session.inputs(), session.outputs());
    let ([input], Some(output)) = (&inputs[..], outputs.first()) else {
        return Ok(format!("the model has {} inputs; this example feeds one", inputs.len()));
    };
    let results = session.predict(&[(&input.name, &held_out["x"].rows(0..1)?.aligned())])?;
    let class = rows::classes(&results[&output.name])?[0];
    let name = usize::try_from(class).ok().and_then(|class| bundle.manifest().classes.get(class));
    let label = held_out.get("y").map(|y| y.to_i64_vec()).transpose()?;
    Ok(match label.as_deref() {
        Some([label, ..]) => format!("class {class} ({}), the label is {label}", name.map_or("no name", |n| n)),
        _ => format!("class {class} ({})", name.map_or("no name", |n| n)),
    })
}
