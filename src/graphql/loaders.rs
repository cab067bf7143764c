//! Loaders: what the rows of one page refer to is read in one statement.
//!
//! They are made for each request and never shared, so a read that is given up takes nobody else's rows with it. Absence and
//! failure are values, since a batch answers for all of its keys.

use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::marker::PhantomData;
use std::sync::Arc;

use async_graphql::Context;
use dataloader::BatchFn;
use dataloader::cached::Loader;

use super::context::Caller;
use super::error::{Failure, Result};
use crate::domain::{self, Cx};
use crate::model::{ClaudeAccountId, UserId};
use crate::store::claude_account::ClaudeAccount;
use crate::store::user::User;

type Found<V> = Result<Option<V>>;

/// The loaders of one request.
pub(super) struct Loaders {
    users: Loader<UserId, Found<User>, Batch<Users>>,
    users_ever: Loader<UserId, Found<User>, Batch<UsersEver>>,
    claude_accounts: Loader<ClaudeAccountId, Found<ClaudeAccount>, Batch<ClaudeAccounts>>,
}

impl Loaders {
    /// Loaders that read as this caller.
    pub(super) fn new(caller: &Arc<Caller>) -> Self {
        Self {
            users: Loader::new(Batch::new(caller)),
            users_ever: Loader::new(Batch::new(caller)),
            claude_accounts: Loader::new(Batch::new(caller)),
        }
    }

    /// The request's loaders.
    pub(super) fn of<'a>(ctx: &Context<'a>) -> &'a Self {
        ctx.data_unchecked()
    }

    /// Forgets what was read.
    pub(super) async fn clear(&self) {
        self.users.clear_all().await;
        self.users_ever.clear_all().await;
        self.claude_accounts.clear_all().await;
    }

    /// A user of the caller's organization.
    pub(super) async fn user(&self, id: UserId) -> Found<User> {
        self.users.load(id).await
    }

    /// A user of the caller's organization, deleted or not: for what remembers who it was.
    pub(super) async fn user_ever(&self, id: UserId) -> Found<User> {
        self.users_ever.load(id).await
    }

    /// A Claude account of the caller's organization.
    pub(super) async fn claude_account(&self, id: ClaudeAccountId) -> Found<ClaudeAccount> {
        self.claude_accounts.load(id).await
    }
}

/// How many of one noun are read by their ids.
trait ReadMany {
    type Id: Copy + Eq + Hash + Send + Sync;
    type Row: Clone + Send;

    fn id(row: &Self::Row) -> Self::Id;
    fn read(cx: Cx<'_>, ids: &[Self::Id]) -> impl Future<Output = domain::Result<Vec<Self::Row>>> + Send;
}

struct Batch<R> {
    caller: Arc<Caller>,
    of: PhantomData<fn() -> R>,
}

impl<R> Batch<R> {
    fn new(caller: &Arc<Caller>) -> Self {
        Self { caller: caller.clone(), of: PhantomData }
    }
}

impl<R: ReadMany> BatchFn<R::Id, Found<R::Row>> for Batch<R> {
    async fn load(&mut self, ids: &[R::Id]) -> HashMap<R::Id, Found<R::Row>> {
        match R::read(self.caller.cx("load"), ids).await {
            Ok(rows) => {
                let mut found: HashMap<_, _> = rows.into_iter().map(|row| (R::id(&row), row)).collect();
                ids.iter().map(|id| (*id, Ok(found.remove(id)))).collect()
            }
            Err(error) => {
                let failure = Failure::from(error);
                ids.iter().map(|id| (*id, Err(failure.clone()))).collect()
            }
        }
    }
}

enum Users {}

impl ReadMany for Users {
    type Id = UserId;
    type Row = User;

    fn id(row: &User) -> UserId {
        row.id
    }

    async fn read(cx: Cx<'_>, ids: &[UserId]) -> domain::Result<Vec<User>> {
        domain::user::find_many(cx, ids).await
    }
}

enum UsersEver {}

impl ReadMany for UsersEver {
    type Id = UserId;
    type Row = User;

    fn id(row: &User) -> UserId {
        row.id
    }

    async fn read(cx: Cx<'_>, ids: &[UserId]) -> domain::Result<Vec<User>> {
        domain::user::find_many_ever(cx, ids).await
    }
}

enum ClaudeAccounts {}

impl ReadMany for ClaudeAccounts {
    type Id = ClaudeAccountId;
    type Row = ClaudeAccount;

    fn id(row: &ClaudeAccount) -> ClaudeAccountId {
        row.id
    }

    async fn read(cx: Cx<'_>, ids: &[ClaudeAccountId]) -> domain::Result<Vec<ClaudeAccount>> {
        domain::claude_account::find_many(cx, ids).await
    }
}
