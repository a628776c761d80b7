//! Opening, refusing, and the writing thread.

use std::os::unix::fs::PermissionsExt;

use super::*;

fn shell(fixture: &Fixture) -> rusqlite::Connection {
    rusqlite::Connection::open(fixture.path()).unwrap()
}

#[tokio::test]
async fn opening_again_keeps_everything() {
    let fixture = Fixture::new();
    fixture
        .registry
        .remember("node", "rift".to_owned())
        .await
        .unwrap();
    let mode = std::fs::metadata(fixture.path())
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let again = Registry::open(&fixture.path()).unwrap();
    assert_eq!(
        again.remembered("node").await.unwrap().as_deref(),
        Some("rift")
    );
    assert_eq!(again.remembered("other").await.unwrap(), None);
}

#[tokio::test]
async fn a_newer_schema_is_refused_and_left_alone() {
    let fixture = Fixture::new();
    shell(&fixture)
        .pragma_update(None, "user_version", 99)
        .unwrap();
    match Registry::open(&fixture.path()) {
        Err(OpenError::NewerSchema {
            found: 99,
            known: 6,
            ..
        }) => {}
        other => panic!("{other:?}"),
    }
    let version: i64 = shell(&fixture)
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .unwrap();
    assert_eq!(version, 99);
}

#[test]
fn a_foreign_database_is_refused() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("other.db");
    rusqlite::Connection::open(&path)
        .unwrap()
        .execute_batch("CREATE TABLE mails (subject TEXT)")
        .unwrap();
    assert!(matches!(
        Registry::open(&path),
        Err(OpenError::Foreign { .. })
    ));
}

#[tokio::test]
async fn a_damaged_file_is_refused() {
    let directory = TempDir::new().unwrap();
    let text = directory.path().join("text.db");
    std::fs::write(
        &text,
        "this is no database, but long enough to be looked at ".repeat(20),
    )
    .unwrap();
    assert!(matches!(
        Registry::open(&text),
        Err(OpenError::Corrupt { .. })
    ));

    let fixture = Fixture::new();
    fixture
        .registry
        .remember("node", "x".repeat(60_000))
        .await
        .unwrap();
    shell(&fixture)
        .execute_batch("PRAGMA wal_checkpoint(TRUNCATE)")
        .unwrap();
    let copy = directory.path().join("cut.db");
    let bytes = std::fs::read(fixture.path()).unwrap();
    std::fs::write(&copy, &bytes[..bytes.len() / 2 / 4096 * 4096]).unwrap();
    assert!(matches!(
        Registry::open(&copy),
        Err(OpenError::Corrupt { .. })
    ));
}

#[tokio::test]
async fn damage_in_the_midst_of_a_file_is_found_at_the_start() {
    let fixture = Fixture::new();
    let events = (0..2000).map(|second| event(second, "shop/web")).collect();
    fixture.registry.append_events(events).await.unwrap();
    shell(&fixture)
        .execute_batch("PRAGMA wal_checkpoint(TRUNCATE)")
        .unwrap();
    let mut bytes = std::fs::read(fixture.path()).unwrap();
    // A page of events far from everything that opening reads by itself.
    let page = bytes.len() * 3 / 4 / 4096 * 4096;
    bytes[page..page + 4096].fill(0xa5);
    let copy = fixture.directory.path().join("damaged.db");
    std::fs::write(&copy, &bytes).unwrap();
    assert!(matches!(
        Registry::open(&copy),
        Err(OpenError::Corrupt { .. })
    ));
}

#[test]
fn a_missing_directory_is_an_error() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("none/registry.db");
    assert!(matches!(Registry::open(&path), Err(OpenError::Io { .. })));
}

#[tokio::test]
async fn checkpoint_leaves_all_in_the_one_file_while_clones_live() {
    let fixture = Fixture::new();
    let registry = fixture.registry.clone();
    registry.remember("node", "rift".to_owned()).await.unwrap();
    assert!(registry.remembered("node").await.unwrap().is_some());
    let mut log = registry.path().as_os_str().to_owned();
    log.push("-wal");
    assert!(std::fs::metadata(&log).unwrap().len() > 0);
    registry.checkpoint().unwrap();
    assert_eq!(std::fs::metadata(&log).unwrap().len(), 0);
    let alone = fixture.registry.path().with_extension("alone");
    std::fs::copy(registry.path(), &alone).unwrap();
    let alone = Registry::open(&alone).unwrap();
    assert!(alone.remembered("node").await.unwrap().is_some());
}

#[tokio::test]
async fn a_failing_call_spoils_no_other_of_its_group() {
    let fixture = Fixture::new();
    let registry = &fixture.registry;
    // The first job holds the writer until all others wait, so that they share one transaction.
    let (go, gate) = std::sync::mpsc::channel::<()>();
    let first = registry.write(move |_| {
        gate.recv().unwrap();
        Ok(())
    });
    let mut rest = Vec::new();
    for number in 0..20u32 {
        rest.push(registry.write(move |tx| {
            tx.execute(
                "INSERT INTO meta (name, value) VALUES (?1, 'x')",
                [format!("fact {number}")],
            )?;
            if number % 5 == 0 {
                return Err(RegistryError::TooLarge {
                    what: "it",
                    limit: 0,
                });
            }
            Ok(number)
        }));
    }
    let mut all = Box::pin(futures_util::future::join(
        first,
        futures_util::future::join_all(rest),
    ));
    assert!(futures_util::poll!(&mut all).is_pending());
    go.send(()).unwrap();
    let (_, rest) = all.await;
    for (number, result) in rest.into_iter().enumerate() {
        assert_eq!(result.is_err(), number % 5 == 0, "{number}");
    }
    let stored: i64 = registry
        .read(|c, _| Ok(c.query_row("SELECT count(*) FROM meta", [], |row| row.get(0))?))
        .await
        .unwrap();
    assert_eq!(stored, 16);
}

#[tokio::test]
async fn a_caller_that_goes_away_changes_nothing() {
    let fixture = Fixture::new();
    let mut write = Box::pin(fixture.registry.remember("node", "rift".to_owned()));
    assert!(futures_util::poll!(&mut write).is_pending());
    drop(write);
    fixture
        .registry
        .remember("other", "x".to_owned())
        .await
        .unwrap();
    assert!(fixture.registry.remembered("node").await.unwrap().is_some());
}

#[tokio::test]
async fn a_full_disk_fails_the_write_and_no_later_one() {
    let fixture = Fixture::new();
    let registry = &fixture.registry;
    let pages = |limit: i64| {
        registry.write(move |tx| {
            Ok(
                tx.query_row(&format!("PRAGMA max_page_count = {limit}"), [], |row| {
                    row.get::<_, i64>(0)
                })?,
            )
        })
    };
    let now = pages(1).await.unwrap();
    let full = registry.remember("large", "x".repeat(60_000)).await;
    let folder = registry.path().parent().unwrap().to_owned();
    let shown = folder.display().to_string();
    assert_eq!(full, Err(RegistryError::Full { folder }));
    assert!(
        full.unwrap_err()
            .to_string()
            .ends_with(&format!(" in {shown}"))
    );
    pages(now + 1000).await.unwrap();
    registry
        .remember("large", "x".repeat(60_000))
        .await
        .unwrap();
}

#[tokio::test]
async fn damage_found_while_running_stops_all_writes() {
    let fixture = Fixture::new();
    let registry = &fixture.registry;
    let result = registry
        .write(|_| -> Result<(), _> {
            Err(RegistryError::Io {
                detail: "fsync".to_owned(),
            })
        })
        .await;
    assert!(matches!(result, Err(RegistryError::Io { .. })));
    assert!(matches!(registry.failed().await, RegistryError::Io { .. }));
    assert_eq!(
        registry.remember("node", "rift".to_owned()).await,
        Err(RegistryError::WritesStopped)
    );
    assert_eq!(registry.remembered("node").await.unwrap(), None);
}
