//! A Redis of a test's own, on a free port: to be killed and started again, to hang, and gone with the process.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};

/// A shell that starts Redis, sends it the signals that it is told on its standard input, and kills it when that is closed, which
/// happens however this process ends.
const WATCHDOG: &str = r#"
port=$1
redis-server --port "$port" --bind 127.0.0.1 --save '' --appendonly no --daemonize no >&2 &
redis=$!
trap 'kill -9 "$redis" 2>/dev/null || true' EXIT
trap '' PIPE
echo started
while read -r signal; do
  kill -"$signal" "$redis"
  echo started
done
"#;

pub(crate) struct TestRedis {
    port: u16,
    watchdog: Option<Child>,
}

impl TestRedis {
    pub(crate) async fn start() -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut redis = Self { port, watchdog: None };
        redis.revive().await;
        redis
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.port)
    }

    /// Ends it as a crash would: what it had is lost.
    pub(crate) fn kill(&mut self) {
        let mut watchdog = self.watchdog.take().unwrap();
        drop(watchdog.stdin.take());
        watchdog.wait().unwrap();
    }

    /// Lets it hang: it takes connections, and answers nothing.
    pub(crate) fn hang(&mut self) {
        self.signal("STOP");
    }

    pub(crate) fn go_on(&mut self) {
        self.signal("CONT");
    }

    fn signal(&mut self, name: &str) {
        let watchdog = self.watchdog.as_mut().unwrap();
        writeln!(watchdog.stdin.as_mut().unwrap(), "{name}").unwrap();
        until_started(watchdog);
    }

    /// Starts it, on the same port.
    pub(crate) async fn revive(&mut self) {
        let mut watchdog = Command::new("sh")
            .args(["-c", WATCHDOG, "watchdog", &self.port.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            // Ctrl-C in a terminal goes to the tests' group: the watchdog must outlive them.
            .process_group(0)
            .spawn()
            .unwrap();
        until_started(&mut watchdog);
        self.watchdog = Some(watchdog);
        let client = redis::Client::open(self.url()).unwrap();
        for _ in 0..200 {
            if let Ok(mut connection) = client.get_multiplexed_async_connection().await {
                redis::cmd("PING").query_async::<()>(&mut connection).await.unwrap();
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        panic!("Redis did not start: ./test installs redis-server");
    }

    /// The keys that are there.
    pub(crate) async fn keys(&self) -> Vec<String> {
        let client = redis::Client::open(self.url()).unwrap();
        let mut connection = client.get_multiplexed_async_connection().await.unwrap();
        redis::cmd("KEYS").arg("*").query_async(&mut connection).await.unwrap()
    }
}

fn until_started(watchdog: &mut Child) {
    watchdog.stdout.as_mut().unwrap().read_exact(&mut [0; 8]).unwrap();
}

impl Drop for TestRedis {
    fn drop(&mut self) {
        if self.watchdog.is_some() {
            self.kill();
        }
    }
}
