//! `claviger healthcheck`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use super::Failure;
use crate::settings::Settings;

/// Asks the server that these settings describe whether it is ready.
pub(super) async fn run(settings: &Settings) -> Result<(), Failure> {
    if settings.listen.port() == 0 {
        return Err(Failure::Other(
            "PORT is 0, which stands for any free port: set it to the one that is listened on".into(),
        ));
    }
    let ip = match settings.listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    let url = format!("http://{}/health/ready", SocketAddr::new(ip, settings.listen.port()));
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
