//! What a server says that cannot start: one sentence that names what is wrong and what to do, and status 1.

use std::{
    io::{BufRead, BufReader},
    net::TcpListener,
    path::{Path, PathBuf},
};

use crate::support::running_server::{Served, hearth, model, readiness_becomes};

/// Runs `hearth serve` with these arguments, which must not come to serve, and returns what it said.
#[track_caller]
fn refusal(arguments: &[&str]) -> String {
    let ran = hearth()
        .args(["serve", "--offline", "--models-dir", "no-models", "--log", "error"])
        .args(arguments)
        .output()
        .expect("the binary runs");
    let said = String::from_utf8(ran.stderr).expect("UTF-8");
    assert_eq!(ran.status.code(), Some(1), "{arguments:?}: {said}");
    assert!(ran.stdout.is_empty(), "{arguments:?} announced a server: {}", String::from_utf8_lossy(&ran.stdout));
    assert!(said.starts_with("hearth: ") && said.trim_end().lines().count() == 1, "{arguments:?}: {said}");
    said
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary directory"))
    }

    fn write(&self, name: &str, contents: &str) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, contents).expect("a writable directory");
        path
    }
}

#[test]
fn a_port_in_use_names_the_port_and_the_flag() {
    let other = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = other.local_addr().expect("an address").port().to_string();
    let said = refusal(&["--port", &port, "-m", text(&model())]);
    assert!(said.contains(&format!("127.0.0.1:{port}")) && said.contains("--port"), "{said}");
}

#[test]
fn an_address_of_another_machine_names_the_flag() {
    // Of the block that documentation uses (RFC 5737), so nobody's.
    let said = refusal(&["--host", "192.0.2.1", "--port", "0", "-m", text(&model())]);
    assert!(said.contains("192.0.2.1") && said.contains("--host"), "{said}");
}

#[test]
fn a_server_that_anybody_could_use_says_how_to_close_or_open_it() {
    let said = refusal(&["--host", "0.0.0.0", "--port", "0", "-m", text(&model())]);
    for way in ["0.0.0.0", "hearth keys create", "--api-key", "--host 127.0.0.1", "--allow-unauthenticated"] {
        assert!(said.contains(way), "{way}: {said}");
    }
}

#[test]
fn mistakes_in_the_settings_file_name_the_file_the_line_and_the_key() {
    let files = Files::new();
    let cases = [
        ("port = 9000\nparalel = 3\n", "line 2", "paralel"),
        ("data-dir = \"x\"\n", "line 1", "did you mean `data_dir`"),
        ("prot = 9000\n", "line 1", "did you mean `port`"),
        ("port = \"many\"\n", "line 1", "port"),
        ("port = 70000\n", "line 1", "70000"),
        ("\n\nport = \n", "line 3", ""),
        ("parallel = 0\n", "--parallel 0", "1024"),
        ("ctx_size = -5\n", "line 1", "-5"),
    ];
    for (contents, place, word) in cases {
        let path = files.write("hearth.toml", contents);
        let said = refusal(&["--config", text(&path)]);
        assert!(said.contains(place) && said.contains(word), "{contents:?}: {said}");
    }
    let said = refusal(&["--config", "nowhere.toml"]);
    assert!(said.contains("--config nowhere.toml"), "{said}");
}

#[test]
fn a_data_directory_that_cannot_be_used_names_it_and_the_flag() {
    let files = Files::new();
    let file = files.write("a-file", "");
    let below = file.join("data");
    let said = refusal(&["--port", "0", "-m", text(&model()), "--data-dir", text(&below)]);
    assert!(said.contains(text(&below)) && said.contains("--data-dir"), "{said}");
}

#[cfg(unix)]
#[tokio::test]
async fn a_context_beyond_the_models_own_is_a_warning() {
    let mut command = hearth();
    command.args(["serve", "--offline", "--models-dir", "no-models", "--port", "0", "--log", "warn"]);
    command.args(["-c", "8192", "-m"]).arg(model());
    let mut server = Served(command.spawn().expect("the binary runs"));
    let mut line = String::new();
    BufReader::new(server.0.stdout.as_mut().expect("a pipe")).read_line(&mut line).expect("a line");
    readiness_becomes(line.split_whitespace().last().expect("an address"), 200).await;
    server.terminate();
    let (status, said) = server.ended();
    assert!(status.success(), "{said}");
    assert!(said.contains("WARN") && said.contains("--ctx-size") && said.contains("8192"), "{said}");
}

#[test]
fn a_model_that_is_not_there_says_what_to_do() {
    let said = refusal(&["--port", "0", "-m", "nowhere.gguf"]);
    assert!(said.contains("nowhere.gguf") && said.contains("hearth pull"), "{said}");
}

#[test]
fn tls_files_that_cannot_be_used_are_named_before_anything_is_announced() {
    let files = Files::new();
    let issued = || rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("a certificate");
    let (one, other) = (issued(), issued());
    let certificate = files.write("cert.pem", &one.cert.pem());
    let key = files.write("key.pem", &one.signing_key.serialize_pem());
    let other_key = files.write("other.pem", &other.signing_key.serialize_pem());
    let empty = files.write("empty.pem", "");
    let text_file = files.write("text.pem", "not PEM at all");
    let nowhere = files.0.path().join("nowhere.pem");
    let cases = [
        (&nowhere, &key, "--ssl-cert-file", "nowhere.pem"),
        (&certificate, &nowhere, "--ssl-key-file", "nowhere.pem"),
        (&empty, &key, "--ssl-cert-file", "empty.pem"),
        (&text_file, &key, "--ssl-cert-file", "text.pem"),
        (&certificate, &text_file, "--ssl-key-file", "text.pem"),
        (&certificate, &certificate, "--ssl-key-file", "cert.pem"),
        (&certificate, &other_key, "--ssl-key-file", "other.pem"),
    ];
    for (certificate, key, flag, name) in cases {
        let said = refusal(&[
            "--port",
            "0",
            "-m",
            text(&model()),
            "--ssl-cert-file",
            text(certificate),
            "--ssl-key-file",
            text(key),
        ]);
        assert!(said.contains(flag) && said.contains(name), "{name}: {said}");
    }
    let said = refusal(&["--ssl-key-file", text(&key), "-m", text(&model())]);
    assert!(said.contains("--ssl-cert-file"), "{said}");
}

#[test]
fn a_command_line_that_is_wrong_is_status_2_with_the_usage() {
    let ran = hearth().args(["serve", "--paralel", "3"]).output().expect("the binary runs");
    let said = String::from_utf8_lossy(&ran.stderr);
    assert_eq!(ran.status.code(), Some(2), "{said}");
    assert!(said.contains("--paralel") && said.contains("--parallel"), "{said}");
}
