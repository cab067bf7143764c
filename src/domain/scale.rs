//! A load of a chosen size, to see how the program does with much: clients, for each 5 tasks, 20 audit entries and 10 requests of the relay.
//!
//! What is made follows from its number alone, so the same run makes the same anywhere, and a run that was stopped goes on.

use std::collections::HashSet;

use chrono::TimeDelta;
use serde_json::json;

use super::context::Cx;
use super::deed::audited;
use super::error::Result;
use super::{sample_usage, usage};
use crate::audit::{Changes, Entry, Recorded};
use crate::crypto::sha256;
use crate::model::{
    AuditAction, ClientId, ClientStatus, Direction, Id, Kind, OrganizationId, Page, ResourceType, TaskPriority,
    TaskStatus, Timestamp, UserId, Window, WriteClients, WriteTasks,
};
use crate::store::audit_log::{self, NewAuditLog};
use crate::store::client::{self as clients, Client};
use crate::store::task::{self as tasks, Task};
use crate::store::user::{self as users, UserFilter, UserOrder};

/// Tasks of each client.
const TASKS: u64 = 5;
/// Changes of each client after it was made, and of each task: with the making of all, 20 entries.
const CLIENT_CHANGES: u64 = 4;
const TASK_CHANGES: u64 = 2;
/// Requests of the relay of each client, and over how many days.
const REQUESTS: i32 = 10;
const DAYS_OF_USAGE: i32 = 30;
/// Clients in one transaction.
const BATCH: u64 = 2_000;
/// When the first client was made, in microseconds since 1970: the start of 2024.
const START: i64 = 1_704_067_200_000_000;
/// Between two clients, in microseconds.
const STEP: i64 = 30_000_000;

/// Given names and family names that go together.
type Names = (&'static [&'static str], &'static [&'static str]);

const NAMES: [Names; 10] = [
    (
        &["Olivia", "James", "Grace", "Henry", "Maya", "Theodore", "Isla", "Samuel", "Nora", "Ethan", "Ruth", "Walter"],
        &["Whitfield", "Barker", "Okafor", "Hughes", "Sinclair", "Mercer", "Lindqvist", "Abbott", "Pryce", "Donovan"],
    ),
    (
        &["Jürgen", "Käthe", "Björn", "Annelie", "Günther", "Sören", "Mareike", "Götz", "Ulrike", "Friedhelm"],
        &["Müller", "Weiß", "Schäfer", "Krüger", "Größmann", "Köhler", "Jäger", "Böhm", "Zimmermann", "Vogt"],
    ),
    (
        &["Élodie", "François", "Chloé", "Benoît", "Anaïs", "Gaël", "Maëlys", "Théo", "Inès", "Loïc"],
        &["Lefèvre", "Dubois", "Châtelain", "Bérenger", "Noël", "Garçon", "Desprès", "Moreau", "Hébert"],
    ),
    (
        &["Łukasz", "Zofia", "Grzegorz", "Małgorzata", "Wojciech", "Agnieszka", "Krzysztof", "Bożena"],
        &["Kozłowska", "Wiśniewski", "Dąbrowska", "Zieliński", "Szymańska", "Woźniak", "Jabłoński"],
    ),
    (
        &["Ελένη", "Γιώργος", "Μαρία", "Δημήτρης", "Σοφία", "Κώστας", "Άννα", "Νίκος"],
        &["Παπαδοπούλου", "Οικονόμου", "Γεωργίου", "Νικολαΐδης", "Βασιλείου", "Καραγιάννης"],
    ),
    (
        &["Ольга", "Дмитрий", "Наталья", "Сергей", "Ирина", "Алексей", "Юлия", "Тарас"],
        &["Кузнецова", "Шевченко", "Соколов", "Морозова", "Ковальчук", "Лебедев", "Бойко"],
    ),
    (
        &["ليلى", "أحمد", "فاطمة", "يوسف", "مريم", "خالد", "نور", "عمر"],
        &["الحسيني", "منصور", "القاسم", "حداد", "الزهراني", "سليمان"],
    ),
    (&["अनन्या", "राहुल", "प्रिया", "विक्रम", "मीरा", "अर्जुन", "कविता"], &["शर्मा", "गुप्ता", "पटेल", "अय्यर", "चौधरी", "मुखर्जी"]),
    (&["美咲", "健太郎", "さくら", "大輔", "結衣", "翔太"], &["佐藤", "高橋", "渡辺", "小林", "長谷川", "五十嵐"]),
    (&["민준", "서연", "지훈", "하은", "도윤", "수아"], &["김", "이", "박", "최", "정", "남궁"]),
];

#[rustfmt::skip]
const COMPANY_WORDS: [&str; 40] = [
    "Nordwind", "Bluestone", "Aurora", "Cascade", "Meridian", "Evergreen", "Sakura", "Orion", "Kestrel", "Harbor",
    "Zephyr", "Granit", "Lumière", "Solstice", "Ponte", "Vistula", "Halcyon", "Copperfield", "Fjord", "Baobab",
    "Tundra", "Saffron", "Océan", "Ironwood", "Marigold", "Quartz", "Riviera", "Summit", "Tamarind", "Willow",
    "Άλφα", "Восток", "النخيل", "富士", "한강", "गंगा", "Žilina", "Çınar", "Øresund", "Ísafold",
];
#[rustfmt::skip]
const COMPANY_TRADES: [&str; 24] = [
    "Logistics", "Robotics", "Foods", "Textiles", "Analytics", "Bank", "Clinics", "Energy", "Software", "Travel",
    "Insurance", "Printing", "Bäckerei", "Énergies", "Оптика", "Media", "Architects", "Shipping", "Farms", "Studios",
    "Pharma", "Optics", "Motors", "Publishing",
];
const COMPANY_FORMS: [&str; 8] = ["Ltd", "GmbH", "S.A.", "Inc.", "AB", "株式会社", "ООО", "Sp. z o.o."];

#[rustfmt::skip]
const TITLE_DEEDS: [&str; 16] = [
    "Review", "Prepare", "Send", "Renew", "Call about", "Translate", "Check", "Archive", "Schedule", "Update",
    "Negotiate", "Überprüfen:", "Vérifier", "Обсудить", "確認:", "Sign",
];
#[rustfmt::skip]
const TITLE_THINGS: [&str; 20] = [
    "the contract", "the invoice", "the onboarding plan", "the quarterly report", "the access rights", "the price list",
    "the API quota", "the support case", "the data processing agreement", "the security questionnaire", "the offer",
    "the migration", "the pilot project", "the training", "den Vertrag", "la facture", "отчёт", "見積書",
    "the renewal terms", "the kick-off meeting",
];

/// Draws that follow from what they are for: the same wherever they are made.
struct Draw {
    bytes: [u8; 32],
    used: usize,
}

impl Draw {
    fn new(what: &str, number: u64) -> Self {
        Self { bytes: sha256(format!("claviger scale {what} {number}").as_bytes()), used: 0 }
    }

    /// A number below `end`.
    fn below(&mut self, end: usize) -> usize {
        let bytes = [self.bytes[self.used % 32], self.bytes[(self.used + 1) % 32]];
        self.used += 2;
        usize::from(u16::from_be_bytes(bytes)) % end
    }

    fn one_of<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

/// The id of the thing with this number.
fn id<K: Kind>(number: u64, at: Timestamp) -> Id<K> {
    let digest = sha256(format!("claviger scale {} {number}", K::PREFIX).as_bytes());
    let mut random = [0; 10];
    random.copy_from_slice(&digest[..10]);
    Id::new(at, &random)
}

/// So many steps after the start; at the start itself where there is no such year.
fn instant(client: u64, step: i64) -> Timestamp {
    let micros =
        i64::try_from(client).unwrap_or(i64::MAX).saturating_mul(STEP).saturating_add(START + step * 1_000_000);
    Timestamp::from_micros(micros).unwrap_or(Timestamp::MAX)
}

/// Makes the clients with the numbers from 0 to `count` that are missing, each with its tasks and entries; says after each
/// transaction how many clients there are by then. Returns how many were made.
///
/// # Errors
/// Where the database fails. What was told is there then.
pub async fn make(cx: Cx<'_>, count: u64, progress: impl Fn(u64)) -> Result<u64> {
    let first = Page { size: 100, window: Window::After(None) };
    let order = (UserOrder::CreatedAt, Direction::Ascending);
    let mut conn = cx.services.db.read().await?;
    let owners = users::page(&mut conn, &cx.actor.require()?, &UserFilter::default(), order, &first).await?;
    drop(conn);
    let owners: Vec<UserId> = owners.rows.into_iter().map(|user| user.id).collect();
    let (mut made, mut from) = (0, 0);
    while from < count {
        let to = count.min(from + BATCH);
        made += make_batch(cx, &owners, from, to).await?;
        progress(to);
        from = to;
    }
    Ok(made)
}

async fn make_batch(cx: Cx<'_>, owners: &[UserId], from: u64, to: u64) -> Result<u64> {
    let client_permit = cx.actor.require::<WriteClients>()?;
    let task_permit = cx.actor.require::<WriteTasks>()?;
    let organization = client_permit.organization();
    let ids: Vec<ClientId> = (from..to).map(|number| id(number, instant(number, 0))).collect();
    let there = clients::find_many(&mut cx.services.db.read().await?, &cx.actor.require()?, &ids).await?;
    let there: HashSet<ClientId> = there.into_iter().map(|client| client.id).collect();
    let mut load = Load { cx, organization, owners, clients: Vec::new(), tasks: Vec::new(), entries: Vec::new() };
    for (number, id) in (from..to).zip(ids).filter(|(_, id)| !there.contains(id)) {
        load.add(number, id);
    }
    if load.clients.is_empty() {
        return Ok(0);
    }
    let made = audited(cx, async |tx| {
        clients::insert_all(tx, &client_permit, &load.clients).await?;
        tasks::insert_all(tx, &task_permit, &load.tasks).await?;
        audit_log::append_all(tx, organization, &load.entries).await?;
        let made = load.clients.len() as u64;
        let what = json!({ "clients": made, "tasks": load.tasks.len(), "entries": load.entries.len() });
        Ok((made, Entry::new(AuditAction::Create, ResourceType::System).noting(what)))
    })
    .await?;
    for (number, client) in (from..).zip(&load.clients) {
        let whose = sample_usage::Whose { organization, user: client.owner_id, client: client.id };
        let until = client.created_at + TimeDelta::days(DAYS_OF_USAGE.into());
        sample_usage::record(cx.services, whose, number, until, (DAYS_OF_USAGE, REQUESTS));
    }
    usage::flush(cx.services).await?;
    Ok(made)
}

/// What one transaction writes.
struct Load<'a> {
    cx: Cx<'a>,
    organization: OrganizationId,
    owners: &'a [UserId],
    clients: Vec<Client>,
    tasks: Vec<Task>,
    entries: Vec<NewAuditLog>,
}

impl Load<'_> {
    /// A client, its tasks, and an entry for the making and for each change of them.
    fn add(&mut self, number: u64, id: ClientId) {
        let mut step = 0;
        let mut entry = number * 20;
        let mut client = new_client(number, id, self.owners);
        self.record(
            entry,
            AuditAction::Create,
            ResourceType::Client,
            &id,
            Changes::created(&client),
            client.created_at,
        );
        for change in 0..CLIENT_CHANGES {
            (step, entry) = (step + 1, entry + 1);
            let before = client.clone();
            client.status = [ClientStatus::Active, ClientStatus::Paused][usize::from(change % 2 == 1)];
            client.notes = Some(format!("Talked to on the telephone, {} times.", change + 1));
            (client.version, client.updated_at) = (client.version + 1, instant(number, step));
            self.changed(entry, ResourceType::Client, &id, (&before, &client), client.updated_at);
        }
        for nth in 0..TASKS {
            (step, entry) = (step + 1, entry + 1);
            let mut task = new_task(number * TASKS + nth, &client, instant(number, step));
            let task_id = task.id;
            let made = Changes::created(&task);
            self.record(entry, AuditAction::Create, ResourceType::Task, &task_id, made, task.created_at);
            for change in 0..TASK_CHANGES {
                (step, entry) = (step + 1, entry + 1);
                let before = task.clone();
                let at = instant(number, step);
                let last = Draw::new("status", number * TASKS + nth).one_of(&TaskStatus::ALL[1..]);
                task.status = if change + 1 == TASK_CHANGES { last } else { TaskStatus::InProgress };
                task.priority = TaskPriority::ALL[(task.priority as usize + 1) % TaskPriority::ALL.len()];
                task.completed_at = (task.status == TaskStatus::Done).then_some(at);
                (task.version, task.updated_at) = (task.version + 1, at);
                self.changed(entry, ResourceType::Task, &task_id, (&before, &task), at);
            }
            self.tasks.push(task);
        }
        self.clients.push(client);
    }

    fn changed<R: Recorded>(
        &mut self,
        number: u64,
        kind: ResourceType,
        id: &impl ToString,
        (before, after): (&R, &R),
        at: Timestamp,
    ) {
        self.record(number, AuditAction::Update, kind, id, Changes::between(before, after), at);
    }

    fn record(
        &mut self,
        number: u64,
        action: AuditAction,
        kind: ResourceType,
        of: &impl ToString,
        changes: Changes,
        at: Timestamp,
    ) {
        let entry = Entry::new(action, kind).on(of).with(changes);
        let entry = entry.complete(id(number, at), at, self.organization, None, self.cx.operation, self.cx.origin);
        self.entries.push(entry);
    }
}

fn new_client(number: u64, id: ClientId, owners: &[UserId]) -> Client {
    let mut draw = Draw::new("client", number);
    let (given, family) = draw.one_of(&NAMES);
    let name = format!("{} {}", draw.one_of(given), draw.one_of(family));
    let company =
        format!("{} {} {}", draw.one_of(&COMPANY_WORDS), draw.one_of(&COMPANY_TRADES), draw.one_of(&COMPANY_FORMS));
    let at = instant(number, 0);
    Client {
        id,
        name,
        company: (draw.below(10) > 0).then_some(company),
        email: format!("client-{number}@example.com").parse().ok(),
        phone: Some(format!("+49 30 {:07}", number % 10_000_000)),
        notes: None,
        status: ClientStatus::Lead,
        owner_id: (!owners.is_empty()).then(|| draw.one_of(owners)),
        metadata: None,
        archived_at: None,
        created_at: at,
        updated_at: at,
        version: 1,
    }
}

fn new_task(number: u64, client: &Client, at: Timestamp) -> Task {
    let mut draw = Draw::new("task", number);
    let about = client.company.as_deref().unwrap_or(&client.name);
    Task {
        id: id(number, at),
        client_id: client.id,
        title: format!("{} {}", draw.one_of(&TITLE_DEEDS), draw.one_of(&TITLE_THINGS)),
        description: Some(format!("For {about}.")),
        status: TaskStatus::Todo,
        priority: draw.one_of(TaskPriority::ALL),
        assignee_id: client.owner_id,
        due_at: (draw.below(4) > 0).then(|| at + chrono::TimeDelta::days(1 + i64::try_from(number % 90).unwrap_or(0))),
        completed_at: None,
        created_by: None,
        created_at: at,
        updated_at: at,
        version: 1,
    }
}
