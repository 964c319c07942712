//! Two servers that share a PostgreSQL database, behind a balancer, wherever a test starts one server: `HEARTH_TEST_POSTGRES` is the
//! address of a PostgreSQL for tests, and without it servers keep their data in their own directories.

use std::{
    env,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use hearth::store::SharedStore;
use tokio::net::{TcpListener, TcpStream};

/// The address of the server for tests.
pub fn postgres() -> Option<String> {
    env::var_os("HEARTH_TEST_POSTGRES")?.into_string().ok().filter(|url| !url.is_empty())
}

/// A database for a data directory, made if it is missing. `None` without a server for tests.
pub fn database(directory: &Path) -> Option<SharedStore> {
    let server = postgres()?;
    let name = format!("t{}", &blake3::hash(directory.as_os_str().as_encoded_bytes()).to_hex()[..24]);
    // The caller may be on a runtime, where no other can be entered.
    let made = std::thread::scope(|scope| scope.spawn(|| make(&server, &name)).join());
    made.expect("the database is made");
    Some(SharedStore { url: format!("{server}/{name}"), ca_file: None, connections: 8, name: "test".to_owned() })
}

/// The variables by which a command uses the database of a data directory, if it is not in the directory.
pub fn environment(directory: &Path) -> Option<(&'static str, String)> {
    Some(("HEARTH_STORE_URL", database(directory)?.url))
}

fn make(server: &str, name: &str) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let url = format!("{server}/postgres");
        let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await.expect("the server runs");
        let connection = tokio::spawn(connection);
        // It may be there already.
        let _made = client.batch_execute(&format!("CREATE DATABASE {name}")).await;
        connection.abort();
    });
}

/// Passes each connection on to the next of these servers; returns its address. It ends with the runtime.
pub fn balance(servers: Vec<SocketAddr>) -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.set_nonblocking(true).expect("a socket");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        let listener = TcpListener::from_std(listener).expect("a socket");
        let next = Arc::new(AtomicUsize::new(0));
        while let Ok((mut client, _)) = listener.accept().await {
            let server = servers[next.fetch_add(1, Ordering::Relaxed) % servers.len()];
            tokio::spawn(async move {
                if let Ok(mut server) = TcpStream::connect(server).await {
                    drop(tokio::io::copy_bidirectional(&mut client, &mut server).await);
                }
            });
        }
    });
    address
}
