//! What the settings tell by themselves.

use url::{Host, Url};

use super::Finding;
use crate::settings::{DatabaseUrl, Settings};

/// Looks at them.
pub(super) fn check(settings: &Settings) -> Vec<Finding> {
    vec![
        public_url(settings),
        proxies(settings),
        generated_secrets(settings),
        frontends(settings),
        registration(settings),
        shown("introspection", "INTROSPECTION", settings.introspection),
        shown("playground", "PLAYGROUND", settings.playground),
        checkpoints(settings),
    ]
}

/// Whether others than this machine's own programs reach the server without a proxy.
fn is_exposed(settings: &Settings) -> bool {
    !is_here(Some(&settings.listen.host.to_string()))
}

fn is_here(host: Option<&str>) -> bool {
    match host.map(Host::parse) {
        Some(Ok(Host::Domain(name))) => name == "localhost",
        Some(Ok(Host::Ipv4(ip))) => ip.is_loopback(),
        Some(Ok(Host::Ipv6(ip))) => ip.is_loopback(),
        Some(Err(_)) | None => false,
    }
}

fn public_url(settings: &Settings) -> Finding {
    const CHECK: &str = "public-url";
    let url = &settings.public_url;
    let advice = "put a proxy with TLS before the server, and set PUBLIC_URL to where it is reached: https://…";
    match url.scheme() {
        "https" => Finding::ok(CHECK, url.as_str()),
        _ if is_exposed(settings) || !is_here(url.host_str()) => {
            Finding::fail(CHECK, format!("{url}: passwords and keys would go over the network as they are"), advice)
        }
        _ => Finding::warn(CHECK, format!("{url} is for this machine alone"), advice),
    }
}

fn proxies(settings: &Settings) -> Finding {
    const CHECK: &str = "trusted-proxies";
    let proxies = &settings.trusted_proxies;
    let advice = "set TRUSTED_PROXIES to the addresses that the proxy connects from, and to no others";
    if let Some(all) = proxies.iter().find(|network| network.prefix_len() == 0) {
        return Finding::fail(CHECK, format!("{all} is everybody: any caller may claim any address"), advice);
    }
    if !proxies.is_empty() {
        let named: Vec<_> = proxies.iter().map(ToString::to_string).collect();
        return Finding::ok(CHECK, named.join(", "));
    }
    // The server speaks no TLS by itself.
    if settings.public_url.scheme() == "https" {
        let message =
            "by PUBLIC_URL there is a proxy, but none is trusted: all callers have its address, and share its limits";
        return Finding::fail(CHECK, message, advice);
    }
    Finding::ok(CHECK, "none, and by PUBLIC_URL there is no proxy")
}

fn generated_secrets(settings: &Settings) -> Finding {
    const CHECK: &str = "generated-secrets";
    let secrets = [
        (settings.jwt_secret.is_none(), "JWT_SECRET"),
        (settings.encryption_keys.is_none(), "CREDENTIAL_ENCRYPTION_KEYS"),
    ];
    let generated: Vec<_> =
        secrets.into_iter().filter(|(is_generated, _)| *is_generated).map(|(_, name)| name).collect();
    if generated.is_empty() {
        return Finding::ok(CHECK, "all are set");
    }
    let message = format!("not set, so generated into DATA_DIR: {}", generated.join(", "));
    let has_several_servers = matches!(settings.database_url, DatabaseUrl::Postgres(_));
    if is_exposed(settings) || settings.public_url.scheme() == "https" || has_several_servers {
        let advice = "set them from where your secrets are kept, alike on every server, and keep a copy elsewhere: what is in the \
                      files now goes on to hold";
        Finding::warn(CHECK, message, advice)
    } else {
        Finding::ok(CHECK, message)
    }
}

fn frontends(settings: &Settings) -> Finding {
    const CHECK: &str = "frontend-url";
    let is_open =
        |origin: &&String| Url::parse(origin).is_ok_and(|url| url.scheme() != "https" && !is_here(url.host_str()));
    match settings.frontend_urls.iter().find(is_open) {
        Some(origin) => Finding::fail(
            CHECK,
            format!("{origin} is no https: whoever is on the way reads the tokens in links"),
            "serve the frontend by https, and name it so in FRONTEND_URL",
        ),
        None if settings.frontend_urls.is_empty() => Finding::warn(
            CHECK,
            "none: links in mails and invitations lead to PUBLIC_URL, where no page reads them",
            "set FRONTEND_URL to the origin of the pages that accept invitations and set passwords",
        ),
        None => Finding::ok(CHECK, settings.frontend_urls.join(", ")),
    }
}

fn registration(settings: &Settings) -> Finding {
    const CHECK: &str = "registration";
    if settings.is_registration_open {
        let message = "open: whoever reaches the server makes an organization, and rows for good";
        Finding::warn(CHECK, message, "leave REGISTRATION closed, unless that is meant; then limit it in the proxy")
    } else {
        Finding::ok(CHECK, "closed")
    }
}

/// What shows strangers how the API looks.
fn shown(check: &'static str, variable: &str, is_on: bool) -> Finding {
    if is_on {
        Finding::warn(check, "on: for whoever reaches the server", format!("{variable}=off, where nobody needs it"))
    } else {
        Finding::ok(check, "off")
    }
}

fn checkpoints(settings: &Settings) -> Finding {
    const CHECK: &str = "audit-checkpoints";
    match settings.audit_checkpoints {
        Some(every) => Finding::ok(CHECK, format!("every {} minutes, into the log", every.as_secs() / 60)),
        None => Finding::warn(
            CHECK,
            "none: who writes the database can cut off the newest entries of the audit log unseen",
            "set AUDIT_CHECKPOINT_MINUTES, and ship the log elsewhere",
        ),
    }
}
