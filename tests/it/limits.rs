//! Rate limits: how often anybody may ask, and how often something may be guessed. In memory and in Redis by the same tests.

use claviger::crypto::{Random, RawApiKey};
use serde_json::{Value, json};

use crate::api_key::{create as new_key, with_key};
use crate::support::{Answer, Client, PASSWORD, Socket, TestApp, TestDatabase, TestRedis, both_databases, until_gauge};

/// Settings of a server that believes what a proxy at 127.0.0.1 says, so that a test can come from anywhere.
fn settings(more: &[(&'static str, &str)]) -> Vec<(&'static str, String)> {
    let all = [("TRUSTED_PROXIES", "127.0.0.1")].into_iter().chain(more.iter().copied());
    all.map(|(name, value)| (name, value.to_owned())).collect()
}

/// A server, and its Redis where it has one.
struct Limited {
    app: TestApp,
    redis: Option<TestRedis>,
}

impl Limited {
    async fn in_memory(more: &[(&'static str, &str)]) -> Self {
        Self { app: TestApp::start(TestDatabase::sqlite(), settings(more)).await, redis: None }
    }

    async fn in_redis(more: &[(&'static str, &str)]) -> Self {
        let redis = TestRedis::start().await;
        let settings = settings(more).into_iter().chain([("REDIS_URL", redis.url())]);
        let app = TestApp::start(TestDatabase::postgres().await, settings).await;
        Self { app, redis: Some(redis) }
    }

    /// What must hold where there is a Redis: it was used, and no address stands in it.
    async fn finish(self) {
        let Some(redis) = self.redis else { return };
        let keys = redis.keys().await;
        assert!(keys.iter().any(|key| key.starts_with("claviger:limit:")), "{keys:?}");
        assert!(!keys.iter().any(|key| key.contains("localhost") || key.contains("203.0.113")), "{keys:?}");
    }
}

/// Runs each test once with the limits in memory, on SQLite, and once in Redis, on PostgreSQL.
macro_rules! in_memory_and_redis {
    ($(#[$settings:expr] async fn $name:ident($app:ident: &TestApp) $body:block)+) => {$(
        mod $name {
            use super::*;

            async fn run($app: &TestApp) $body

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn memory() {
                let limited = Limited::in_memory(&$settings).await;
                run(&limited.app).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn redis() {
                let limited = Limited::in_redis(&$settings).await;
                run(&limited.app).await;
                limited.finish().await;
            }
        }
    )+};
}

const WHO: &str = "{ viewer { role } }";

#[track_caller]
fn header<'a>(answer: &'a Answer, name: &str) -> &'a str {
    answer.headers.get(name).unwrap_or_else(|| panic!("{name}: {:?}", answer.headers)).to_str().unwrap()
}

/// That an answer is the refusal of a request that was not executed, and in how many seconds it may be tried again.
#[track_caller]
fn refused(answer: &Answer) -> u64 {
    assert_eq!((answer.status.as_u16(), answer.code()), (429, "RATE_LIMITED"), "{:#}", answer.body);
    assert_eq!(answer.body.get("data"), None);
    let seconds = answer.body["errors"][0]["extensions"]["retryAfter"].as_u64().unwrap();
    assert_eq!(header(answer, "retry-after"), seconds.to_string());
    seconds
}

async fn windows(client: &Client) -> Value {
    let answer = client.run("{ viewer { quota { windows { kind limit used remaining resetsAt } } } }").await;
    answer.data()["viewer"]["quota"]["windows"].clone()
}

/// Each code that the fields of an answer were refused with, `OK` for one that was not.
fn codes(answer: &Answer) -> Vec<&str> {
    let data = answer.body["data"].as_object().unwrap_or_else(|| panic!("{:#}", answer.body));
    let errors = answer.body["errors"].as_array().map(Vec::as_slice).unwrap_or_default();
    let of = |key: &String| errors.iter().find(|error| error["path"][0] == *key);
    data.keys().map(|key| of(key).map_or("OK", |error| error["extensions"]["code"].as_str().unwrap())).collect()
}

const SIGN_IN: &str = "mutation($email: String!, $password: String!) {
    signIn(input: { email: $email, password: { plain: $password } }) { refreshToken viewer { quota { windows { kind } } } } }";

async fn sign_in(client: &Client, email: &str, password: &str) -> Answer {
    client.with(SIGN_IN, json!({ "email": email, "password": password })).await
}

/// A request that tries a password for each of the addresses.
fn spray(emails: &[&str]) -> String {
    let fields = emails.iter().enumerate().map(|(n, email)| {
        format!(
            "a{n:02}: signIn(input: {{ email: {}, password: {{ plain: \"wrong\" }} }}) {{ accessToken }}",
            json!(email)
        )
    });
    format!("mutation {{ {} }}", fields.collect::<Vec<_>>().join("\n"))
}

in_memory_and_redis! {
    #[[("RATE_LIMIT_ANONYMOUS_PER_MINUTE", "3")]]
    async fn who_has_not_signed_in_is_limited_by_address(app: &TestApp) {
        let here = app.anonymous().from("203.0.113.9");
        for left in [2, 1] {
            let answer = here.run(WHO).await;
            answer.data();
            assert_eq!(header(&answer, "ratelimit-policy"), "\"anonymous\";q=3;w=60");
            let (start, wait) = header(&answer, "ratelimit").rsplit_once("t=").unwrap();
            assert_eq!(start, format!("\"anonymous\";r={left};"));
            assert!((1..=20 * (3 - left)).contains(&wait.parse().unwrap()), "{wait}");
        }
        let last = here.run(WHO).await;
        last.data();
        let answer = here.run(WHO).await;
        let wait = refused(&answer);
        assert!((1..=20).contains(&wait), "{wait}");
        assert_eq!(header(&answer, "ratelimit"), format!("\"anonymous\";r=0;t={wait}"));
        assert_eq!(answer.body["errors"][0]["extensions"]["requestId"], header(&answer, "x-request-id"));

        app.anonymous().from("203.0.113.10").run(WHO).await.data();
        // One network of IPv6 is one caller.
        for address in ["2001:db8::1", "2001:db8::ffff:2", "2001:db8::1"] {
            app.anonymous().from(address).run(WHO).await.data();
        }
        refused(&app.anonymous().from("2001:db8::3").run(WHO).await);
        app.anonymous().from("2001:db8:0:1::3").run(WHO).await.data();
        // What is no request of GraphQL is not limited, nor is it counted.
        for path in ["/health", "/health/alive", "/metrics", "/schema.graphql", "/"] {
            let request = app.anonymous().http().get(format!("{}{path}", app.url)).header("x-forwarded-for", "203.0.113.9");
            let answer = request.header("accept", "text/html, */*").send().await.unwrap();
            assert_eq!((answer.status().as_u16(), answer.headers().get("ratelimit")), (200, None), "{path}");
        }
    }

    #[[("RATE_LIMIT_ANONYMOUS_PER_MINUTE", "4")]]
    async fn each_mutation_of_somebody_unknown_counts(app: &TestApp) {
        let here = app.anonymous().from("203.0.113.9");
        assert_eq!(codes(&here.run(&spray(&["a@example.com", "b@example.com", "c@example.com"])).await), ["UNAUTHENTICATED"; 3]);
        // More than are left: none is made, and it counts as one.
        refused(&here.run(&spray(&["d@example.com", "e@example.com"])).await);
        refused(&here.run(WHO).await);
    }

    #[[("RATE_LIMIT_USER_PER_MINUTE", "3"), ("RATE_LIMIT_ANONYMOUS_PER_MINUTE", "1000")]]
    async fn a_user_is_limited_over_all_sessions_and_addresses(app: &TestApp) {
        let (here, there) = (app.admin().await.from("203.0.113.9"), app.admin().await.from("203.0.113.10"));
        let member = app.user("MEMBER").await;
        let seen = windows(&here).await;
        assert_eq!(seen[0]["kind"], "REQUESTS_PER_MINUTE");
        assert_eq!((&seen[0]["limit"], &seen[0]["used"], &seen[0]["remaining"]), (&json!(3), &json!(1), &json!(2)));
        assert!(seen[0]["resetsAt"].is_string());
        assert_eq!(header(&there.run(WHO).await, "ratelimit-policy"), "\"user\";q=3;w=60");
        here.run(WHO).await.data();
        refused(&there.run(WHO).await);
        refused(&here.run(WHO).await);
        member.run(WHO).await.data();
        let answer = sign_in(&app.anonymous(), "admin@localhost", PASSWORD).await;
        assert_eq!(answer.data()["signIn"]["viewer"]["quota"]["windows"], json!([{ "kind": "REQUESTS_PER_MINUTE" }]));
    }

    #[[("DEFAULT_RATE_LIMIT_PER_HOUR", "2")]]
    async fn a_key_has_its_own_limits_or_the_default(app: &TestApp) {
        let admin = app.admin().await;
        let key = async |limits: Value| {
            let mut input = json!({ "name": "CI", "scopes": ["ADMIN_READ"] });
            input.as_object_mut().unwrap().extend(limits.as_object().unwrap().clone());
            new_key(&admin, input).await
        };
        let verified = async |raw: &str| {
            let query = "query($key: String!) { verifyApiKey(key: $key) { code valid name quota { windows { kind used remaining } } } }";
            app.anonymous().with(query, json!({ "key": raw })).await.data()["verifyApiKey"].clone()
        };
        let (_, raw) = key(json!({})).await;
        let default = with_key(app, &raw);
        assert_eq!(verified(&raw).await["quota"]["windows"], json!([{ "kind": "REQUESTS_PER_HOUR", "used": 0, "remaining": 2 }]));
        let policies = "\"key-hour\";q=2;w=3600, \"user\";q=1000000;w=60";
        assert_eq!(header(&default.run(WHO).await, "ratelimit-policy"), policies);
        assert_eq!(verified(&raw).await["quota"]["windows"], json!([{ "kind": "REQUESTS_PER_HOUR", "used": 1, "remaining": 1 }]));
        default.run(WHO).await.data();
        let wait = refused(&default.run(WHO).await);
        assert!((1700..=1800).contains(&wait), "{wait}");
        assert_eq!(verified(&raw).await, json!({ "code": "RATE_LIMITED", "valid": false, "name": null, "quota": null }));

        let (of, raw) = key(json!({ "rateLimitPerMinute": 5, "rateLimitPerHour": 3 })).await;
        let both = with_key(app, &raw);
        let answer = both.run(WHO).await;
        let policies = "\"key-minute\";q=5;w=60, \"key-hour\";q=3;w=3600, \"user\";q=1000000;w=60";
        assert_eq!(header(&answer, "ratelimit-policy"), policies);
        let left: Vec<_> = header(&answer, "ratelimit").split(", ").map(|item| item.split(";t=").next().unwrap()).collect();
        assert_eq!(left[..2], ["\"key-minute\";r=4", "\"key-hour\";r=2"]);
        let quota = "query($id: ID!) { apiKey(id: $id) { quota { windows { kind remaining } } } }";
        assert_eq!(admin.with(quota, json!({ "id": of["id"] })).await.data()["apiKey"]["quota"]["windows"], json!([
            { "kind": "REQUESTS_PER_MINUTE", "remaining": 4 }, { "kind": "REQUESTS_PER_HOUR", "remaining": 2 },
        ]));
        assert_eq!(windows(&both).await[1]["remaining"], 1);
        both.run(WHO).await.data();
        assert!((1_100..=1_200).contains(&refused(&both.run(WHO).await)));
        // What the hour refuses the minute has not counted.
        let after = admin.with(quota, json!({ "id": of["id"] })).await.data()["apiKey"]["quota"]["windows"].clone();
        assert_eq!((&after[0]["remaining"], &after[1]["remaining"]), (&json!(2), &json!(0)));
        // Another limit is as full as the one before: nobody gets more by changing it to and fro.
        let more = "mutation($id: ID!) { updateApiKey(input: { id: $id, rateLimitPerHour: 100 }) { apiKey { version } } }";
        admin.with(more, json!({ "id": of["id"] })).await.data();
        assert!((1..=36).contains(&refused(&both.run(WHO).await)));

        let (_, raw) = key(json!({ "rateLimitPerMinute": 30 })).await;
        assert_eq!(header(&with_key(app, &raw).run(WHO).await, "ratelimit-policy"), "\"key-minute\";q=30;w=60, \"user\";q=1000000;w=60");
    }

    #[[("RATE_LIMIT_USER_PER_MINUTE", "6")]]
    async fn the_keys_of_a_user_share_the_users_limit(app: &TestApp) {
        let admin = app.admin().await;
        let mut keys = Vec::new();
        for _ in 0..2 {
            let input = json!({ "name": "CI", "scopes": ["ADMIN_READ"], "rateLimitPerMinute": 1_000 });
            keys.push(with_key(app, &new_key(&admin, input).await.1));
        }
        for key in [&keys[0], &keys[1], &keys[0], &keys[1]] {
            key.run(WHO).await.data();
        }
        refused(&keys[0].run(WHO).await);
        refused(&keys[1].run(WHO).await);
        refused(&admin.run(WHO).await);
    }

    #[[("RATE_LIMIT_USER_PER_MINUTE", "10"), ("RATE_LIMIT_ANONYMOUS_PER_MINUTE", "6")]]
    async fn each_mutation_counts_and_those_without_a_sign_in_by_address_too(app: &TestApp) {
        let admin = app.admin().await.from("203.0.113.9");
        let five = (0..5).map(|n| format!("a{n}: updateProfile(input: {{}}) {{ user {{ id }} }}")).collect::<Vec<_>>().join("\n");
        admin.run(&format!("mutation {{ {five} }}")).await.data();
        assert_eq!(header(&admin.run(WHO).await, "ratelimit").split(";t=").next(), Some("\"user\";r=4"));
        refused(&admin.run(&format!("mutation {{ {five} }}")).await);
        assert_eq!(codes(&admin.run(&spray(&["a@example.com", "b@example.com", "c@example.com"])).await), ["UNAUTHENTICATED"; 3]);
        // Somebody else is signed in at the same address, and has not asked for anything yet.
        let member = app.user("MEMBER").await.from("203.0.113.9");
        assert_eq!(codes(&member.run(&spray(&["d@example.com", "e@example.com", "f@example.com"])).await), ["UNAUTHENTICATED"; 3]);
        refused(&member.run(&spray(&["g@example.com"])).await);
        member.run(WHO).await.data();
    }

    #[[("RATE_LIMIT_ANONYMOUS_PER_MINUTE", "3")]]
    async fn what_is_refused_for_its_document_counts(app: &TestApp) {
        let here = app.anonymous().from("203.0.113.9");
        for document in ["{ nothing }", "{ viewer", "query { a: viewer { b } }"] {
            assert_ne!(here.run(document).await.code(), "RATE_LIMITED");
        }
        refused(&here.run("{ nothing }").await);
        refused(&here.run(WHO).await);
        app.admin().await.from("203.0.113.9").run(WHO).await.data();
    }

    #[[("RATE_LIMIT_ANONYMOUS_PER_MINUTE", "3"), ("RATE_LIMIT_USER_PER_MINUTE", "4")]]
    async fn api_keys_that_are_none_are_looked_up_only_so_often(app: &TestApp) {
        let unknown = || RawApiKey::generate(&Random::system());
        let health = async |key: &str| {
            let request = app.anonymous().http().get(format!("{}/health/detailed", app.url)).header("x-api-key", key);
            request.header("x-forwarded-for", "203.0.113.9").send().await.unwrap().status().as_u16()
        };
        let (_, raw) = new_key(&app.admin().await, json!({ "name": "CI", "scopes": ["ADMIN_READ"] })).await;
        let mut answers = Vec::new();
        for _ in 0..4 {
            answers.push(health(unknown().text().expose()).await);
        }
        assert_eq!(answers, [401, 401, 401, 429]);
        let elsewhere = with_key(app, &raw).from("203.0.113.10");
        elsewhere.run(WHO).await.data();
        // It is known by now, and asks like any caller: of that address too.
        assert_eq!([health(&raw).await, health(&raw).await, health(&raw).await], [200, 200, 429]);
    }

    #[[("RATE_LIMIT_ANONYMOUS_PER_MINUTE", "3")]]
    async fn the_many_networks_of_one_site_share_a_wider_limit(app: &TestApp) {
        for n in 0..16 {
            for host in 1..=3 {
                app.anonymous().from(&format!("2001:db8:7:{n}::{host}")).run(WHO).await.data();
            }
        }
        let answer = app.anonymous().from("2001:db8:7:ff::1").run(WHO).await;
        refused(&answer);
        assert!(header(&answer, "ratelimit").starts_with("\"anonymous\";r=0"));
        app.anonymous().from("2001:db8:8::1").run(WHO).await.data();
    }

    #[[("REGISTRATIONS_PER_HOUR", "2")]]
    async fn an_address_registers_only_so_often_signed_in_or_not(app: &TestApp) {
        let here = app.anonymous().from("203.0.113.9");
        let field = |n: usize| format!("a{n}: register(input: {{ organizationName: \"O\", email: \"a{n}@example.com\", fullName: \"N\",
            password: {{ plain: \"a password of mine\" }} }}) {{ accessToken }}");
        let answer = here.run(&format!("mutation {{ {} {} {} }}", field(0), field(1), field(2))).await;
        assert_eq!(codes(&answer), ["OK", "OK", "RATE_LIMITED"]);
        let mut signed_in = here;
        signed_in.access_token = answer.body["data"]["a0"]["accessToken"].as_str().map(str::to_owned);
        assert_eq!(codes(&signed_in.run(&format!("mutation {{ {} }}", field(3))).await), ["RATE_LIMITED"]);
        app.anonymous().from("203.0.113.10").run(&format!("mutation {{ {} }}", field(4))).await.data();
    }

    #[[]]
    async fn spellings_and_aliases_share_one_lock(app: &TestApp) {
        let here = app.anonymous().from("203.0.113.9");
        let spellings = ["admin@localhost", "ADMIN@localhost", " admin@LocalHost", "Admin@Localhost ", "admin@LOCALHOST"];
        let more = [spellings, spellings].concat();
        let expected = [["UNAUTHENTICATED"; 5], ["RATE_LIMITED"; 5]].concat();
        let answer = here.run(&spray(&more)).await;
        assert_eq!((answer.status.as_u16(), codes(&answer)), (200, expected.clone()));
        let known = sign_in(&here, "admin@localhost", PASSWORD).await;
        assert_eq!(codes(&known), ["RATE_LIMITED"], "though the password is right");
        let wait = known.body["errors"][0]["extensions"]["retryAfter"].as_u64().unwrap();
        assert!((1..=180).contains(&wait), "{wait}");

        // Of an address that nobody has nothing else is told.
        let answer = here.run(&spray(&["nobody@example.com"; 10])).await;
        assert_eq!(codes(&answer), expected);
        let unknown = sign_in(&here, "nobody@example.com", PASSWORD).await;
        let told = |answer: &Answer| (answer.status, answer.body["data"].clone(), answer.body["errors"][0]["message"].clone());
        assert_eq!(told(&known), told(&unknown));
        assert_eq!(codes(&here.run(&spray(&["no address"; 10])).await), expected);

        // Elsewhere the owner may sign in, and by that forgives what was tried.
        sign_in(&app.anonymous().from("203.0.113.10"), "admin@localhost", PASSWORD).await.data();
        assert_eq!(codes(&sign_in(&here, "admin@localhost", PASSWORD).await), ["RATE_LIMITED"]);
    }

    #[[]]
    async fn of_attempts_at_once_no_more_are_made_than_may_fail(app: &TestApp) {
        let here = app.anonymous().from("203.0.113.9");
        let attempts = (0..12).map(|_| sign_in(&here, "admin@localhost", "wrong"));
        let answers = futures_util::future::join_all(attempts).await;
        let tried = answers.iter().filter(|answer| answer.code() == "UNAUTHENTICATED").count();
        assert_eq!(tried, 5, "the others were not compared with the password");
        assert!(answers.iter().all(|answer| matches!(answer.code(), "UNAUTHENTICATED" | "RATE_LIMITED")));
    }

    #[[("FAILED_SIGN_INS_PER_HOUR", "10")]]
    async fn an_address_that_tries_one_password_on_everybody_is_refused(app: &TestApp) {
        let here = app.anonymous().from("203.0.113.9");
        // Sign-ins that succeed do not count.
        for _ in 0..12 {
            sign_in(&here, "admin@localhost", PASSWORD).await.data();
        }
        let emails: Vec<_> = (0..12).map(|n| format!("user{n}@example.com")).collect();
        let emails: Vec<_> = emails.iter().map(String::as_str).collect();
        let expected = [&["UNAUTHENTICATED"; 10][..], &["RATE_LIMITED"; 2]].concat();
        assert_eq!(codes(&here.run(&spray(&emails)).await), expected);
        // Who has signed in here before is not shut out by that; others are.
        sign_in(&here, "admin@localhost", PASSWORD).await.data();
        let (_, _) = crate::invitation::join(app, &app.admin().await, "ina@example.com", "MEMBER").await;
        assert_eq!(codes(&sign_in(&here, "ina@example.com", PASSWORD).await), ["RATE_LIMITED"]);
        sign_in(&app.anonymous().from("203.0.113.10"), "ina@example.com", PASSWORD).await.data();
    }

    #[[]]
    async fn from_many_addresses_not_all_guesses_are_let_through_and_the_owner_is(app: &TestApp) {
        let home = app.anonymous().from("203.0.113.9");
        sign_in(&home, "admin@localhost", PASSWORD).await.data();
        let guess = async |n: usize| {
            let from = app.anonymous().from(&format!("198.51.100.{n}"));
            sign_in(&from, "admin@localhost", "wrong").await.code().to_owned()
        };
        for n in 0..20 {
            assert_eq!(guess(n).await, "UNAUTHENTICATED");
        }
        assert_eq!(guess(20).await, "RATE_LIMITED");
        assert_eq!(codes(&sign_in(&app.anonymous().from("198.51.100.99"), "admin@localhost", PASSWORD).await), ["RATE_LIMITED"]);
        // From where the owner has signed in before, the owner may; the others have no more guesses by that.
        sign_in(&home, "admin@localhost", PASSWORD).await.data();
        assert_eq!(guess(20).await, "RATE_LIMITED");
        // From a new place a link for a new password is the way in.
        let new = app.anonymous().from("198.51.100.99");
        new.run("mutation { requestPasswordReset(input: { email: \"admin@localhost\" }) { accepted } }").await.data();
        let token = app.token_to("admin@localhost", "reset-password").await;
        let reset = "mutation($t: String!, $p: String!) { resetPassword(input: { token: $t, newPassword: { plain: $p } }) { reset } }";
        new.with(reset, json!({ "t": token, "p": PASSWORD })).await.data();
        sign_in(&new, "admin@localhost", PASSWORD).await.data();
        assert_eq!(guess(21).await, "RATE_LIMITED");
    }

    #[[]]
    async fn an_address_is_known_in_some_networks_only(app: &TestApp) {
        let at = |n: usize| app.anonymous().from(&format!("203.0.113.{n}"));
        for n in 0..17 {
            sign_in(&at(n), "admin@localhost", PASSWORD).await.data();
        }
        for n in 0..20 {
            let from = app.anonymous().from(&format!("198.51.100.{n}"));
            assert_eq!(codes(&sign_in(&from, "admin@localhost", "wrong").await), ["UNAUTHENTICATED"]);
        }
        sign_in(&at(15), "admin@localhost", PASSWORD).await.data();
        assert_eq!(codes(&sign_in(&at(16), "admin@localhost", PASSWORD).await), ["RATE_LIMITED"]);
    }

    #[[]]
    async fn tokens_and_keys_that_are_none_are_limited_by_address(app: &TestApp) {
        let here = app.anonymous().from("203.0.113.9");
        let fields = |count: usize, field: &str| (0..count).map(|n| format!("a{n}: {field}")).collect::<Vec<_>>().join("\n");
        let refresh = r#"refreshSession(input: { refreshToken: "made up" }) { accessToken }"#;
        let accept = r#"acceptInvitation(input: { token: "made up", password: { plain: "a password of mine" } }) { accessToken }"#;
        for (field, limit) in [(refresh, 300), (accept, 30)] {
            for _ in 0..limit / 10 {
                let answer = here.run(&format!("mutation {{ {} }}", fields(10, field))).await;
                assert_eq!(codes(&answer), ["UNAUTHENTICATED"; 10]);
            }
            assert_eq!(codes(&here.run(&format!("mutation {{ {field} }}")).await), ["RATE_LIMITED"]);
        }
        let verify = |raw: &str| format!("verifyApiKey(key: \"{raw}\") {{ code valid }}");
        let (_, raw) = new_key(&app.admin().await, json!({ "name": "CI" })).await;
        for _ in 0..7 {
            // Those that are one do not count.
            here.run(&format!("{{ {} }}", fields(20, &verify(&raw)))).await.data();
        }
        for _ in 0..10 {
            // Nor do those that have not the form of one: they are not looked up.
            here.run(&format!("{{ {} }}", fields(20, &verify("clv_none")))).await.data();
        }
        let unknown = RawApiKey::generate(&Random::system());
        for _ in 0..5 {
            here.run(&format!("{{ {} }}", fields(20, &verify(unknown.text().expose())))).await.data();
        }
        // Who is signed in has a limit of their own.
        app.admin().await.from("203.0.113.9").run(&format!("{{ {} }}", verify(&raw))).await.data();
        let answer = here.run(&format!("{{ {} }}", verify(&raw))).await;
        assert_eq!((answer.code(), &answer.body["data"]), ("RATE_LIMITED", &Value::Null));
        assert!((1..=36).contains(&answer.body["errors"][0]["extensions"]["retryAfter"].as_u64().unwrap()));
        app.anonymous().from("203.0.113.10").run(&format!("{{ {} }}", verify(&raw))).await.data();
    }

    #[[("RATE_LIMIT_USER_PER_MINUTE", "3")]]
    async fn each_operation_of_a_socket_counts(app: &TestApp) {
        const EVENTS: &str = "subscription { auditLogAdded { id } }";
        let admin = app.admin().await;
        let mut socket = Socket::connected(app, &admin).await;
        for id in ["1", "2", "3"] {
            socket.subscribe(id, WHO).await;
            socket.event(id).await;
            assert_eq!(socket.next().await["type"], "complete");
        }
        for (id, query) in [("4", WHO), ("5", EVENTS)] {
            socket.subscribe(id, query).await;
            assert_eq!(socket.error(id).await, "RATE_LIMITED");
        }
        let stream = admin.http().post(format!("{}/graphql", app.url)).json(&json!({ "query": EVENTS }));
        let stream = stream.bearer_auth(admin.access_token.as_ref().unwrap()).header("accept", "text/event-stream");
        refused(&Answer::read(stream.send().await.unwrap()).await);
    }
}

both_databases! {
    async fn what_the_server_could_not_look_up_was_no_guess(app: TestApp) {
        let (_, raw) = new_key(&app.admin().await, json!({ "name": "CI" })).await;
        let client = app.anonymous();
        let verify = async || client.with("query($k: String!) { verifyApiKey(key: $k) { code } }", json!({ "k": raw })).await;
        app.database.execute("ALTER TABLE api_key_digests RENAME TO away").await.unwrap();
        for _ in 0..101 {
            assert_eq!(verify().await.code(), "INTERNAL_SERVER_ERROR");
        }
        app.database.execute("ALTER TABLE away RENAME TO api_key_digests").await.unwrap();
        assert_eq!(verify().await.data()["verifyApiKey"]["code"], "VALID");
    }

    async fn locks_grow_and_end(app: TestApp) {
        let client = app.anonymous();
        let guess = async || sign_in(&client, "admin@localhost", "wrong").await;
        let wait = |answer: &Answer| answer.body["errors"][0]["extensions"]["retryAfter"].as_u64();
        let mut waits = Vec::new();
        let mut guesses = 0;
        // A day of somebody who tries again as soon as may be.
        let mut left = 24 * 60 * 60;
        loop {
            match wait(&guess().await) {
                None => guesses += 1,
                Some(seconds) if seconds > left => break,
                Some(seconds) => {
                    left -= seconds;
                    waits.push(seconds / 60);
                    app.advance(seconds.try_into().unwrap());
                }
            }
        }
        assert!((50..=60).contains(&guesses), "{guesses}");
        assert_eq!((waits[0] + 1) / 3, 1, "{waits:?}");
        assert_eq!(waits.iter().max().map(|most| (46..=48).contains(most)), Some(true), "{waits:?}");
        app.advance(24 * 60 * 60);
        sign_in(&client, "admin@localhost", PASSWORD).await.data();
    }

    async fn a_sign_in_that_succeeds_forgives_those_before_it(app: TestApp) {
        let client = app.anonymous();
        for _ in 0..3 {
            assert_eq!(codes(&client.run(&spray(&["admin@localhost"; 4])).await), ["UNAUTHENTICATED"; 4]);
            sign_in(&client, "admin@localhost", PASSWORD).await.data();
        }
    }

    async fn what_is_refused_when_it_is_done_is_audited(app: TestApp) {
        let client = app.anonymous();
        client.run(&spray(&["admin@localhost"; 7])).await;
        let query = "{ auditLogs(last: 7, filter: { action: [SIGN_IN], outcome: [DENIED] }) { totalCount nodes { errorCode resource { ... on User { email } } } } }";
        app.advance(200);
        let entries = app.admin().await.run(query).await.data()["auditLogs"].clone();
        assert_eq!(entries["totalCount"], 7);
        let nodes = entries["nodes"].as_array().unwrap();
        let limited = nodes.iter().filter(|node| node["errorCode"] == "RATE_LIMITED").count();
        assert_eq!(limited, 2);
        assert!(nodes.iter().all(|node| node["resource"]["email"] == "admin@localhost"), "{nodes:?}");
    }

    async fn what_is_refused_before_it_is_done_leaves_no_entry(app: TestApp) {
        let mut app = app;
        app.set("RATE_LIMIT_ANONYMOUS_PER_MINUTE", "1");
        app.restart().await;
        let count = async || app.database.texts("SELECT id AS text FROM audit_logs").await.len();
        let client = app.anonymous();
        sign_in(&client, "admin@localhost", "wrong").await;
        let before = count().await;
        refused(&sign_in(&client, "admin@localhost", "wrong").await);
        assert_eq!(count().await, before);
        app.advance(61);
        assert_eq!(sign_in(&client, "admin@localhost", "wrong").await.code(), "UNAUTHENTICATED");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_that_share_a_redis_share_their_limits() {
    let mut limited = Limited::in_redis(&[("RATE_LIMIT_ANONYMOUS_PER_MINUTE", "15")]).await;
    let other = Client::new(&limited.app.another().await);
    let here = limited.app.anonymous();
    assert_eq!(codes(&here.run(&spray(&["admin@localhost"; 3])).await), ["UNAUTHENTICATED"; 3]);
    let expected = ["UNAUTHENTICATED", "UNAUTHENTICATED", "RATE_LIMITED"];
    assert_eq!(codes(&other.run(&spray(&["admin@localhost"; 3])).await), expected);
    for _ in 0..4 {
        here.run(WHO).await.data();
        other.run(WHO).await.data();
    }
    assert_eq!(header(&other.run(WHO).await, "ratelimit").split(";t=").next(), Some("\"anonymous\";r=0"));
    refused(&here.run(WHO).await);
    limited.finish().await;
}

async fn without_redis(setting: &'static str) -> (Limited, Client) {
    let more = [("RATE_LIMIT_ANONYMOUS_PER_MINUTE", "40"), ("RATE_LIMIT_WITHOUT_REDIS", setting)];
    let mut limited = Limited::in_redis(&more).await;
    limited.redis.as_mut().unwrap().kill();
    until_gauge(&limited.app, "claviger_redis_up", 0).await;
    let client = limited.app.anonymous();
    (limited, client)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_redis_is_away_a_server_counts_by_itself_and_then_in_redis_again() {
    let (mut limited, client) = without_redis("local").await;
    let expected = [["UNAUTHENTICATED"; 5], ["RATE_LIMITED"; 5]].concat();
    assert_eq!(codes(&client.run(&spray(&["admin@localhost"; 10])).await), expected);
    for _ in 0..30 {
        client.run(WHO).await.data();
    }
    refused(&client.run(WHO).await);
    limited.redis.as_mut().unwrap().revive().await;
    until_gauge(&limited.app, "claviger_redis_up", 1).await;
    assert_eq!(header(&client.run(WHO).await, "ratelimit").split(";t=").next(), Some("\"anonymous\";r=39"));
    limited.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_redis_is_away_requests_can_be_open_but_guessing_is_not() {
    let (_limited, client) = without_redis("open").await;
    let answer = client.run(&spray(&["admin@localhost"; 10])).await;
    assert_eq!(codes(&answer), [["UNAUTHENTICATED"; 5], ["RATE_LIMITED"; 5]].concat());
    assert!(!answer.headers.contains_key("ratelimit"));
    for _ in 0..50 {
        client.run(WHO).await.data();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_redis_is_away_requests_can_be_refused() {
    let (mut limited, client) = without_redis("closed").await;
    let answer = client.run(WHO).await;
    assert_eq!((answer.status.as_u16(), answer.code()), (503, "SERVICE_UNAVAILABLE"));
    let health = client.http().get(format!("{}/health", limited.app.url)).send().await.unwrap();
    assert_eq!(health.status(), 200);
    limited.redis.as_mut().unwrap().revive().await;
    until_gauge(&limited.app, "claviger_redis_up", 1).await;
    client.run(WHO).await.data();
}
