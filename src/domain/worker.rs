//! The processes that answer conversations, and their tools, as those see them who may look after the server.

use super::context::Cx;
use super::error::Result;
use crate::model::{CLI_TOOLS, CliTool, Permit, Read, ViewSystem, WorkerId};
use crate::workers::Worker;

/// What is said where the Claude CLI is missing.
pub const NO_CLI: &str =
    "The Claude CLI is not installed on this server: conversations cannot be answered. CLAUDE_CLI says where it is.";

/// The processes that serve the caller's organization.
///
/// # Errors
/// Without permission.
pub fn all(cx: Cx<'_>) -> Result<Vec<Worker>> {
    let permit: Permit<ViewSystem> = cx.actor.require()?;
    let workers = &cx.services.workers;
    if workers.program().is_none() {
        workers.note_missing(permit.organization());
    }
    Ok(workers.of(permit.organization()))
}

/// One of them.
///
/// # Errors
/// Without permission.
pub fn find(cx: Cx<'_>, id: WorkerId) -> Result<Option<Worker>> {
    let permit: Permit<ViewSystem> = cx.actor.require()?;
    Ok(cx.services.workers.find(permit.organization(), id))
}

/// The next change of one of them, after one that is known.
///
/// # Errors
/// Without permission.
pub fn next_change(cx: Cx<'_>, after: u64) -> Result<Option<Worker>> {
    let permit: Permit<ViewSystem> = cx.actor.require()?;
    Ok(cx.services.workers.next_change(permit.organization(), after))
}

/// The tools of the CLI, and whether conversations may use each.
///
/// # Errors
/// Where nobody is signed in.
pub fn tools(cx: Cx<'_>) -> Result<Vec<(CliTool, bool)>> {
    let _: Permit<Read> = cx.actor.require()?;
    let has_cli = cx.services.workers.program().is_some();
    let is_allowed = |tool: &CliTool| cx.services.turn_limits.tools.iter().any(|name| name == tool.name);
    Ok(CLI_TOOLS.iter().map(|tool| (*tool, has_cli && is_allowed(tool))).collect())
}
