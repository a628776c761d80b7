//! Killed in mid-write: what was acknowledged is there.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use super::*;

/// Tells the child which registry to write to.
const TARGET: &str = "MCP_TEST_CRASH_REGISTRY";

/// Acknowledged writes before the kill, and how often it is repeated.
const WRITES: usize = 60;
const KILLS: usize = 4;

/// Not a test by itself: the process that [`nothing_acknowledged_is_lost`] starts and kills.
#[tokio::test]
async fn child_that_writes_until_killed() {
    let Some(path) = std::env::var_os(TARGET) else {
        return;
    };
    let registry = Registry::open(std::path::Path::new(&path)).unwrap();
    let writers = (0..4).map(|_| {
        let registry = registry.clone();
        tokio::spawn(async move {
            loop {
                let events = vec![event(1, "shop/web"), event(1, "shop/web")];
                let numbers = registry.append_events(events).await.unwrap();
                let mut out = std::io::stdout().lock();
                writeln!(out, "\nack {}", numbers[1]).unwrap();
                out.flush().unwrap();
            }
        })
    });
    futures_util::future::try_join_all(writers).await.unwrap();
}

#[tokio::test]
async fn nothing_acknowledged_is_lost() {
    let fixture = Fixture::new();
    for _ in 0..KILLS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "child_that_writes_until_killed",
                "--nocapture",
                "--test-threads=1",
            ])
            .env(TARGET, fixture.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut acknowledged = Vec::new();
        for line in BufReader::new(child.stdout.take().unwrap()).lines() {
            let line = line.unwrap();
            if let Some(number) = line.strip_prefix("ack ") {
                acknowledged.push(number.parse::<u64>().unwrap());
                if acknowledged.len() == WRITES {
                    child.kill().unwrap();
                }
            }
        }
        child.wait().unwrap();
        assert!(acknowledged.len() >= WRITES);
        let registry = Registry::open(&fixture.path()).unwrap();
        let all = EventQuery {
            limit: MAX_ROWS,
            ..EventQuery::default()
        };
        let stored: BTreeSet<u64> = registry
            .events(all)
            .await
            .unwrap()
            .iter()
            .map(|row| row.seq)
            .collect();
        for number in acknowledged {
            assert!(
                stored.contains(&number),
                "{number} was acknowledged and is gone"
            );
        }
        assert_eq!(stored.len() % 2, 0, "half a call was written");
        assert!(stored.iter().copied().eq(1..=stored.len() as u64), "a gap");
    }
}
