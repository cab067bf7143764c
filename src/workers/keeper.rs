//! Watches over one process as long as it lives: starts it, hands it what is said, and notices when it hangs, dies, or talks nonsense.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::pool::Context;
use super::process::{NoLine, Opening, Process};
use super::protocol::{Line, Over, initialize, interrupt, message, read};
use super::shared::{Held, Shared};
use super::spending::Spending;
use crate::crypto::SecretText;
use crate::model::{OrganizationId, Tokens, WorkerId};

/// How long a process may take until it is ready.
const START: Duration = Duration::from_secs(60);
/// How long a turn may take to end that is interrupted.
const STOP: Duration = Duration::from_secs(5);
/// How long an answer may take to be kept.
const KEPT: Duration = Duration::from_secs(60);
/// How long it is waited at the end of a turn for what its requests have used.
const SETTLED: Duration = Duration::from_secs(1);
/// No turn says more.
const MOST_SAID: usize = 64 * 1024 * 1024;
/// No answer is longer: the longest that a model gives by itself is half a megabyte.
pub const MOST_KEPT: usize = 4 * 1024 * 1024;
/// No turn has more lines that are none of the language.
const MOST_GARBLED: usize = 20;
/// What may be said while nobody has asked.
const MOST_IDLE: usize = 1024 * 1024;

/// What happens while an answer is given.
#[derive(Debug)]
pub enum Event {
    /// The upstream has begun to answer, which costs.
    Begun,
    /// A piece of its text.
    Text(String),
    /// A tool is used.
    ToolUse {
        /// The tool.
        name: String,
        /// What it is given.
        input: Value,
    },
    /// It is over.
    Over(Result<Answer, Failure>),
}

/// An answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// Its blocks, with what tools have answered among them.
    pub blocks: Vec<Value>,
    /// What it has used.
    pub usage: Tokens,
    /// Which model it is by.
    pub model: Option<String>,
    /// Whether it was cut short.
    pub is_interrupted: bool,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// There is no Claude CLI, or it does not start.
    #[error("the Claude CLI does not start: {0}")]
    NotStarted(String),
    /// The process ended in the middle. What it complained of is nobody's to read: it may quote what was said.
    #[error("the Claude CLI ended{}", exit_code(*.0))]
    Ended(Option<i32>),
    /// The process said nothing for too long, or did not come to an end.
    #[error("the Claude CLI did not answer in time")]
    Hung,
    /// Nobody waits for it any more.
    #[error("nobody waited for the answer")]
    Left,
    /// It used more than it may before it said anything.
    #[error("the answer used more tokens than it may before it said anything")]
    Spent,
    /// With what tools have answered it is longer than [`MOST_KEPT`].
    #[error("the answer was too long")]
    TooLong,
    /// The process did not speak its language, or said too much.
    #[error("the Claude CLI said what cannot be understood")]
    Garbled,
    /// Claude, or the relay, has refused.
    #[error("Claude has refused")]
    Refused {
        /// The status of the answer; none: it is not known.
        status: Option<u16>,
        /// What it said.
        message: String,
    },
}

/// With which code a process has ended, to follow that it did.
fn exit_code(code: Option<i32>) -> String {
    code.map(|code| format!(" with exit code {code}")).unwrap_or_default()
}

/// What is said to a process.
pub(super) struct Job {
    pub(super) text: SecretText,
    /// How many tokens the answer may use.
    pub(super) budget: u64,
    pub(super) events: mpsc::Sender<Event>,
    pub(super) interrupt: CancellationToken,
    /// Told once the answer is kept; gone: it is not kept.
    pub(super) kept: oneshot::Receiver<()>,
}

/// An answer that is being given. Dropped, it is not kept, and neither is the process, which remembers it.
pub struct Turn {
    pub(super) worker: WorkerId,
    pub(super) events: mpsc::Receiver<Event>,
    pub(super) interrupt: CancellationToken,
    pub(super) keep: oneshot::Sender<()>,
    pub(super) held: Held,
}

impl Turn {
    /// What happens next. After [`Event::Over`] nothing does.
    pub async fn next(&mut self) -> Event {
        let gone = || Event::Over(Err(Failure::Ended(None)));
        self.events.recv().await.unwrap_or_else(gone)
    }

    /// Whether it was asked to end.
    #[must_use]
    pub fn is_interrupted(&self) -> bool {
        self.interrupt.is_cancelled()
    }

    /// Asks for the answer to end as it is.
    pub fn interrupt(&self) {
        self.interrupt.cancel();
    }

    /// The answer is kept: the process may go on with the conversation, of which it knows this by now.
    pub fn keep(self, context: Context) {
        // Before anybody else may say something in the conversation, so that they find it.
        self.held.shared.idle(self.worker, context);
        let _ = self.keep.send(());
    }
}

/// What a process is started for.
pub(super) struct Start {
    pub(super) id: WorkerId,
    pub(super) organization: OrganizationId,
    pub(super) session: String,
    pub(super) opening: Opening,
}

/// Keeps a process until it has nothing more to do, or nothing more comes of it.
pub(super) async fn keep(shared: Arc<Shared>, start: Start, mut jobs: mpsc::Receiver<Job>) {
    let id = start.id;
    let Some(mut job) = jobs.recv().await else { return shared.gone(id, None) };
    let spending = start.opening.spending.clone();
    let mut spent = spending.begin(job.budget);
    let mut process = match begin(&shared, start, &job).await {
        Ok(process) => process,
        Err(failure) => {
            shared.gone(id, of_itself(&failure));
            tell_end(&job.events, Err(failure)).await;
            return;
        }
    };
    let failure = loop {
        let Job { text, events, interrupt, kept, .. } = job;
        let limit = Instant::now() + shared.setup.timeout;
        let mut turn = Exchange {
            process: &mut process,
            events: &events,
            interrupt: &interrupt,
            limit,
            spending: &spending,
            spent: &spent,
        };
        match turn.run(&text).await {
            Ok(answer) => {
                shared.answered(id);
                if !tell_end(&events, Ok(answer)).await {
                    break None;
                }
            }
            Err(failure) => break Some((failure, Some(events))),
        }
        // Not kept, it knows more than the conversation has.
        let Ok(Ok(())) = timeout(KEPT, kept).await else { break None };
        job = match wait(&shared, id, &mut process, &mut jobs).await {
            Ok(job) => job,
            Err(failure) => break failure.map(|failure| (failure, None)),
        };
        spent = spending.begin(job.budget);
    };
    shared.stopping(id);
    let code = process.end().await;
    let told = failure.map(|(failure, events)| match failure {
        Failure::Ended(_) => (Failure::Ended(code), events),
        failure => (failure, events),
    });
    shared.gone(id, told.as_ref().and_then(|(failure, _)| of_itself(failure)));
    if let Some((failure, Some(events))) = told {
        tell_end(&events, Err(failure)).await;
    }
}

/// Tells what has come of a turn, to whoever still takes it: nobody keeps a process by not doing so.
async fn tell_end(events: &mpsc::Sender<Event>, end: Result<Answer, Failure>) -> bool {
    matches!(timeout(STOP, events.send(Event::Over(end))).await, Ok(Ok(())))
}

/// What a process has failed by; none: it could do nothing for it.
fn of_itself(failure: &Failure) -> Option<String> {
    (!matches!(failure, Failure::Left | Failure::Spent)).then(|| failure.to_string())
}

/// Starts the process and waits until it is ready.
async fn begin(shared: &Arc<Shared>, start: Start, job: &Job) -> Result<Process, Failure> {
    let Start { id, organization, session, opening } = start;
    let named = (&*organization.to_string(), &*id.to_string());
    let not_started = |error: std::io::Error| Failure::NotStarted(error.to_string());
    let folder = shared.folder().map_err(not_started)?;
    let mut process = Process::start(&shared.setup, &folder, named, &session, opening).map_err(not_started)?;
    shared.started(id, process.pid());
    let ready = async {
        process.give().await.map_err(|_| NoLine::Ended)?;
        process.say(&initialize()).await.map_err(|_| NoLine::Ended)?;
        while read(&process.lines.next().await?) != Some(Line::Ready) {}
        Ok::<_, NoLine>(())
    };
    let ready = tokio::select! {
        ready = timeout(START.min(shared.setup.timeout), ready) => ready,
        // Nothing is said yet: there is nothing to keep of it.
        () = async { tokio::select! { () = job.events.closed() => {}, () = job.interrupt.cancelled() => {} } } => {
            process.end().await;
            return Err(Failure::Left);
        }
    };
    if let Ok(Ok(())) = ready {
        process.forget_opening();
        shared.ready(id);
        return Ok(process);
    }
    let code = process.end().await;
    Err(match ready {
        Err(_) => Failure::Hung,
        _ => Failure::NotStarted(format!("it ended at once{}", exit_code(code))),
    })
}

/// Waits for the next message. None instead of a failure: there is to be none.
async fn wait(
    shared: &Arc<Shared>,
    id: WorkerId,
    process: &mut Process,
    jobs: &mut mpsc::Receiver<Job>,
) -> Result<Job, Option<Failure>> {
    let (mut said, mut until) = (0, Instant::now() + shared.setup.idle);
    loop {
        tokio::select! {
            job = jobs.recv() => return job.ok_or(None),
            line = process.lines.next() => match line {
                Ok(line) => {
                    said += line.len();
                    if said > MOST_IDLE {
                        return Err(Some(Failure::Garbled));
                    }
                }
                Err(_) => return Err(Some(Failure::Ended(None))),
            },
            () = sleep_until(until) => {
                if shared.retires(id) {
                    return Err(None);
                }
                // Somebody has been given it just now.
                until = Instant::now() + shared.setup.idle;
            }
        }
    }
}

/// One turn, from what is said to the end of the answer.
struct Exchange<'a> {
    process: &'a mut Process,
    events: &'a mpsc::Sender<Event>,
    interrupt: &'a CancellationToken,
    limit: Instant,
    spending: &'a Spending,
    /// Told when more is used than may be.
    spent: &'a CancellationToken,
}

/// Why an answer was not to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stopped {
    /// Whoever asked has had enough.
    Left,
    /// It has used more than it may.
    Spent,
    /// It has taken longer than it may.
    Late,
}

/// What has come of a turn.
#[derive(Default)]
struct Gathered {
    blocks: Vec<Value>,
    usage: Tokens,
    model: Option<String>,
    stopped: Option<Stopped>,
    said: usize,
    /// How many bytes its blocks have.
    kept: usize,
    garbled: usize,
}

impl Gathered {
    fn keep(&mut self, blocks: Vec<Value>) -> Result<(), Failure> {
        self.kept += blocks.iter().map(|block| block.to_string().len()).sum::<usize>();
        self.blocks.extend(blocks);
        if self.kept > MOST_KEPT { Err(Failure::TooLong) } else { Ok(()) }
    }

    fn answer(self) -> Answer {
        let answered: Vec<Value> = self.blocks.iter().map(|block| block["tool_use_id"].clone()).collect();
        // A tool that was not come to has no answer, and the API takes none without.
        let is_whole = |block: &Value| block["type"] != "tool_use" || answered.contains(&block["id"]);
        let blocks = self.blocks.into_iter().filter(is_whole).collect();
        Answer { blocks, usage: self.usage, model: self.model, is_interrupted: self.stopped.is_some() }
    }
}

impl Exchange<'_> {
    async fn run(&mut self, text: &SecretText) -> Result<Answer, Failure> {
        let mut gathered = Gathered::default();
        self.say(&message(text.expose())).await?;
        loop {
            let line = tokio::select! {
                line = self.process.lines.next() => line,
                () = self.interrupt.cancelled(), if gathered.stopped.is_none() => {
                    self.stop(&mut gathered, Stopped::Left).await?;
                    continue;
                }
                () = self.spent.cancelled(), if gathered.stopped.is_none() => {
                    self.stop(&mut gathered, Stopped::Spent).await?;
                    continue;
                }
                () = sleep_until(self.limit), if gathered.stopped.is_none() => {
                    self.stop(&mut gathered, Stopped::Late).await?;
                    continue;
                }
                () = sleep_until(self.limit), if gathered.stopped.is_some() => return Err(Failure::Hung),
                // Nobody will keep it.
                () = self.events.closed() => return Err(Failure::Left),
            };
            let line = match line {
                Ok(line) => line,
                Err(NoLine::TooLong) => return Err(Failure::Garbled),
                Err(NoLine::Ended) => {
                    // It may have said nothing of what it has asked for: that is to be paid for, too.
                    if self.spending.has_begun() {
                        self.tell(Event::Begun).await?;
                    }
                    return Err(Failure::Ended(None));
                }
            };
            gathered.said += line.len();
            let Some(line) = read(&line) else {
                gathered.garbled += 1;
                if gathered.garbled > MOST_GARBLED || gathered.said > MOST_SAID {
                    return Err(Failure::Garbled);
                }
                continue;
            };
            if gathered.said > MOST_SAID {
                return Err(Failure::Garbled);
            }
            if let Line::Over(over) = line {
                // It may have heard from the relay first that there is no more.
                if over.is_error && self.spent.is_cancelled() {
                    gathered.stopped = Some(Stopped::Spent);
                }
                let _ = timeout(SETTLED, self.spending.settled()).await;
                gathered.usage = self.spending.used();
                return judged(over, gathered);
            }
            self.take(line, &mut gathered).await?;
        }
    }

    async fn take(&self, line: Line, gathered: &mut Gathered) -> Result<(), Failure> {
        match line {
            Line::Text(text) => self.tell(Event::Text(text)).await?,
            Line::Begins(model) => {
                self.tell(Event::Begun).await?;
                gathered.model = Some(model);
            }
            Line::Said(blocks) => {
                // Where it did not come in pieces.
                self.tell(Event::Begun).await?;
                for block in &blocks {
                    if let (Some("tool_use"), Some(name)) = (block["type"].as_str(), block["name"].as_str()) {
                        self.tell(Event::ToolUse { name: name.to_owned(), input: block["input"].clone() }).await?;
                    }
                }
                gathered.keep(blocks)?;
            }
            Line::Answered(blocks) => gathered.keep(blocks)?,
            Line::Ready | Line::Over(_) | Line::Other => {}
        }
        Ok(())
    }

    /// Whoever does not take what is told is not waited for longer than for the answer.
    async fn tell(&self, event: Event) -> Result<(), Failure> {
        match tokio::time::timeout_at(self.limit, self.events.send(event)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Failure::Left),
            Err(_) => Err(Failure::Hung),
        }
    }

    async fn stop(&mut self, gathered: &mut Gathered, why: Stopped) -> Result<(), Failure> {
        gathered.stopped = Some(why);
        self.limit = Instant::now() + STOP;
        self.say(&interrupt()).await
    }

    async fn say(&mut self, line: &str) -> Result<(), Failure> {
        match tokio::time::timeout_at(self.limit, self.process.say(line)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Failure::Ended(None)),
            Err(_) => Err(Failure::Hung),
        }
    }
}

/// What a turn has come to. One that was interrupted is what there is of it, if there is anything.
fn judged(over: Over, gathered: Gathered) -> Result<Answer, Failure> {
    // By what it was told: the CLI may call it a success though it was interrupted.
    if let Some(why) = gathered.stopped {
        let answer = gathered.answer();
        if !answer.blocks.is_empty() {
            return Ok(answer);
        }
        return Err(match why {
            Stopped::Left => Failure::Left,
            Stopped::Spent => Failure::Spent,
            Stopped::Late => Failure::Hung,
        });
    }
    if !over.is_error && over.subtype == "success" {
        return Ok(gathered.answer());
    }
    let message = over.result.filter(|text| !text.is_empty()).unwrap_or(over.subtype);
    Err(Failure::Refused { status: over.api_error_status, message })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_tool_without_an_answer_is_left_out() {
        let (used, answered) =
            (json!({ "type": "tool_use", "id": "a" }), json!({ "type": "tool_result", "tool_use_id": "a" }));
        let blocks = vec![used.clone(), answered.clone(), json!({ "type": "tool_use", "id": "b" })];
        let gathered = Gathered { blocks, ..Gathered::default() };
        assert_eq!(gathered.answer().blocks, [used, answered]);
    }

    #[test]
    fn an_error_that_comes_as_a_success_is_an_error() {
        let over = Over {
            is_error: true,
            subtype: "success".to_owned(),
            api_error_status: Some(529),
            result: Some("Overloaded".to_owned()),
        };
        let refused = Failure::Refused { status: Some(529), message: "Overloaded".to_owned() };
        assert_eq!(judged(over.clone(), Gathered::default()), Err(refused));
        let blocks = vec![json!({ "type": "text", "text": "Half" })];
        let interrupted = Gathered { stopped: Some(Stopped::Left), blocks, ..Gathered::default() };
        assert!(judged(over.clone(), interrupted).is_ok_and(|answer| answer.is_interrupted));
        // There is nothing to be kept.
        let unanswered = vec![json!({ "type": "tool_use", "id": "a" })];
        let reasons =
            [(Stopped::Left, Failure::Left), (Stopped::Spent, Failure::Spent), (Stopped::Late, Failure::Hung)];
        for (why, failure) in reasons {
            let empty = Gathered { stopped: Some(why), blocks: unanswered.clone(), ..Gathered::default() };
            assert_eq!(judged(over.clone(), empty), Err(failure));
        }
    }
}
