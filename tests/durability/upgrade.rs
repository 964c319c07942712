//! A data directory of the first release is brought to the newest schema, and that fails at a random instant.
//!
//! The directory is a real one of the present, whose rows are moved into the tables of the first schema.

use std::{fs, path::Path, time::Duration};

use rand::{SeedableRng, rngs::StdRng};
use rusqlite::Connection;

use super::{
    checks::check,
    clients::{Shared, all, disturb, launch, start},
    machine::{Machine, Within},
};

const WITHIN: Within = Within { time: Duration::from_millis(150), changes: 200 };
/// Changes of each client between two upgrades.
const CHANGES: u64 = 8;
/// The first schema as it was released.
const FIRST: &str = include_str!("../fixtures/store/schema-1.sql");
/// Its tables, those before that others refer to.
const TABLES: [&str; 6] = ["collections", "files", "documents", "chunks", "vectors", "jobs"];

/// Puts a database of the first schema, with the same rows, in the place of the present one.
fn make_old(data: &Path) -> rusqlite::Result<()> {
    let (path, old) = (data.join("hearth.sqlite3"), data.join("old"));
    let database = Connection::open(&old)?;
    database.execute_batch(FIRST)?;
    database.execute("ATTACH ? AS present", [path.to_str()])?;
    for table in TABLES {
        let mut query = database.prepare("SELECT group_concat(name) FROM pragma_table_info(?, 'main')")?;
        let columns: String = query.query_row([table], |row| row.get(0))?;
        database.execute_batch(&format!(
            "INSERT INTO main.{table} ({columns}) SELECT {columns} FROM present.{table} ORDER BY 1"
        ))?;
    }
    database.execute_batch("DETACH present")?;
    database.close().map_err(|(_, error)| error)?;
    for rest in ["hearth.sqlite3-wal", "hearth.sqlite3-shm"] {
        let _not_there = fs::remove_file(data.join(rest));
    }
    // Indexes are held against ids, which begin again.
    let _not_there = fs::remove_dir_all(data.join("index"));
    fs::rename(&old, &path).expect("it was made");
    Ok(())
}

async fn an_upgrade_fails_and_is_begun_again(mut machine: Machine, failures: u64, seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let knowledge = Shared::default();
    for failure in 0..failures {
        let context = format!("seed {seed}, after failure {failure}");
        let (server, client) = start(&machine.data(), &context).await;
        check(&client, &knowledge, &context).await;
        all(disturb(&client, &knowledge, CHANGES, &mut random)).await;
        check(&client, &knowledge, &context).await;
        drop(server);
        make_old(&machine.data()).expect("the rows are of both schemas");
        machine.sync();
        let mut server = launch(&machine.data());
        let ended = machine.fail(&mut [&mut server.0], WITHIN, &mut random).await;
        assert!(ended.is_none(), "{context}: the server ended by itself: {ended:?}");
    }
    let context = format!("seed {seed}, at the end");
    let (_server, client) = start(&machine.data(), &context).await;
    check(&client, &knowledge, &context).await;
    assert!(!knowledge.lock().documents.is_empty(), "there was something to lose");
}

super::on_each_machine!(an_upgrade_fails_and_is_begun_again);
