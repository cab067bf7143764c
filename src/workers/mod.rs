//! Claude CLI processes that answer conversations: each is one conversation's, stays warm for its next message, and is watched over.
//! They know of no users: what is said, in whose name and what is kept of it is the domain's.
//!
//! `pool.rs` gives places to whoever wants to say something, in turns by `shared.rs`, `process.rs` starts a process, `keeper.rs` watches over one as long as it
//! lives, `protocol.rs` speaks its language, `supervisor.rs` sees to it that none outlives the server, nor what it
//! has started, which `processes.rs` finds. What was said before it reads from memory, by `given.rs`, in the form of `history.rs`.
//! `spending.rs` has what a turn uses, which the relay counts.

mod given;
mod history;
mod keeper;
mod pool;
mod process;
mod processes;
mod protocol;
mod shared;
mod spending;
pub mod supervisor;

pub use given::Given;
pub use history::Said;
pub use keeper::{Answer, Event, Failure, MOST_KEPT, Turn};
pub use pool::{Cold, Context, NoPlace, Place, Warm, Worker, Workers};
pub use process::{Opening, Setup, find_program};
pub use spending::{Spender, Spending};
