//! Parses the command line and runs it.
//!
//! Exit status: 0 when the work is done, 1 when it failed with the reason on standard error, 2 when the
//! command line was wrong (clap's own convention).

#![forbid(unsafe_code)]

use std::process::ExitCode;

use hearth_domain::error::sentence;

use hearth::cli::Cli;

fn main() -> ExitCode {
    hearth_kernels::freed_memory::bound_arenas();
    match Cli::parse_arguments(std::env::args_os()).run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hearth: {}", sentence(&error));
            ExitCode::FAILURE
        }
    }
}

/// The reader of our output has enough, as `head` does; that is not a failure.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<std::io::Error>())
        .any(|cause| cause.kind() == std::io::ErrorKind::BrokenPipe)
}
