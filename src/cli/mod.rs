//! The `limbeck` command: one file a subcommand.

mod bundle;
mod compare;
mod distill;
mod doctor;
mod export;
mod grad;
mod import;
mod inspect;
mod objective;
pub(crate) mod output;
mod run;
mod step;
mod targets;
mod tensors;

use anyhow::Result;
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use std::process::ExitCode;

/// Distils a trained network into a small student, ships it as ONNX and keeps it learning on the device.
#[derive(Debug, Parser)]
#[command(version, about, max_term_width = 110)]
pub struct Cli {
    /// What to do; nothing runs the demo.
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    demo: crate::digits::DemoArgs,
    /// Print facts as JSON.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The whole job on handwritten digits: teacher, student, compression, bundle, field.
    Demo(crate::digits::DemoArgs),
    /// Says what this machine offers: engines, libraries, cores, memory.
    Doctor,
    /// Says what a model is made of and whether it can be trained.
    Inspect(inspect::Args),
    /// Makes a model from elsewhere static: fixes inputs and dims, resolves branches, brings it to one opset.
    Import(import::Args),
    /// Runs a model on tensors from files.
    Run(run::Args),
    /// Runs a model on every engine and the reference evaluator and compares their answers.
    Compare(compare::Args),
    /// Trains a student as a recipe says.
    Distill(distill::Args),
    /// Writes the train step of a recipe as files.
    Step(step::Args),
    /// Gradient of a scalar output for every float initializer.
    Grad(grad::Args),
    /// Makes a model smaller, from file to file.
    #[command(subcommand)]
    Export(export::Command),
    /// Describes and checks bundles.
    #[command(subcommand)]
    Bundle(bundle::Command),
    /// Lists, describes and evaluates distillation objectives.
    #[command(subcommand)]
    Objective(objective::Command),
    /// Lists, describes and checks boards.
    #[command(subcommand)]
    Targets(targets::Command),
}

/// Runs the command line; the exit code is 0 for success, 1 for a failure, 2 for wrong usage, 3 when a check
/// (comparison, target fit, self-test) says no.
pub fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("LIMBECK_LOG").unwrap_or_else(|_| "warn,tract=error".into()),
        )
        .with_writer(std::io::stderr)
        .init();
    let cli = parse();
    match dispatch(cli) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(3),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The command line. Options of the demo may stand alone, but not before another command.
fn parse() -> Cli {
    let matches = Cli::command().get_matches();
    let given = |id: &clap::Id| matches.value_source(id.as_str()) == Some(ValueSource::CommandLine);
    if let (Some(command), Some(option)) =
        (matches.subcommand_name(), matches.ids().filter(|id| id.as_str() != "json").find(|id| given(id)))
    {
        let reason = format!("--{option} belongs behind `{command}`");
        Cli::command().error(ErrorKind::ArgumentConflict, reason).exit();
    }
    Cli::from_arg_matches(&matches).unwrap_or_else(|e| e.exit())
}

fn dispatch(cli: Cli) -> Result<bool> {
    let json = cli.json;
    match cli.command.unwrap_or(Command::Demo(cli.demo)) {
        Command::Demo(args) => crate::digits::run(&args, json).map(|()| true),
        Command::Doctor => doctor::run(json),
        Command::Inspect(args) => inspect::run(&args, json),
        Command::Import(args) => import::run(&args, json),
        Command::Run(args) => run::run(&args, json),
        Command::Compare(args) => compare::run(&args, json),
        Command::Distill(args) => distill::run(&args, json),
        Command::Step(args) => step::run(&args, json),
        Command::Grad(args) => grad::run(&args, json),
        Command::Export(command) => export::run(&command, json),
        Command::Bundle(command) => bundle::run(&command, json),
        Command::Objective(command) => objective::run(&command, json),
        Command::Targets(command) => targets::run(&command, json),
    }
}
