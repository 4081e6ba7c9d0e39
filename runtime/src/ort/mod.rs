//! The ONNX Runtime engine, through a shared library that the user brings.

#[allow(unsafe_code)]
mod call;
#[allow(unsafe_code)]
mod count;
#[allow(unsafe_code)]
mod custom;
#[allow(unsafe_code)]
mod ffi;
mod nodes;
mod probe;
mod program;
mod rewrite;

use crate::{
    Form, RuntimeError,
    engine::{CompileOptions, Device, Engine, EngineInfo, Model, Program, guarded},
    store::StateStore,
};
use ort::{
    environment::Environment,
    ep::{CUDA, ExecutionProviderDispatch, TensorRT},
    logging::LogLevel,
    session::{
        Session,
        builder::{GraphOptimizationLevel, SessionBuilder},
    },
};
use std::{
    collections::BTreeMap,
    fmt::Display,
    path::PathBuf,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

pub(crate) const NAME: &str = "ort";

struct Ort {
    environment: Environment,
    library: PathBuf,
    version: String,
}

/// The engine, started on the first call that finds a library; a later call may succeed where one failed.
///
/// # Errors
/// [`RuntimeError::Library`], or what ONNX Runtime says when it does not start.
pub(crate) fn engine() -> Result<&'static dyn Engine, RuntimeError> {
    static ENGINE: OnceLock<Ort> = OnceLock::new();
    static STARTING: Mutex<()> = Mutex::new(());
    // One environment a process: two threads must not start it together.
    let _one = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
    if ENGINE.get().is_none() {
        let (library, version) = probe::find()?;
        let environment = guarded(NAME, "start ONNX Runtime", || {
            let builder = ort::init_from(&library).map_err(|e| failed("load its library", e))?;
            let builder = builder.with_name("limbeck").with_telemetry(false).with_logger(Arc::new(log));
            builder.build().map_err(|e| failed("start ONNX Runtime", e))
        })?;
        // Without this the library formats every verbose line only for the logger to drop it.
        environment.set_log_level(LogLevel::Warning);
        let _ = ENGINE.set(Ort { environment, library, version });
    }
    match ENGINE.get() {
        Some(engine) => Ok(engine),
        None => Err(failed("start ONNX Runtime", "it is not there after it was started")),
    }
}

/// The library's own lines. Errors also come back as results, so they are no more than a hint here.
fn log(level: LogLevel, category: &str, _id: &str, place: &str, message: &str) {
    match level {
        LogLevel::Fatal => tracing::error!(category, place, "{message}"),
        LogLevel::Error | LogLevel::Warning => tracing::debug!(category, place, "{message}"),
        LogLevel::Info | LogLevel::Verbose => tracing::trace!(category, place, "{message}"),
    }
}

impl Engine for Ort {
    fn name(&self) -> &'static str {
        NAME
    }

    fn describe(&self) -> EngineInfo {
        EngineInfo {
            name: NAME,
            version: self.version.clone(),
            library: Some(self.library.clone()),
            providers: ffi::available_providers(),
        }
    }

    fn forms(&self) -> &'static [Form] {
        &[Form::Portable, Form::Fused]
    }

    /// It lays constant weights out anew for its own convolutions.
    fn inference_form(&self) -> Form {
        Form::Portable
    }

    fn compile(&self, model: &Model, options: &CompileOptions) -> Result<Box<dyn Program>, RuntimeError> {
        options.check(NAME)?;
        guarded(NAME, "compile the model", || {
            let builder = self.builder(model, options).map_err(|e| failed("load the model", e))?;
            // On a device the functions of the file stand for Limbeck's own operators.
            let own = options.device == Device::Cpu && !nodes::own(&model.bytes)?.is_empty();
            let rewritten = if own { Some(rewrite::for_library(&model.bytes)?) } else { None };
            let bytes = rewritten.as_deref().unwrap_or(&model.bytes);
            let own = if own { nodes::own(bytes)? } else { BTreeMap::new() };
            let load = |counter| custom::Loaded::new(builder, bytes, &own, options.thread_count(), counter);
            let loaded = match options.count {
                false => load(None)?,
                true => {
                    let counter = count::Counter::new()?;
                    counter.with(&self.environment, || load(Some(counter.clone())))?
                }
            };
            Ok(Box::new(program::OrtProgram::new(loaded, &model.state, options.device)?) as Box<dyn Program>)
        })
    }

    fn new_store(&self) -> StateStore {
        StateStore::new(NAME, ffi::upload)
    }
}

impl Ort {
    fn builder(&self, model: &Model, options: &CompileOptions) -> ort::Result<SessionBuilder> {
        // Without a folder the library would look for external data in the working directory.
        let folder = model.folder.clone().unwrap_or_else(|| PathBuf::from("(the model has no folder)"));
        // On a device, a node that falls back to the CPU is an error, not a hidden copy there and back at every run.
        let no_fallback = if options.device == Device::Cpu { "0" } else { "1" };
        let shared_allocator = if options.count { "1" } else { "0" };
        Ok(Session::builder(&self.environment)?
            .with_log_level(LogLevel::Warning)?
            .with_optimization_level(GraphOptimizationLevel::All)?
            .with_intra_threads(options.thread_count())?
            .with_inter_threads(1)?
            // Within a run, waking a thread takes longer than most nodes.
            .with_intra_op_spinning(true)?
            .with_config_entry("session.force_spinning_stop", if options.spin { "0" } else { "1" })?
            .with_inter_op_spinning(false)?
            .with_deterministic_compute(true)?
            // With it the library keeps the memory of its first run beside the block that all later ones use.
            .with_memory_pattern(false)?
            .with_config_entry("session.model_external_initializers_file_folder_path", folder.to_string_lossy())?
            .with_config_entry("session.disable_cpu_ep_fallback", no_fallback)?
            .with_config_entry("session.use_env_allocators", shared_allocator)?
            .with_execution_providers(providers(options))?)
    }
}

/// The providers to register, each of them required.
fn providers(options: &CompileOptions) -> Vec<ExecutionProviderDispatch> {
    let cuda = |device| CUDA::default().with_device_id(device).build().error_on_failure();
    match options.device {
        Device::Cpu => vec![],
        Device::Cuda(device) => vec![cuda(device)],
        Device::TensorRt(device) => {
            let mut tensorrt = TensorRT::default().with_device_id(device).with_fp16(options.half);
            if let Some(folder) = &options.cache {
                let folder = folder.to_string_lossy();
                tensorrt = tensorrt.with_engine_cache(true).with_engine_cache_path(&folder);
                tensorrt = tensorrt.with_timing_cache(true).with_timing_cache_path(&folder);
            }
            vec![tensorrt.build().error_on_failure(), cuda(device)]
        }
    }
}

fn failed(what: &str, reason: impl Display) -> RuntimeError {
    RuntimeError::Engine { engine: NAME, what: what.into(), reason: reason.to_string() }
}
