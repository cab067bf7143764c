//! The tools of the Claude CLI that a setting may allow.

/// A tool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CliTool {
    /// What the CLI calls it.
    pub name: &'static str,
    /// What it does.
    pub description: &'static str,
}

/// All that can be allowed. What asks a person at a terminal, or goes on after an answer, is not among them.
pub const CLI_TOOLS: &[CliTool] = &[
    CliTool { name: "Agent", description: "Has a part of the work done by another agent." },
    CliTool { name: "Bash", description: "Runs shell commands on the server, as the server's user." },
    CliTool { name: "Edit", description: "Changes files on the server." },
    CliTool { name: "Glob", description: "Finds files on the server by their names." },
    CliTool { name: "Grep", description: "Finds text in files on the server." },
    CliTool { name: "NotebookEdit", description: "Changes notebooks on the server." },
    CliTool { name: "Read", description: "Reads files on the server." },
    CliTool { name: "WebFetch", description: "Reads a page of the web, from the server." },
    CliTool { name: "WebSearch", description: "Searches the web, by the upstream." },
    CliTool { name: "Write", description: "Writes files on the server." },
];
