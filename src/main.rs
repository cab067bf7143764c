//! Command line in, exit code out.

use std::process::ExitCode;

use clap::Parser as _;
use claviger::cli::{Arguments, run};

#[tokio::main]
async fn main() -> ExitCode {
    run(Arguments::parse()).await
}
