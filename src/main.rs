//! Command line in, exit code out.

use std::process::ExitCode;

use clap::Parser as _;
use claviger::cli::{Arguments, run};

/// An answer is made of thousands of small values; the system's own allocator takes a fifth of the time (docs/performance.md).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[tokio::main]
async fn main() -> ExitCode {
    run(Arguments::parse()).await
}
