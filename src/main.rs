//! The `limbeck` command.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    limbeck::cli::main()
}
