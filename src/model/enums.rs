//! Closed sets of names, written the same in the database, in the audit log and in GraphQL.

use std::str::FromStr;

/// A name outside its set: the database holds what this version does not know.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown {set}: {name}")]
pub struct UnknownName {
    /// Which set.
    pub set: &'static str,
    /// The name that is not in it.
    pub name: String,
}

macro_rules! names {
    ($($(#[$meta:meta])* $set:ident { $($(#[$variant_meta:meta])* $variant:ident = $name:literal),+ $(,)? })+) => {$(
        $(#[$meta])*
        #[allow(missing_docs, reason = "each member is described where the API shows it")]
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $set { $($(#[$variant_meta])* $variant),+ }

        impl $set {
            /// Every member, in the order of declaration.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The name in the database, in the audit log and in GraphQL.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }
        }

        impl FromStr for $set {
            type Err = $crate::model::UnknownName;

            fn from_str(name: &str) -> Result<Self, Self::Err> {
                match name {
                    $($name => Ok(Self::$variant),)+
                    other => Err($crate::model::UnknownName { set: stringify!($set), name: other.to_owned() }),
                }
            }
        }
    )+};
}
pub(super) use names;

names! {
    /// What an organization has booked.
    Plan { Free = "FREE", Pro = "PRO", Enterprise = "ENTERPRISE" }

    /// Whether a user may sign in.
    UserStatus { Invited = "INVITED", Active = "ACTIVE", Suspended = "SUSPENDED" }

    /// What a token that came by mail is good for.
    MailTokenPurpose { VerifyEmail = "VERIFY_EMAIL", ResetPassword = "RESET_PASSWORD" }

    /// Whether the relay may use an account.
    ClaudeAccountStatus { Active = "ACTIVE", Suspended = "SUSPENDED", Expired = "EXPIRED", Pending = "PENDING" }

    /// An account's plan at the upstream.
    ClaudeTier { Free = "FREE", Pro = "PRO", Enterprise = "ENTERPRISE" }

    /// How an account's last requests went.
    ClaudeAccountHealthState {
        Unknown = "UNKNOWN",
        Healthy = "HEALTHY",
        RateLimited = "RATE_LIMITED",
        Overloaded = "OVERLOADED",
        Unauthorized = "UNAUTHORIZED",
        Failing = "FAILING",
        Exhausted = "EXHAUSTED",
    }

    /// What kind of thing a notification tells of.
    NotificationKind {
        ClaudeAccountUnhealthy = "CLAUDE_ACCOUNT_UNHEALTHY",
        UsageLimitNear = "USAGE_LIMIT_NEAR",
        UsageLimitReached = "USAGE_LIMIT_REACHED",
        ApiKeyExpiring = "API_KEY_EXPIRING",
        Security = "SECURITY",
        System = "SYSTEM",
    }

    /// How far one is with a client.
    ClientStatus { Lead = "LEAD", Active = "ACTIVE", Paused = "PAUSED", Archived = "ARCHIVED" }

    /// How far a task is.
    TaskStatus {
        Todo = "TODO",
        InProgress = "IN_PROGRESS",
        Blocked = "BLOCKED",
        Done = "DONE",
        Cancelled = "CANCELLED",
    }

    /// How urgent a task is, the least first.
    TaskPriority { Low = "LOW", Normal = "NORMAL", High = "HIGH", Urgent = "URGENT" }

    /// Who has said something in a conversation.
    MessageRole { User = "USER", Assistant = "ASSISTANT" }

    /// What a process does that answers conversations.
    WorkerState {
        Starting = "STARTING",
        Idle = "IDLE",
        Busy = "BUSY",
        Stopping = "STOPPING",
        Failed = "FAILED",
    }

    /// The kind of deed that an audit entry records.
    AuditAction {
        Create = "CREATE",
        Update = "UPDATE",
        Delete = "DELETE",
        View = "VIEW",
        Reveal = "REVEAL",
        Archive = "ARCHIVE",
        Restore = "RESTORE",
        Revoke = "REVOKE",
        Regenerate = "REGENERATE",
        SignIn = "SIGN_IN",
        SignOut = "SIGN_OUT",
        Refresh = "REFRESH",
        Register = "REGISTER",
        Invite = "INVITE",
        Verify = "VERIFY",
        Test = "TEST",
        Other = "OTHER",
    }

    /// How a deed ended.
    AuditOutcome { Success = "SUCCESS", Denied = "DENIED", Failed = "FAILED" }

    /// What a deed was done to.
    ResourceType {
        Organization = "ORGANIZATION",
        User = "USER",
        Session = "SESSION",
        ClaudeAccount = "CLAUDE_ACCOUNT",
        Client = "CLIENT",
        Task = "TASK",
        Credential = "CREDENTIAL",
        ApiKey = "API_KEY",
        Conversation = "CONVERSATION",
        Notification = "NOTIFICATION",
        System = "SYSTEM",
    }
}
