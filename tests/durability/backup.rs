//! `hearth backup` beside a server and without one, `hearth restore`, and both when the machine fails.
//!
//! A backup that says that it is complete brings back everything that had been acknowledged when it began and was not
//! changed while it was made, and nothing that had been deleted before. One that was cut off is not restored.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{ExitStatus, Output},
    time::Duration,
};

use rand::{Rng, SeedableRng, rngs::StdRng};
use sha2::{Digest, Sha256};

use super::{
    checks::check,
    clients::{Knowledge, Shared, all, disturb, start, try_start},
    machine::{Machine, Within, command, spawn},
};

const WITHIN: Within = Within { time: Duration::from_millis(200), changes: 250 };
/// Changes of each client between two backups.
const CHANGES: u64 = 6;

fn backup(data: &Path, into: &Path) -> Output {
    command(data, &["backup"]).arg(into).output().expect("the binary runs")
}

#[track_caller]
fn assert_went_well(output: &Output, context: &str) {
    assert!(output.status.success(), "{context}: {}", String::from_utf8_lossy(&output.stderr));
}

/// What a backup must hold that was made between these two states: what one client did not touch meanwhile is certain.
fn between(before: &Knowledge, after: &Knowledge) -> Shared {
    let mut between = before.clone();
    for (key, known) in &mut between.documents {
        let is_same = after.documents.get(key).is_some_and(|later| later.id == known.id && !later.in_doubt);
        known.in_doubt |= !is_same;
    }
    let shared = Shared::default();
    *shared.lock() = between;
    shared
}

/// All files of a folder and of those in it.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// A complete backup names each of its files in the manifest, with its hash.
fn assert_is_described(backup: &Path, context: &str) {
    let manifest = fs::read_to_string(backup.join("manifest.json")).expect("a manifest");
    for path in files(backup).iter().filter(|path| !path.ends_with("manifest.json")) {
        let hash = Sha256::digest(fs::read(path).expect("it was listed"));
        let hash: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        assert!(manifest.contains(&hash), "{context}: {} is not what the manifest says", path.display());
    }
    assert!(backup.join("hearth.sqlite3").is_file(), "{context}: there is no database");
}

/// Restores a backup into a new directory and holds a server on it against what is known.
async fn assert_restores(backup: &Path, known: &Shared, context: &str) {
    assert_is_described(backup, context);
    let elsewhere = tempfile::tempdir().expect("a temporary directory");
    let data = elsewhere.path().join("data");
    let restored = command(&data, &["restore"]).arg(backup).output().expect("the binary runs");
    assert_went_well(&restored, context);
    let (_server, client) = start(&data, context).await;
    check(&client, known, context).await;
}

/// After a backup that may have been cut off.
async fn assert_restores_or_refuses(backup: &Path, ended: Option<ExitStatus>, known: &Shared, context: &str) {
    if let Some(ended) = ended {
        assert!(ended.success(), "{context}: the backup failed");
        assert!(backup.join("manifest.json").exists(), "{context}: a complete backup is lost");
    }
    if backup.join("manifest.json").exists() {
        return assert_restores(backup, known, context).await;
    }
    if !backup.exists() {
        return;
    }
    let elsewhere = tempfile::tempdir().expect("a temporary directory");
    let restored = command(&elsewhere.path().join("data"), &["restore"]).arg(backup).output().expect("it runs");
    let said = String::from_utf8_lossy(&restored.stderr);
    assert!(!restored.status.success() && said.contains("manifest.json"), "{context}: half a backup: {said}");
}

async fn backups_are_complete_or_refused(mut machine: Machine, failures: u64, seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let knowledge = Shared::default();
    for failure in 0..failures {
        let context = format!("seed {seed}, after failure {failure}");
        let folder = |name: &str| machine.path().join(format!("{name}-{failure}"));
        let (beside, without, cut) = (folder("beside"), folder("without"), folder("cut"));
        let (mut server, client) = start(&machine.data(), &context).await;
        check(&client, &knowledge, &context).await;
        all(disturb(&client, &knowledge, CHANGES, &mut random)).await;

        let before = knowledge.lock().clone();
        let clients = disturb(&client, &knowledge, CHANGES, &mut random);
        let data = machine.data();
        let into = beside.clone();
        let made = tokio::task::spawn_blocking(move || backup(&data, &into)).await.expect("no panic");
        all(clients).await;
        assert_went_well(&made, &context);
        let known = between(&before, &knowledge.lock());
        assert_restores(&beside, &known, &format!("{context}, a backup beside the server")).await;

        // Another one, which is under way when the machine fails, now with a server and now without.
        let before = knowledge.lock().clone();
        let mut command = command(&machine.data(), &["backup"]);
        command.arg(&cut);
        let ended = if random.random_bool(0.5) {
            let clients = disturb(&client, &knowledge, u64::MAX, &mut random);
            let mut backup = spawn(command);
            let ended = machine.fail(&mut [&mut backup.0, &mut server.0], WITHIN, &mut random).await;
            all(clients).await;
            ended
        } else {
            drop(server);
            let mut backup = spawn(command);
            machine.fail(&mut [&mut backup.0], WITHIN, &mut random).await
        };
        let known = between(&before, &knowledge.lock());
        assert_restores_or_refuses(&cut, ended, &known, &format!("{context}, a backup that was cut off")).await;

        let known = Shared::default();
        *known.lock() = knowledge.lock().clone();
        assert_went_well(&backup(&machine.data(), &without), &context);
        assert_restores(&without, &known, &format!("{context}, a backup without a server")).await;
        for made in [beside, without, cut] {
            let _not_there = fs::remove_dir_all(made);
        }
    }
    let context = format!("seed {seed}, at the end");
    let (_server, client) = start(&machine.data(), &context).await;
    check(&client, &knowledge, &context).await;
}

/// A restore fails until one has gone well; the machine fails after that, too, and what was restored stays.
async fn what_was_restored_stays(mut machine: Machine, failures: u64, seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let knowledge = Shared::default();
    let made_of = tempfile::tempdir().expect("a temporary directory");
    let (server, client) = start(made_of.path(), "at first").await;
    all(disturb(&client, &knowledge, CHANGES, &mut random)).await;
    check(&client, &knowledge, "at first").await;
    drop(server);
    let kept = made_of.path().join("backup");
    assert_went_well(&backup(made_of.path(), &kept), "at first");
    for failure in 0..failures {
        let context = format!("seed {seed}, after failure {failure}");
        let data = machine.data();
        let restore = || {
            let mut command = command(&data, &["restore"]);
            command.arg(&kept);
            spawn(command)
        };
        let mut restoring = restore();
        let mut ended = machine.fail(&mut [&mut restoring.0], WITHIN, &mut random).await;
        let marker = data.join("restore-incomplete");
        // A restore that fails between its last step and its end has gone well.
        let has_finished = ended.is_none() && data.join("hearth.sqlite3").exists() && !marker.exists();
        if ended.is_none() && !has_finished {
            if marker.exists() {
                let Err(said) = try_start(&data).await else { panic!("{context}: half a restore is served") };
                assert!(said.contains("hearth restore"), "{context}: {said}");
            }
            let never = Within { time: Duration::from_secs(600), changes: u64::MAX };
            restoring = restore();
            ended = machine.fail(&mut [&mut restoring.0], never, &mut random).await;
        }
        let said = std::io::read_to_string(restoring.0.stderr.take().expect("a pipe")).expect("UTF-8");
        assert!(has_finished || ended.is_some_and(|ended| ended.success()), "{context}: {ended:?} {said}");
        let (server, client) = start(&machine.data(), &context).await;
        check(&client, &knowledge, &context).await;
        drop(server);
        fs::remove_dir_all(machine.data()).expect("it is there");
        machine.sync();
    }
}

super::on_each_machine!(backups_are_complete_or_refused);

mod restored {
    use super::{super as durability, what_was_restored_stays};
    durability::on_each_machine!(what_was_restored_stays);
}
