//! `claviger healthcheck`.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use url::Host;

use super::Failure;
use crate::settings::{Listen, Settings};

/// Asks the server that these settings describe whether it is ready.
pub(super) async fn run(settings: &Settings) -> Result<(), Failure> {
    let Listen { host, port } = settings.listen.clone();
    if port == 0 {
        return Err(Failure::Usage(
            "PORT is 0, which stands for any free port: set it to the one that is listened on".into(),
        ));
    }
    let host = match host {
        Host::Ipv4(ip) if ip.is_unspecified() => Host::Ipv4(Ipv4Addr::LOCALHOST),
        Host::Ipv6(ip) if ip.is_unspecified() => Host::Ipv6(Ipv6Addr::LOCALHOST),
        host => host,
    };
    let url = format!("http://{}/health/ready", Listen { host, port });
    let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(5)).build();
    let answer = match client {
        Ok(client) => client.get(&url).send().await,
        Err(error) => Err(error),
    };
    match answer {
        Ok(answer) if answer.status().is_success() => {
            println!("ready");
            Ok(())
        }
        Ok(answer) => Err(Failure::Other(format!("{url} answered {}", answer.status()))),
        Err(error) => Err(Failure::Other(format!("{url} does not answer: {error}"))),
    }
}
