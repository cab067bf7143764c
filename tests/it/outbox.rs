//! Mails: what they are, and that each is sent once, whatever happens.

use std::os::unix::fs::PermissionsExt as _;
use std::sync::atomic::Ordering;

use chrono::TimeDelta;
use claviger::app::App;
use claviger::domain::outbox::deliver;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::canary::kept;
use crate::invitation::invite;
use crate::support::{Behaviour, Client, SmtpSink, TestApp, TestDatabase, both_databases, until_gauge};

const COME_AGAIN: &str = "451 4.3.0 come again";

/// A server that sends by the sink.
async fn sending_to(sink: &SmtpSink, app: TestApp) -> TestApp {
    let mut app = app;
    for (name, value) in sink.settings() {
        app.set(name, &value);
    }
    app.restart().await;
    app
}

/// Sends what is due, as another server that comes by.
async fn come_by(other: &App) {
    deliver(&other.services, &CancellationToken::new()).await.unwrap();
}

/// How many of a server's mails had this outcome.
async fn until(app: &TestApp, outcome: &str, number: i64) {
    until_gauge(app, &format!("claviger_mails_total{{outcome=\"{outcome}\"}}"), number).await;
}

/// When the one mail that waits is tried next, in seconds from now, and how often it was.
async fn waiting(app: &TestApp) -> Vec<String> {
    app.database.texts("SELECT CAST(attempts AS text) AS text FROM outbox ORDER BY id").await
}

async fn invite_many(admin: &Client, number: usize) {
    for n in 0..number {
        invite(admin, &format!("invited-{n}@example.com"), "MEMBER").await;
    }
}

both_databases! {
    async fn an_invitation_is_sent_as_text_and_html(app: TestApp) {
        let sink = SmtpSink::start(Behaviour::Take).await;
        let app = sending_to(&sink, app).await;
        let admin = app.admin().await;
        let name = "A & B <script>alert(\"'1'\")</script>";
        let rename = "mutation($n: String!) { updateOrganization(input: { name: $n }) { organization { id } } }";
        admin.with(rename, json!({ "n": name })).await.data();
        let (_, token) = invite(&admin, "ina@example.com", "MEMBER").await;
        let mail = sink.next().await;
        assert_eq!((mail.recipients.as_slice(), mail.to.as_str()), (&["ina@example.com".to_owned()][..], "ina@example.com"));
        assert_eq!(mail.subject, "You are invited to Claviger");
        assert_eq!(mail.header("From"), "Claviger <noreply@claviger.example>");
        assert_eq!(mail.header("To"), "ina@example.com");
        assert_eq!(mail.header("Auto-Submitted"), "auto-generated");
        assert!(mail.header("Date").ends_with(" +0000"), "{}", mail.raw);
        let id = mail.header("Message-ID");
        assert!(id.starts_with("<mail_") && id.ends_with("@claviger.example>"), "{id}");
        assert!(mail.header("Content-Type").starts_with("multipart/alternative"));
        let link = format!("https://app.example.com/accept-invitation#token={token}");
        assert!(mail.text.contains(&link) && mail.text.contains(name), "{}", mail.text);
        assert!(mail.html.contains(&format!("<a href=\"{link}\">")) && !mail.html.contains("<script>"), "{}", mail.html);
        assert!(mail.html.contains("A &amp; B &lt;script&gt;alert(&quot;&#39;1&#39;&quot;)&lt;/script&gt;"), "{}", mail.html);
        until(&app, "sent", 1).await;
        app.until_no_mail_waits().await;
    }

    async fn no_mail_is_sent_for_what_was_rolled_back(app: TestApp) {
        let sink = SmtpSink::start(Behaviour::Take).await;
        let app = sending_to(&sink, app).await;
        let admin = app.admin().await;
        // The entry, which is written last, finds no table.
        app.database.execute("ALTER TABLE audit_heads RENAME TO away").await.unwrap();
        let input = json!({ "email": "nobody@example.com", "fullName": "N", "role": "MEMBER" });
        let answer = admin.with("mutation($i: InviteUserInput!) { inviteUser(input: $i) { user { id } } }", json!({ "i": input })).await;
        assert_eq!(answer.code(), "INTERNAL_SERVER_ERROR");
        app.database.execute("ALTER TABLE away RENAME TO audit_heads").await.unwrap();
        invite(&admin, "ina@example.com", "MEMBER").await;
        assert_eq!(sink.next().await.to, "ina@example.com");
        app.until_no_mail_waits().await;
        assert!(sink.rest().await.is_empty());
    }

    async fn a_mail_is_tried_again_later_and_later_under_one_id(app: TestApp) {
        let sink = SmtpSink::start(Behaviour::Content(COME_AGAIN)).await;
        let mut app = sending_to(&sink, app).await;
        invite(&app.admin().await, "ina@example.com", "MEMBER").await;
        until(&app, "deferred", 1).await;
        app.stop().await;
        let other = app.beside().await;
        let mut attempts = 1;
        // A minute, then twice as long each time, at most six hours.
        for minutes in [1, 2, 4, 8, 16, 32, 64, 128, 256, 360, 360] {
            come_by(&other).await;
            app.advance(minutes * 60 - 30);
            come_by(&other).await;
            assert_eq!(waiting(&app).await, [attempts.to_string()], "too early");
            app.advance(31);
            come_by(&other).await;
            attempts += 1;
            assert_eq!(waiting(&app).await, [attempts.to_string()], "after {minutes} minutes");
        }
        sink.behave(Behaviour::Take);
        app.advance(6 * 3600);
        come_by(&other).await;
        let mail = sink.next().await;
        assert!(waiting(&app).await.is_empty());
        let seen = sink.seen();
        assert_eq!(seen.len(), attempts + 1);
        for earlier in seen {
            for header in ["Message-ID", "Date"] {
                assert_eq!(earlier.header(header), mail.header(header));
            }
        }
    }

    async fn a_mail_is_given_up_after_three_days(app: TestApp) {
        let sink = SmtpSink::start(Behaviour::Recipient(COME_AGAIN)).await;
        let mut app = sending_to(&sink, app).await;
        invite(&app.admin().await, "ina@example.com", "MEMBER").await;
        until(&app, "deferred", 1).await;
        app.stop().await;
        app.advance(3 * 24 * 3600 - 60);
        let other = app.beside().await;
        come_by(&other).await;
        assert_eq!(waiting(&app).await, ["2"]);
        app.advance(61);
        // Past the end by the database's clock, too.
        let past = if app.database.url.starts_with("postgres") { "created_at" } else { "give_up_at" };
        app.database.execute(&format!("UPDATE outbox SET give_up_at = {past}")).await.unwrap();
        sink.behave(Behaviour::Take);
        come_by(&other).await;
        assert!(waiting(&app).await.is_empty() && sink.rest().await.is_empty());
        assert_eq!(other.services.outbox.tally().given_up.load(Ordering::Relaxed), 1);
    }

    async fn a_mail_that_is_refused_for_good_is_given_up_at_once(app: TestApp) {
        let sink = SmtpSink::start(Behaviour::Recipient("550 5.1.1 nobody here")).await;
        let app = sending_to(&sink, app).await;
        let admin = app.admin().await;
        invite(&admin, "nobody@example.com", "MEMBER").await;
        until(&app, "refused", 1).await;
        sink.behave(Behaviour::Content("554 5.6.0 not wanted"));
        invite(&admin, "unwanted@example.com", "MEMBER").await;
        until(&app, "refused", 2).await;
        app.until_no_mail_waits().await;
        sink.behave(Behaviour::Take);
        invite(&admin, "ina@example.com", "MEMBER").await;
        assert_eq!(sink.next().await.to, "ina@example.com");
    }

    async fn what_the_operator_has_to_mend_loses_no_mail(app: TestApp) {
        let sink = SmtpSink::start(Behaviour::Sender("550 5.1.8 unknown sender")).await;
        let mut app = sending_to(&sink, app).await;
        invite(&app.admin().await, "ina@example.com", "MEMBER").await;
        until(&app, "deferred", 1).await;
        app.stop().await;
        let other = app.beside().await;
        for (attempts, behaviour) in [
            ("2", Behaviour::Recipient("554 5.7.1 <ina>: Relay access denied")),
            ("3", Behaviour::Recipient("550 relay not permitted")),
            ("4", Behaviour::Content("550 5.7.26 this domain sends no mail from there")),
        ] {
            sink.behave(behaviour);
            app.advance(3600);
            come_by(&other).await;
            assert_eq!(waiting(&app).await, [attempts], "{behaviour:?}");
        }
        sink.behave(Behaviour::Take);
        app.advance(3600);
        come_by(&other).await;
        assert_eq!(sink.next().await.to, "ina@example.com");
    }

    async fn a_domain_in_other_letters_is_written_as_dns_knows_it(app: TestApp) {
        let sink = SmtpSink::start(Behaviour::Take).await;
        let app = sending_to(&sink, app).await;
        invite(&app.admin().await, "ina@Exämple.de", "MEMBER").await;
        assert_eq!(sink.next().await.recipients, ["ina@xn--exmple-cua.de"]);
    }

    async fn the_name_of_an_organization_makes_no_link_in_a_mail(app: TestApp) {
        let admin = app.admin().await;
        let rename = "mutation($n: String!) { updateOrganization(input: { name: $n }) { organization { name } } }";
        let name = "Account locked, go to https://evil.example/x or www.evil.example or mail a@evil.example";
        assert_eq!(admin.with(rename, json!({ "n": name })).await.data()["updateOrganization"]["organization"]["name"], name);
        invite(&admin, "ina@example.com", "MEMBER").await;
        let mail = app.mail_to("ina@example.com", |_| true).await;
        for text in [&mail.text, &mail.html] {
            assert!(text.contains("go to https evil example/x or www evil example or mail a evil example"), "{text}");
        }
        admin.with(rename, json!({ "n": "Dr. Ina: A/S & Co." })).await.data();
        invite(&admin, "ida@example.com", "MEMBER").await;
        assert!(app.mail_to("ida@example.com", |_| true).await.text.contains("“Dr. Ina: A/S & Co.”"));
    }

    async fn a_password_that_is_not_accepted_loses_no_mail(app: TestApp) {
        let sink = SmtpSink::start(Behaviour::Password("535 5.7.8 wrong")).await;
        let mut app = sending_to(&sink, app).await;
        app.set("SMTP_URL", &sink.url("us%40er:p%3Aass@"));
        app.restart().await;
        let admin = app.admin().await;
        invite(&admin, "ina@example.com", "MEMBER").await;
        until(&app, "deferred", 1).await;
        app.stop().await;
        assert_eq!(sink.credentials(), ["\0us@er\0p:ass"]);
        sink.behave(Behaviour::Recipient("530 5.7.0 authentication required"));
        app.advance(61);
        let other = app.beside().await;
        come_by(&other).await;
        assert_eq!(waiting(&app).await, ["2"]);
        sink.behave(Behaviour::Take);
        app.advance(121);
        come_by(&other).await;
        assert_eq!(sink.next().await.to, "ina@example.com");
    }

    async fn a_server_that_is_gone_before_it_says_so_gets_the_mail_again_under_one_id(app: TestApp) {
        let sink = SmtpSink::start(Behaviour::Vanish).await;
        let mut app = sending_to(&sink, app).await;
        invite(&app.admin().await, "ina@example.com", "MEMBER").await;
        until(&app, "deferred", 1).await;
        app.stop().await;
        sink.behave(Behaviour::Take);
        app.advance(61);
        come_by(&app.beside().await).await;
        let again = sink.next().await;
        assert_eq!(sink.seen()[0].header("Message-ID"), again.header("Message-ID"));
    }

    async fn a_server_that_hangs_holds_up_neither_requests_nor_other_servers(app: TestApp) {
        let sink = SmtpSink::start(Behaviour::Hang).await;
        let app = sending_to(&sink, app).await;
        let admin = app.admin().await;
        invite(&admin, "ina@example.com", "MEMBER").await;
        sink.arrived().await;
        admin.run("{ viewer { role } }").await.data();
        // It is being sent: nobody else sends it.
        let other = app.beside().await;
        sink.behave(Behaviour::Take);
        come_by(&other).await;
        assert!(sink.rest().await.is_empty());
        assert_eq!(waiting(&app).await, ["1"]);
        // A server that was killed meanwhile would never come back to it.
        app.advance(5 * 60 + 1);
        come_by(&other).await;
        let again = sink.next().await;
        assert_eq!(sink.seen()[0].header("Message-ID"), again.header("Message-ID"));
        assert!(waiting(&app).await.is_empty());
    }

    async fn a_mail_that_was_sent_is_removed_though_the_database_fails_first(app: TestApp) {
        let sink = SmtpSink::start(Behaviour::Take).await;
        let app = sending_to(&sink, app).await;
        let is_postgres = app.database.url.starts_with("postgres");
        app.database.execute(if is_postgres {
            "CREATE FUNCTION held() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'held'; END $$;
             CREATE TRIGGER held BEFORE DELETE ON outbox FOR EACH ROW EXECUTE FUNCTION held()"
        } else {
            "CREATE TRIGGER held BEFORE DELETE ON outbox BEGIN SELECT RAISE(ABORT, 'held'); END"
        }).await.unwrap();
        invite(&app.admin().await, "ina@example.com", "MEMBER").await;
        sink.next().await;
        until(&app, "sent", 1).await;
        assert_eq!(waiting(&app).await, ["1"]);
        app.database.execute(if is_postgres { "DROP TRIGGER held ON outbox" } else { "DROP TRIGGER held" }).await.unwrap();
        app.until_no_mail_waits().await;
        assert_eq!(sink.seen().len(), 1);
    }

    async fn a_server_that_does_not_say_goodbye_has_the_mail_once(app: TestApp) {
        let sink = SmtpSink::start(Behaviour::Rude).await;
        let app = sending_to(&sink, app).await;
        invite(&app.admin().await, "ina@example.com", "MEMBER").await;
        until(&app, "sent", 1).await;
        app.until_no_mail_waits().await;
        assert_eq!(sink.seen().len(), 1);
    }

    async fn servers_that_send_at_once_send_each_mail_once(app: TestApp) {
        const NUMBER: usize = 12;
        let sink = SmtpSink::start(Behaviour::Recipient(COME_AGAIN)).await;
        let mut app = sending_to(&sink, app).await;
        invite_many(&app.admin().await, NUMBER).await;
        until(&app, "deferred", i64::try_from(NUMBER).unwrap()).await;
        app.stop().await;
        sink.behave(Behaviour::Take);
        let others = [app.beside().await, app.beside().await, app.beside().await];
        app.advance(61);
        futures_util::future::join_all(others.iter().map(come_by)).await;
        assert!(waiting(&app).await.is_empty());
        let mut ids: Vec<_> = sink.rest().await.iter().map(|mail| mail.header("Message-ID").to_owned()).collect();
        assert_eq!(ids.len(), NUMBER);
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), NUMBER);
    }

    async fn a_mail_that_waits_is_sealed(app: TestApp) {
        let sink = SmtpSink::start(Behaviour::Recipient(COME_AGAIN)).await;
        let app = sending_to(&sink, app).await;
        let (_, token) = invite(&app.admin().await, "ina@example.com", "MEMBER").await;
        until(&app, "deferred", 1).await;
        let kept = kept(&app).await;
        assert!(kept.contains("ina@example.com") && !kept.contains(&token) && !kept.contains("accept-invitation"));
        // A row that is put into another's place does not open there, and holds up none.
        app.database.execute("UPDATE outbox SET id = 'mail_00000000000000000000000000'").await.unwrap();
        sink.behave(Behaviour::Take);
        invite(&app.admin().await, "other@example.com", "MEMBER").await;
        assert_eq!(sink.next().await.to, "other@example.com");
        app.advance(61);
        let other = app.beside().await;
        come_by(&other).await;
        assert_eq!(other.services.outbox.tally().refused.load(Ordering::Relaxed), 1);
        assert!(waiting(&app).await.is_empty());
    }

    async fn without_smtp_a_mail_is_a_file_for_its_owner_alone(app: TestApp) {
        let (_, token) = invite(&app.admin().await, "ina@example.com", "MEMBER").await;
        app.until_no_mail_waits().await;
        let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let files: Vec<_> = std::fs::read_dir(app.outbox()).unwrap().map(|file| file.unwrap().path()).collect();
        assert_eq!(files.len(), 1, "{files:?}");
        assert_eq!((mode(&app.outbox()), mode(&files[0])), (0o700, 0o600));
        assert_eq!(app.token_to("ina@example.com", "accept-invitation").await, token);
    }
}

mod tls {
    use super::*;
    use crate::command_line::Place;
    use crate::support::{PASSWORD, Tls, tls_of_localhost};

    const CREDENTIALS: &str = "user:password@";

    /// A server that sends by the sink, and has been told to send a mail. The certificate in the file is the one that it trusts.
    async fn invites(url: &str, trusted: Option<&str>) -> (Place, crate::command_line::Served) {
        let place = Place::new(TestDatabase::sqlite());
        let mut command = place.command(&["serve"]);
        command.env("SMTP_URL", url).env("MAIL_FROM", "noreply@claviger.example");
        if let Some(file) = trusted {
            command.env("SSL_CERT_FILE", file);
        }
        let server = Place::started(command);
        invite_by(&Client::new(&server.url).signed_in("admin@localhost", PASSWORD).await).await;
        (place, server)
    }

    async fn invite_by(admin: &Client) {
        let input = json!({ "email": "ina@example.com", "fullName": "Ina", "role": "MEMBER" });
        let deed = "mutation($i: InviteUserInput!) { inviteUser(input: $i) { user { id } } }";
        admin.with(deed, json!({ "i": input })).await.data();
    }

    /// Waits until a mail was put off.
    async fn until_deferred(url: &str) {
        let line = "claviger_mails_total{outcome=\"deferred\"} 1";
        while !reqwest::get(format!("{url}/metrics")).await.unwrap().text().await.unwrap().contains(line) {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_mail_goes_to_a_server_whose_certificate_is_trusted_and_to_no_other() {
        let (acceptor, certificate) = tls_of_localhost();
        let folder = tempfile::tempdir().unwrap();
        let (own, other) = (folder.path().join("own.pem"), folder.path().join("other.pem"));
        std::fs::write(&own, certificate).unwrap();
        std::fs::write(&other, tls_of_localhost().1).unwrap();
        for (tls, scheme, query) in
            [(Tls::Immediate(acceptor.clone()), "smtps", ""), (Tls::Upgraded(acceptor), "smtp", "?tls=required")]
        {
            let sink = SmtpSink::start_with(Behaviour::Take, tls).await;
            let url = format!("{scheme}://{CREDENTIALS}localhost:{}{query}", sink.address.port());
            let (_place, server) = invites(&url, other.to_str()).await;
            until_deferred(&server.url).await;
            assert!(sink.credentials().is_empty() && sink.seen().is_empty(), "{url}");
            let _running = invites(&url, own.to_str()).await;
            assert_eq!(sink.next().await.to, "ina@example.com");
            assert_eq!(sink.credentials(), ["\0user\0password"]);
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_server_that_offers_no_tls_is_told_nothing_where_tls_is_required() {
        let sink = SmtpSink::start(Behaviour::Take).await;
        let url = format!("smtp://{CREDENTIALS}localhost:{}?tls=required", sink.address.port());
        let (_place, server) = invites(&url, None).await;
        until_deferred(&server.url).await;
        assert!(sink.credentials().is_empty() && sink.seen().is_empty());
    }
}

mod a_mail_outlives_a_change_of_keys {
    use std::process::Command;

    use super::*;
    use crate::command_line::{Place, Served};
    use crate::support::PASSWORD;

    const OLD: &str = "v1:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    const BOTH: &str =
        "v2:ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8=,v1:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    const NEW: &str = "v2:ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8=";

    fn command(place: &Place, sink: &SmtpSink, ring: &str, arguments: &[&str]) -> Command {
        let mut command = place.command(arguments);
        command.env("CREDENTIAL_ENCRYPTION_KEYS", ring).envs(sink.settings());
        command
    }

    async fn run(database: TestDatabase) {
        let sink = SmtpSink::start(Behaviour::Content(COME_AGAIN)).await;
        let place = Place::new(database);
        let serve = |ring| -> Served { Place::started(command(&place, &sink, ring, &["serve"])) };
        let server = serve(OLD);
        let admin = Client::new(&server.url).signed_in("admin@localhost", PASSWORD).await;
        let input = json!({ "email": "ina@example.com", "fullName": "Ina", "role": "MEMBER" });
        let invite = "mutation($i: InviteUserInput!) { inviteUser(input: $i) { invitationUrl } }";
        let answer = admin.with(invite, json!({ "i": input })).await;
        let url = answer.data()["inviteUser"]["invitationUrl"].as_str().unwrap().to_owned();
        sink.arrived().await;
        drop(server);
        let refused = command(&place, &sink, NEW, &["serve"]).output().unwrap();
        assert!(String::from_utf8_lossy(&refused.stderr).contains("lacks v1, which 1 records need"));
        let rotated = command(&place, &sink, BOTH, &["keys", "rotate"]).output().unwrap();
        assert!(rotated.status.success(), "{}", String::from_utf8_lossy(&rotated.stderr));
        sink.behave(Behaviour::Take);
        // Its time has come.
        let due = "UPDATE outbox SET due_at = created_at";
        place.database.execute(due).await.unwrap();
        let _server = serve(NEW);
        assert!(sink.next().await.text.contains(&url));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn sqlite() {
        run(TestDatabase::sqlite()).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn postgres() {
        run(TestDatabase::postgres().await).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_whose_clock_is_ahead_of_the_databases_gives_up_nothing() {
    let sink = SmtpSink::start(Behaviour::Recipient(COME_AGAIN)).await;
    let app = sending_to(&sink, TestApp::postgres().await).await;
    invite(&app.admin().await, "ina@example.com", "MEMBER").await;
    until(&app, "deferred", 1).await;
    let ahead = app.beside_by(app.clock_ahead(TimeDelta::days(40))).await;
    sink.behave(Behaviour::Take);
    come_by(&ahead).await;
    assert_eq!(sink.next().await.to, "ina@example.com");
    assert_eq!(ahead.services.outbox.tally().given_up.load(Ordering::Relaxed), 0);
}
