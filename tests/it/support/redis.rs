//! A Redis of a test's own, on a free port: to be killed and started again, and gone with the process.

use std::io::Read as _;
use std::net::TcpListener;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};

/// A shell that starts Redis and kills it when its standard input is closed, which happens however this process ends.
const WATCHDOG: &str = r#"
port=$1
redis-server --port "$port" --bind 127.0.0.1 --save '' --appendonly no --daemonize no >&2 &
redis=$!
trap 'kill -9 "$redis" 2>/dev/null || true' EXIT
trap '' PIPE
echo started
cat >/dev/null
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
        let mut started = [0; 7];
        watchdog.stdout.as_mut().unwrap().read_exact(&mut started).unwrap();
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

impl Drop for TestRedis {
    fn drop(&mut self) {
        if self.watchdog.is_some() {
            self.kill();
        }
    }
}
