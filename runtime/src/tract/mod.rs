//! The tract engine: pure Rust, embedded, for every board.

mod convert;
mod load;
mod ops;
mod optimise;
mod pool;
mod program;
mod schedule;
mod threads;

use crate::{
    Form, RuntimeError,
    engine::{CompileOptions, Device, Engine, EngineInfo, Model, Program, guarded},
    store::StateStore,
};
use threads::Threads;
use tract_onnx::prelude::TractError;

pub(crate) const NAME: &str = "tract";

struct Tract;

/// The engine; it needs nothing but itself.
pub(crate) fn engine() -> &'static dyn Engine {
    &Tract
}

impl Engine for Tract {
    fn name(&self) -> &'static str {
        NAME
    }

    fn describe(&self) -> EngineInfo {
        EngineInfo { name: NAME, version: "0.23.9".into(), library: None, providers: vec!["cpu".into()] }
    }

    fn forms(&self) -> &'static [Form] {
        &[Form::Portable, Form::Fused]
    }

    fn inference_form(&self) -> Form {
        Form::Fused
    }

    fn compile(&self, model: &Model, options: &CompileOptions) -> Result<Box<dyn Program>, RuntimeError> {
        if options.device != Device::Cpu {
            let what = format!("{:?}; it runs on the CPU only", options.device);
            return Err(RuntimeError::Unsupported { engine: NAME, what });
        }
        options.check(NAME)?;
        guarded(NAME, "compile the model", || {
            let threads = Threads::of(options.thread_count());
            let program = threads.load(|| {
                let loaded = load::load(model)?;
                program::TractProgram::new(loaded, &model.state, threads.clone())
            })?;
            Ok(Box::new(program) as Box<dyn Program>)
        })
    }

    fn new_store(&self) -> StateStore {
        StateStore::new(NAME, convert::upload)
    }
}

/// tract's error with its chain of contexts, which name the node.
fn failed(what: &str, error: TractError) -> RuntimeError {
    RuntimeError::Engine { engine: NAME, what: what.into(), reason: format!("{error:#}") }
}
