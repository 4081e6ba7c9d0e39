//! Which train step, and which form of it, a learner runs.

use super::{LearnerOptions, refuse};
use crate::{Bundle, Engine, Program, RuntimeError, StepManifest, StepVariant};

/// The step that the options ask for: label, manifest, program. Where they leave the form open, it is the bundle's first
/// that the engine has and the bytes allow.
pub(super) fn choose_step(
    bundle: &Bundle,
    engine: &dyn Engine,
    options: &LearnerOptions,
) -> Result<(String, StepManifest, Box<dyn Program>), RuntimeError> {
    let steps = &bundle.manifest().steps;
    let show =
        |list: &[&StepVariant]| list.iter().map(|s| format!("{} ({})", s.name, s.form)).collect::<Vec<_>>().join(", ");
    let Some(name) = options.step.as_ref().or(steps.first().map(|s| &s.name)) else {
        return refuse("the bundle has no train step; export it with one");
    };
    let asked = |s: &&StepVariant| s.name == *name && options.form.is_none_or(|form| form == s.form);
    let named: Vec<&StepVariant> = steps.iter().filter(asked).collect();
    let (runs, lacks): (Vec<&StepVariant>, Vec<_>) = named.iter().partition(|s| engine.forms().contains(&s.form));
    let fits = |s: &&&StepVariant| options.max_bytes.is_none_or(|most| s.predicted_bytes <= most);
    let Some(variant) = runs.iter().find(fits) else {
        let least = runs.iter().map(|s| s.predicted_bytes).min();
        return match (least, named.is_empty()) {
            (Some(least), _) => refuse(format!(
                "`{name}` needs {least} bytes or more on {}, {} are allowed; export a smaller batch or fewer trained layers",
                engine.name(),
                options.max_bytes.unwrap_or(u64::MAX)
            )),
            (None, true) => refuse(format!(
                "the bundle has no step `{name}` in the form asked for; there are {}",
                show(&steps.iter().collect::<Vec<_>>())
            )),
            (None, false) => refuse(format!(
                "{} has no kernels for {}; export the portable form too, or use another engine",
                engine.name(),
                show(&lacks)
            )),
        };
    };
    let label = format!("{} ({})", variant.name, variant.form);
    tracing::info!(engine = engine.name(), step = label, passed_over = show(&lacks), "chose the train step");
    let (manifest, model) = bundle.step(variant)?;
    let program = engine.compile(&model, &options.compile)?;
    Ok((label, manifest, program))
}
