//! `hearth recover` fails at a random instant, and is run again until it has gone well.

use std::time::Duration;

use rand::{Rng, SeedableRng, rngs::StdRng};

use super::{
    checks::check,
    clients::{Shared, all, disturb, start, try_start},
    machine::{Machine, Within, command, spawn},
};

const WITHIN: Within = Within { time: Duration::from_millis(150), changes: 60 };
/// Failures of one recovery before it is left to go well.
const FAILURES_OF_ONE: u64 = 4;
/// Changes of each client before the server stops.
const CHANGES: u64 = 8;

async fn a_recovery_fails_and_is_run_again(mut machine: Machine, failures: u64, seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let knowledge = Shared::default();
    let mut failed = 0;
    while failed < failures {
        let context = format!("seed {seed}, after failure {failed}");
        let (server, client) = start(&machine.data(), &context).await;
        all(disturb(&client, &knowledge, CHANGES, &mut random)).await;
        // What replaces a document has been read from here on, so that it has taken its place.
        check(&client, &knowledge, &context).await;
        drop(server);
        let mut left = FAILURES_OF_ONE;
        loop {
            let mut recovery = spawn(command(&machine.data(), &["recover"]));
            if left == 0 {
                let (ended, said) = recovery.ended();
                assert!(ended.success(), "{context}: {said}");
                break;
            }
            left -= 1;
            failed += 1;
            let ended = machine.fail(&mut [&mut recovery.0], WITHIN, &mut random).await;
            if let Some(ended) = ended {
                let (_, said) = recovery.ended();
                assert!(ended.success(), "{context}: {said}");
                break;
            }
            let context = format!("seed {seed}, after a recovery that is failure {failed}");
            // A server that is started without having recovered first says so, or has everything.
            if random.random_bool(0.5) {
                match try_start(&machine.data()).await {
                    Ok((_server, client)) => check(&client, &knowledge, &context).await,
                    Err(said) => assert!(said.contains("hearth recover"), "{context}: {said}"),
                }
            }
        }
        let context = format!("seed {seed}, recovered, after failure {failed}");
        let (_server, client) = start(&machine.data(), &context).await;
        check(&client, &knowledge, &context).await;
    }
}

super::on_each_machine!(a_recovery_fails_and_is_run_again);
