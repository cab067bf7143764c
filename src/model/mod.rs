//! Plain values that every layer uses: ids, roles and permissions, enums, time, pages. No SQL, HTTP or GraphQL.

mod api_key;
mod chain;
mod cli_tool;
mod clock;
mod email;
mod enums;
mod id;
mod json_object;
mod money;
mod page;
mod permission;
mod text;
mod timestamp;
mod usage;

pub use api_key::{
    AllowedIps, AllowedModels, ApiKeyScope, ApiKeyScopes, ApiKeyStatus, ApiKeyVerificationCode, InvalidAllowed,
};
pub use chain::{ChainPoint, InvalidChainPoint};
pub use cli_tool::{CLI_TOOLS, CliTool};
pub use clock::Clock;
pub use email::{Email, InvalidEmail};
pub use enums::{
    AuditAction, AuditOutcome, ClaudeAccountHealthState, ClaudeAccountStatus, ClaudeTier, ClientStatus,
    MailTokenPurpose, MessageRole, NotificationKind, Plan, ResourceType, TaskPriority, TaskStatus, UnknownName,
    UserStatus, WorkerState,
};
pub use id::{
    ApiKeyId, AuditLogId, ClaudeAccountId, ClientId, ConversationId, CredentialId, Id, InvalidId, Kind, MailId,
    MessageId, NotificationId, OrganizationId, PasswordKeyId, RefreshTokenId, SessionId, TaskId, UsageRecordId, UserId,
    WorkerId, kind,
};
pub use json_object::{InvalidJsonObject, JsonObject};
pub use money::{InvalidAmount, MicroUsd, NanoUsd};
pub use page::{Cursor, Direction, MAX_PAGE_SIZE, Page, PageSlice, Position, SortKey, Window};
pub use permission::{
    Access, ArchiveClients, DeleteCredentials, DeleteTasks, Denied, Grant, ManageApiKeys, ManageClaudeAccounts,
    ManageOneself, ManageOrganization, ManageOwnApiKeys, ManageUsers, Permission, Permit, PruneAuditLogs, Read,
    RevealCredentials, Role, RotateKeys, UseConversations, UseRelay, ViewAuditLogs, ViewSystem, ViewUsage, ViewUsers,
    WriteClients, WriteCredentials, WriteTasks,
};
pub use text::breaks_a_line;
pub use timestamp::Timestamp;
pub use usage::{LimitLevel, Tokens, UsageInterval};
