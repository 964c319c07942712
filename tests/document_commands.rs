//! `hearth ingest`, `search`, `ask`, `collections` and `reindex` as a person uses them, without a server and beside one.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Output, Stdio},
};

use tempfile::TempDir;
use zip::{ZipWriter, write::SimpleFileOptions};

use crate::support::running_server::{Served, hearth, model};

struct Desk {
    home: TempDir,
}

impl Desk {
    fn new() -> Self {
        let desk = Self { home: tempfile::tempdir().expect("a temporary directory") };
        desk.write("trees/oak.md", "# Oak\n\nThe oak grows to a height of forty metres.\n");
        desk.write("trees/birch.txt", "The birch has white bark and is felled for firewood.\n");
        desk.write("trees/.hidden/secret.md", "Nobody reads this.\n");
        desk
    }

    fn papers(&self) -> PathBuf {
        self.home.path().join("papers")
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.papers().join(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a writable directory");
        fs::write(path, text).expect("a writable directory");
    }

    fn command(&self, arguments: &[&str]) -> std::process::Command {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut command = hearth();
        command
            .args(arguments)
            .arg("-m")
            .arg(model())
            .arg("--embedding-model")
            .arg(root.join("models/hearth-embed.gguf"))
            .args(["--offline", "--ctx-size", "1024"])
            .env("HEARTH_DATA_DIR", self.home.path().join("data"));
        command
    }

    /// A server, and where it listens.
    fn serve(&self, arguments: &[&str]) -> (Served, String) {
        let mut serve = self.command(&["serve", "--port", "0"]);
        let mut server = serve.args(arguments).stderr(Stdio::null()).spawn().expect("it starts");
        let mut line = String::new();
        BufReader::new(server.stdout.take().expect("a pipe")).read_line(&mut line).expect("a line");
        (Served(server), line.split_whitespace().last().expect("an address").to_owned())
    }

    #[track_caller]
    fn run(&self, arguments: &[&str]) -> (Output, String, String) {
        let output = self.command(arguments).output().expect("it runs");
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("UTF-8");
        let (out, error) = (text(&output.stdout), text(&output.stderr));
        (output, out, error)
    }

    #[track_caller]
    fn succeed(&self, arguments: &[&str]) -> (String, String) {
        let (output, out, error) = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {error}");
        (out, error)
    }
}

#[test]
fn documents_go_in_and_answers_come_out_without_a_server() {
    let desk = Desk::new();
    let papers = desk.papers();
    let papers = papers.to_str().expect("UTF-8");
    let (_, said) = desk.succeed(&["ingest", papers]);
    assert!(said.contains("2 of 2 files can be searched"), "{said}");
    let (found, _) = desk.succeed(&["search", "How high is an oak?", "-k", "1"]);
    assert!(found.starts_with("[1] Oak, papers/trees/oak.md:") && found.contains("forty metres"), "{found}");
    let (answer, _) = desk.succeed(&["ask", "What is a birch felled for?", "-n", "4"]);
    assert!(answer.contains("\n\n[1] papers/trees/birch.txt"), "{answer}");
    // What has changed takes its place, what has not stays, and a file that cannot be read is named.
    desk.write("trees/oak.md", "# Oak\n\nThe oak grows to a height of fifty metres.\n");
    desk.write("trees/scan.pdf", "%PDF-1.4 and nothing else");
    for _ in 0..2 {
        let (output, _, said) = desk.run(&["ingest", papers]);
        assert_eq!(output.status.code(), Some(1), "a script sees that something is missing");
        assert!(said.contains("papers/trees/scan.pdf: ") && said.contains("2 of 3 files"), "{said}");
        assert!(said.contains("hearth: 1 of 3 files could not be read"), "{said}");
    }
    let (listed, _) = desk.succeed(&["documents", "list", "--json"]);
    let listed: Vec<serde_json::Value> = serde_json::from_str(&listed).expect("JSON");
    assert_eq!(listed.len(), 3, "what failed is there once, however often it is tried");
    let (found, _) = desk.succeed(&["search", "How high is an oak?", "--json"]);
    assert!(found.contains("fifty") && !found.contains("forty"), "{found}");
    let (_, said) = desk.succeed(&["reindex"]);
    assert!(said.contains("passages embedded anew"), "{said}");
    let (listed, _) = desk.succeed(&["collections"]);
    assert!(listed.contains("default"), "{listed}");
    desk.succeed(&["collections", "--delete", "default"]);
    let (found, said) = desk.succeed(&["search", "How high is an oak?"]);
    assert!(found.is_empty() && said.contains("No passage is near enough"), "{found}{said}");
}

#[test]
fn documents_are_listed_and_deleted_and_follow_a_folder() {
    let desk = Desk::new();
    let papers = desk.papers();
    let papers = papers.to_str().expect("UTF-8");
    let note = desk.home.path().join("note.md");
    fs::write(&note, "# Note\n\nThe harbour is closed in winter.\n").expect("a writable directory");
    desk.succeed(&["ingest", papers, note.to_str().expect("UTF-8")]);
    let names = || {
        let (listed, _) = desk.succeed(&["documents", "list", "--json"]);
        let listed: Vec<serde_json::Value> = serde_json::from_str(&listed).expect("JSON");
        listed.iter().map(|document| document["filename"].as_str().expect("a name").to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(names(), ["note.md", "papers/trees/birch.txt", "papers/trees/oak.md"]);
    let (table, _) = desk.succeed(&["documents", "list"]);
    assert!(table.contains("papers/trees/oak.md") && table.contains("ready"), "{table}");

    // A file that is gone takes its document with it where that is asked for; what came from elsewhere stays.
    fs::remove_file(desk.papers().join("trees/birch.txt")).expect("it is there");
    desk.succeed(&["ingest", papers]);
    assert_eq!(names().len(), 3);
    let (_, said) = desk.succeed(&["ingest", "--sync", papers]);
    assert!(said.contains("birch.txt: the file is gone"), "{said}");
    assert_eq!(names(), ["note.md", "papers/trees/oak.md"]);

    // Two files with the same bytes are one document, which does not go with one of them; nor does a file that is left out.
    desk.write("more/oak.md", "# Oak\n\nThe oak grows to a height of forty metres.\n");
    desk.succeed(&["ingest", papers]);
    assert_eq!(names().len(), 2);
    fs::remove_file(desk.papers().join("trees/oak.md")).expect("it is there");
    desk.succeed(&["ingest", "--sync", papers]);
    assert_eq!(names(), ["note.md", "papers/trees/oak.md"]);
    desk.write("late.md", "# Late\n\nThe late train waits.\n");
    desk.succeed(&["ingest", papers]);
    desk.write(".gitignore", "late.md\n");
    desk.succeed(&["ingest", "--sync", papers]);
    assert_eq!(names(), ["note.md", "papers/late.md", "papers/trees/oak.md"]);
    desk.succeed(&["documents", "delete", "papers/late.md", "papers/late.md"]);

    let (output, _, said) = desk.run(&["documents", "delete", "note.md", "none.md"]);
    assert!(!output.status.success() && said.contains("nothing was deleted"), "{said}");
    assert_eq!(names().len(), 2);
    desk.succeed(&["documents", "delete", "note.md"]);
    assert_eq!(names(), ["papers/trees/oak.md"]);
}

#[test]
fn what_a_server_serves_and_how_clients_reach_it_is_said_while_it_runs() {
    let desk = Desk::new();
    for arguments in [&["ps"][..], &["connect", "curl"]] {
        let (output, _, said) = desk.run(arguments);
        assert!(!output.status.success() && said.contains("no server runs"), "{said}");
    }
    let (served, url) = desk.serve(&[]);
    // Waits until the models are loaded.
    desk.succeed(&["search", "x"]);
    let (models, _) = desk.succeed(&["ps"]);
    assert!(models.contains("tiny-chat") && models.contains("hearth-embed"), "{models}");
    let (settings, _) = desk.succeed(&["connect", "curl"]);
    assert!(settings.contains(&url) && settings.contains("tiny-chat"), "{settings}");
    drop(served);
    // A server that was killed has left its address.
    let (output, _, said) = desk.run(&["ps"]);
    assert!(!output.status.success() && said.contains("no server runs"), "{said}");
    let (output, _, said) = desk.run(&["connect", "codex"]);
    assert!(!output.status.success() && said.contains("does not serve yet"), "{said}");
}

#[test]
fn beside_a_server_the_commands_ask_it() {
    let desk = Desk::new();
    let (_server, url) = desk.serve(&["--api-key", "a-secret"]);
    let papers = desk.papers();
    let papers = papers.to_str().expect("UTF-8");
    let (output, _, refused) = desk.run(&["collections"]);
    assert!(!output.status.success() && refused.contains("key"), "{refused}");
    let (_, said) = desk.succeed(&["ingest", papers, "--api-key", "a-secret", "--collection", "trees"]);
    assert!(said.contains(&url) && said.contains("2 of 2 files can be searched in \"trees\""), "{said}");
    let (answer, _) =
        desk.succeed(&["ask", "How high is an oak?", "-n", "4", "--collection", "trees", "--api-key", "a-secret"]);
    assert!(answer.contains("[1] Oak, papers/trees/oak.md"), "{answer}");
}

#[test]
fn the_files_of_an_archive_are_documents_and_go_with_it() {
    let desk = Desk::new();
    let zip = |files: &[(&str, &str)]| {
        let archive = fs::File::create(desk.papers().join("more.zip")).expect("a writable directory");
        let mut archive = ZipWriter::new(archive);
        for (name, text) in files {
            archive.start_file(*name, SimpleFileOptions::default()).expect("a file begins");
            archive.write_all(text.as_bytes()).expect("it is written");
        }
        archive.finish().expect("the archive ends");
    };
    zip(&[
        ("pine.md", "# Pine\n\nThe pine bears cones of nine centimetres.\n"),
        ("low/fern.md", "# Fern\n\nThe fern likes shade.\n"),
    ]);
    desk.write("broken.zip", "no archive");
    let papers = desk.papers();
    let papers = papers.to_str().expect("UTF-8");
    let (_, _, said) = desk.run(&["ingest", papers]);
    assert!(said.contains("papers/broken.zip: ") && said.contains("4 of 5 files"), "{said}");
    fs::remove_file(desk.papers().join("broken.zip")).expect("it is there");
    let (found, _) = desk.succeed(&["search", "How long are the cones of a pine?", "-k", "1"]);
    assert!(found.starts_with("[1] Pine, papers/more.zip/pine.md:"), "{found}");
    zip(&[("pine.md", "# Pine\n\nThe pine bears cones of ten centimetres.\n")]);
    let (_, said) = desk.succeed(&["ingest", "--sync", papers]);
    assert!(said.contains("more.zip/low/fern.md: the file is gone"), "{said}");
    let (listed, _) = desk.succeed(&["documents", "list"]);
    assert!(listed.contains("more.zip/pine.md") && !listed.contains("fern"), "{listed}");
    fs::remove_file(desk.papers().join("more.zip")).expect("it is there");
    let (_, said) = desk.succeed(&["ingest", "--sync", papers]);
    assert!(said.contains("more.zip/pine.md: the file is gone"), "{said}");
}

#[test]
fn a_conversation_is_had_with_the_server_that_runs_and_with_its_documents() {
    let desk = Desk::new();
    desk.succeed(&["ingest", desk.papers().to_str().expect("UTF-8")]);
    // Without a server: from documents through one of its own.
    let (answer, _) = desk.succeed(&["chat", "--collection", "default", "How high does an oak grow?"]);
    assert!(answer.contains("forty metres") && answer.contains("[1] Oak, papers/trees/oak.md"), "{answer}");
    let (_server, url) = desk.serve(&[]);
    // Waits until the models are loaded.
    desk.succeed(&["search", "x"]);
    let (again, _) = desk.succeed(&["chat", "--collection", "default", "How high does an oak grow?"]);
    assert_eq!(again, answer);
    let (answer, said) = desk.succeed(&["chat", "--timings", "-n", "8", "--seed", "1", "Hello."]);
    assert!(!answer.trim().is_empty() && said.contains("tokens/s; answer "), "{answer}{said}");
    let elsewhere = |arguments: &[&str]| {
        let home = tempfile::tempdir().expect("a temporary directory");
        let output = hearth().args(arguments).env("HEARTH_DATA_DIR", home.path()).output().expect("it runs");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (text(&output.stdout), text(&output.stderr))
    };
    let (same, said) = elsewhere(&["chat", "--url", &url, "-n", "8", "--seed", "1", "Hello."]);
    assert_eq!(same, answer, "{said}");
    let (_, said) = elsewhere(&["chat", "--url", &url, "-m", "another", "Hello."]);
    assert!(said.contains("the server has no such chat model"), "{said}");
    let (usage, _) = desk.succeed(&["usage", "--json"]);
    let usage: serde_json::Value = serde_json::from_str(&usage).expect("JSON");
    assert!(usage["total"]["requests"].as_u64() >= Some(3), "the server was asked: {usage}");
}

#[test]
fn what_is_not_there_is_said() {
    let desk = Desk::new();
    for (arguments, reason) in [
        (&["ingest", "/nowhere/at/all"][..], "/nowhere/at/all does not exist"),
        (&["search", "x", "--collection", "none"], "There is no collection `none`"),
        (&["search", "x", "--mode", "magic"], "`search_mode` must be"),
        (&["reindex", "none"], "There is no collection `none`"),
        (&["collections", "--delete", "none"], "There is no collection `none`"),
    ] {
        let (output, _, said) = desk.run(arguments);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(reason), "{arguments:?}: {said}");
    }
}

#[test]
fn a_damaged_database_says_what_to_do_and_doing_it_brings_the_documents_back() {
    let desk = Desk::new();
    let papers = desk.papers();
    desk.succeed(&["ingest", papers.to_str().expect("UTF-8")]);
    let database = desk.home.path().join("data/hearth.sqlite3");
    for damage in [
        // A page in the middle, and then all of it.
        (|bytes: &mut Vec<u8>| bytes[4096 * 2..4096 * 6].fill(0xa5)) as fn(&mut Vec<u8>),
        |bytes| bytes.fill(0xa5),
    ] {
        // The last connection that is closed moves all pages from the log to the file.
        let connection = rusqlite::Connection::open(&database).expect("a database");
        connection.query_row("SELECT count(*) FROM files", [], |row| row.get::<_, i64>(0)).expect("a table");
        connection.close().expect("it closes");
        let mut bytes = fs::read(&database).expect("a database");
        damage(&mut bytes);
        fs::write(&database, bytes).expect("a writable directory");
        let (output, _, said) = desk.run(&["search", "How high is an oak?"]);
        assert!(!output.status.success() && said.contains("hearth recover"), "{said}");
        let (_, said) = desk.succeed(&["recover"]);
        assert!(said.contains(" 2 documents and 2 files were saved"), "{said}");
        let recovered = ["search", "How high is an oak?", "-k", "1", "--collection"];
        let found = ["default", "recovered"].map(|collection| desk.run(&[&recovered[..], &[collection]].concat()).1);
        assert!(found.iter().any(|found| found.contains("forty metres")), "{found:?}");
    }
}
