//! The server fails while documents come, change and go. Graphs and their snapshots are rebuilt every few documents.

use std::time::Duration;

use rand::{SeedableRng, rngs::StdRng};

use super::{
    checks::check,
    clients::{Shared, all, disturb, start},
    machine::{Machine, Within},
};

const WITHIN: Within = Within { time: Duration::from_millis(150), changes: 400 };

fn has_snapshots(machine: &Machine) -> bool {
    // The folder itself may be lost with the power.
    std::fs::read_dir(machine.data().join("index")).is_ok_and(|mut snapshots| snapshots.next().is_some())
}

async fn documents_come_change_and_go(mut machine: Machine, failures: u64, seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let knowledge = Shared::default();
    let mut snapshots = false;
    for failure in 0..failures {
        let context = format!("seed {seed}, after failure {failure}");
        let (mut server, client) = start(&machine.data(), &context).await;
        check(&client, &knowledge, &context).await;
        snapshots |= has_snapshots(&machine);
        let clients = disturb(&client, &knowledge, u64::MAX, &mut random);
        let ended = machine.fail(&mut [&mut server.0], WITHIN, &mut random).await;
        assert!(ended.is_none(), "{context}: the server ended by itself: {ended:?}");
        all(clients).await;
    }
    let context = format!("seed {seed}, at the end");
    let (_server, client) = start(&machine.data(), &context).await;
    check(&client, &knowledge, &context).await;
    assert!(knowledge.lock().next > failures, "something was under way");
    assert!(snapshots || has_snapshots(&machine), "graphs were built");
}

super::on_each_machine!(documents_come_change_and_go);
