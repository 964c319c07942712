//! Documents whose readers run in a child process, through the real binary: small ones that work, hostile ones that
//! fail alone, and children that misbehave in every way a parent must survive.

use std::{fmt::Write as _, io::Write as _, path::PathBuf, time::Duration};

use hearth_text::extract::{
    BlockKind, ExtractError, Extracted, Format, Limit, Limits, extract,
    sandbox::{CHILD_COMMAND, Sandbox},
};
use proptest::prelude::*;
use zip::{ZipWriter, write::SimpleFileOptions};

fn real() -> Sandbox {
    Sandbox::of_program(env!("CARGO_BIN_EXE_hearth"), [CHILD_COMMAND])
}

/// A child that is a line of shell.
#[cfg(unix)]
fn shell(line: &str) -> Sandbox {
    Sandbox::of_program("/bin/sh", ["-c", line])
}

fn read_with(sandbox: &Sandbox, name: &str, bytes: &[u8], limits: &Limits) -> Result<Extracted, ExtractError> {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file can be made");
    file.write_all(bytes).expect("it can be written");
    extract(file.path(), name, limits, sandbox)
}

fn read(name: &str, bytes: &[u8]) -> Result<Extracted, ExtractError> {
    read_with(&real(), name, bytes, &Limits::default())
}

/// A PDF of these objects, the first of them the catalog; `trailer` is what it says beside the root.
fn pdf_of(objects: &[String], trailer: &str) -> Vec<u8> {
    let mut text = String::from("%PDF-1.4\n");
    let mut offsets = Vec::new();
    for (index, object) in objects.iter().enumerate() {
        offsets.push(text.len());
        let _ = writeln!(text, "{} 0 obj\n{object}\nendobj", index + 1);
    }
    let table = text.len();
    let _ = writeln!(text, "xref\n0 {}\n0000000000 65535 f ", objects.len() + 1);
    for offset in offsets {
        let _ = writeln!(text, "{offset:010} 00000 n ");
    }
    let _ =
        write!(text, "trailer\n<< /Size {} /Root 1 0 R {trailer} >>\nstartxref\n{table}\n%%EOF\n", objects.len() + 1);
    text.into_bytes()
}

/// A PDF with a line of text on each page.
fn pdf(pages: &[&str]) -> Vec<u8> {
    let kids: Vec<String> = (0..pages.len()).map(|page| format!("{} 0 R", 4 + 2 * page)).collect();
    let mut objects = vec![
        "<< /Type /Catalog /Pages 2 0 R >>".to_owned(),
        format!("<< /Type /Pages /Kids [{}] /Count {} >>", kids.join(" "), pages.len()),
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>".to_owned(),
    ];
    for (index, text) in pages.iter().enumerate() {
        let show = if text.is_empty() { String::new() } else { format!("BT /F1 24 Tf 72 720 Td ({text}) Tj ET") };
        objects.push(format!(
            "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {} 0 R \
             /Resources << /Font << /F1 3 0 R >> >> >>",
            5 + 2 * index
        ));
        objects.push(format!("<< /Length {} >>\nstream\n{show}\nendstream", show.len()));
    }
    pdf_of(&objects, "")
}

fn docx(text: &str) -> Vec<u8> {
    let mut archive = ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let body = format!("<w:document><w:body><w:p><w:r><w:t>{text}</w:t></w:r></w:p></w:body></w:document>");
    for (name, content) in [("[Content_Types].xml", "<Types/>"), ("word/document.xml", &body)] {
        archive.start_file(name, SimpleFileOptions::default()).expect("a part begins");
        archive.write_all(content.as_bytes()).expect("a part is written");
    }
    archive.finish().expect("the archive ends").into_inner()
}

#[cfg(feature = "pdf")]
#[test]
fn a_pdf_gives_its_text_page_by_page() {
    let extracted = read("manual.pdf", &pdf(&["Turn the pump on", "", "Then wait"])).unwrap();
    let shown: Vec<_> =
        extracted.blocks.iter().map(|block| (block.kind.clone(), block.text.as_str(), block.place.page)).collect();
    assert_eq!(extracted.format, Format::Pdf);
    let paragraph = BlockKind::Paragraph;
    assert_eq!(shown, [(paragraph.clone(), "Turn the pump on", Some(1)), (paragraph, "Then wait", Some(3))]);
}

#[test]
fn a_word_document_is_read_under_any_name() {
    for name in ["a.docx", "a.pdf", "a", "../../a.txt"] {
        let extracted = read(name, &docx("Hello")).unwrap();
        assert_eq!((extracted.format, extracted.blocks[0].text.as_str()), (Format::Docx, "Hello"), "{name}");
    }
}

#[test]
fn a_file_of_no_bytes_is_empty_whatever_it_is_called() {
    assert_eq!(read("a.pdf", b"").unwrap_err(), ExtractError::Empty);
}

#[cfg(feature = "pdf")]
#[test]
fn a_scan_says_that_it_has_no_text() {
    let refused = read("scan.pdf", &pdf(&["", ""])).unwrap_err();
    assert_eq!(refused, ExtractError::NoText { format: Format::Pdf });
    assert!(refused.to_string().contains("OCR"), "{refused}");
}

#[cfg(feature = "pdf")]
#[test]
fn a_pdf_that_was_cut_off_says_so() {
    let refused = read("half.pdf", &pdf(&["Hello"])[..60]).unwrap_err();
    assert!(matches!(&refused, ExtractError::Damaged { format: Format::Pdf, .. }), "{refused:?}");
    assert!(refused.to_string().contains("cut off"), "{refused}");
}

#[cfg(feature = "pdf")]
#[test]
fn what_of_a_pdf_cannot_be_read_is_named() {
    let whole = String::from_utf8(pdf(&["One", "Two", "Three"])).unwrap();
    // The second page's content, and a page that is not there.
    let length = whole[..whole.find("(Two)").unwrap()].rfind("/Length").unwrap();
    let damaged =
        format!("{}/Filter /Nonsense {}", &whole[..length], &whole[length..]).replacen("/Count 3", "/Count 5", 1);
    let extracted = read("manual.pdf", damaged.as_bytes()).unwrap();
    let texts: Vec<_> = extracted.blocks.iter().map(|block| block.text.as_str()).collect();
    assert_eq!(texts, ["One", "Three"]);
    assert_eq!(extracted.skipped.len(), 2, "{:?}", extracted.skipped);
    assert!(extracted.skipped[0].starts_with("2 of 5 pages"), "{:?}", extracted.skipped);
    assert!(extracted.skipped[1].starts_with("page 2: "), "{:?}", extracted.skipped);
}

#[cfg(feature = "pdf")]
#[test]
fn a_pdf_with_a_password_says_so() {
    let mut objects =
        vec!["<< /Type /Catalog /Pages 2 0 R >>".to_owned(), "<< /Type /Pages /Kids [] /Count 0 >>".to_owned()];
    let key = "41".repeat(32);
    objects.push(format!("<< /Filter /Standard /V 2 /R 3 /Length 128 /P -4 /O <{key}> /U <{key}> >>"));
    let locked = pdf_of(&objects, &format!("/Encrypt 3 0 R /ID [<{0}> <{0}>]", "42".repeat(16)));
    assert_eq!(read("locked.pdf", &locked).unwrap_err(), ExtractError::Encrypted { format: Format::Pdf });
}

#[cfg(feature = "pdf")]
#[test]
fn a_pdf_that_nests_without_end_fails_alone() {
    let deep = format!("{}{}", "[".repeat(200_000), "]".repeat(200_000));
    let objects = [
        format!("<< /Type /Catalog /Pages 2 0 R /Deep {deep} >>"),
        "<< /Type /Pages /Kids [3 0 R] /Count 1 >>".to_owned(),
        format!("<< /Type /Page /Parent 2 0 R /MediaBox [0 0 9 9] /Contents {deep} >>"),
    ];
    let refused = read("bomb.pdf", &pdf_of(&objects, "")).unwrap_err();
    assert!(
        matches!(refused, ExtractError::Crashed { .. } | ExtractError::Damaged { .. } | ExtractError::NoText { .. }),
        "{refused}"
    );
    // The next document does not notice.
    assert!(read("manual.pdf", &pdf(&["Fine"])).is_ok());
}

#[cfg(target_os = "linux")]
#[test]
fn a_document_that_outgrows_the_memory_fails_alone() {
    let limits = Limits { memory_bytes: 32 * 1024 * 1024, archive_ratio: 10_000, ..Limits::default() };
    let refused = read_with(&real(), "big.docx", &docx(&"word ".repeat(12_000_000)), &limits).unwrap_err();
    assert!(matches!(refused, ExtractError::OverLimit { limit: Limit::Memory, .. }), "{refused}");
}

#[cfg(unix)]
#[test]
fn a_child_that_never_answers_is_ended() {
    let limits = Limits { wall_time: Duration::from_millis(300), ..Limits::default() };
    for line in ["while :; do :; done", "exec 1>&- 2>&-; while :; do :; done"] {
        let refused = read_with(&shell(line), "a.docx", &docx("x"), &limits).unwrap_err();
        assert!(matches!(refused, ExtractError::OverLimit { limit: Limit::WallSeconds, .. }), "{refused}");
    }
}

#[cfg(unix)]
#[test]
fn a_child_that_says_too_much_is_ended() {
    let limits = Limits { text_bytes: 1_000, blocks: 10, ..Limits::default() };
    let refused = read_with(&shell("exec yes"), "a.docx", &docx("x"), &limits).unwrap_err();
    assert!(matches!(refused, ExtractError::OverLimit { limit: Limit::AnswerBytes, .. }), "{refused}");
}

#[cfg(unix)]
#[test]
fn how_a_child_ended_is_said() {
    let refusal = |line: &str| {
        let refused = read_with(&shell(line), "a.docx", &docx("x"), &Limits::default()).unwrap_err();
        serde_json::to_value(&refused).expect("an error is JSON")
    };
    assert_eq!(refusal("kill -XCPU $$")["limit"], "cpu_seconds");
    assert_eq!(refusal("kill -SEGV $$")["error"], "crashed");
    assert_eq!(refusal("echo 'memory allocation of 8 bytes failed' >&2; kill -ABRT $$")["limit"], "memory");
    assert!(refusal("echo 'it has overflowed its stack' >&2; kill -ABRT $$")["how"].to_string().contains("stack"));
    for line in ["true", "echo nonsense", "echo '{}'", "exit 3", "exec cat"] {
        assert_eq!(refusal(line)["error"], "crashed", "{line}");
    }
}

#[test]
fn a_reader_that_is_not_there_is_the_machines_fault() {
    let missing = Sandbox::of_program(PathBuf::from("/no/such/program"), [CHILD_COMMAND]);
    let refused = read_with(&missing, "a.docx", &docx("x"), &Limits::default()).unwrap_err();
    assert!(matches!(refused, ExtractError::NoReader { .. }), "{refused}");
}

#[test]
fn nobody_is_offered_the_childs_command() {
    let help = std::process::Command::new(env!("CARGO_BIN_EXE_hearth")).arg("--help").output().expect("it runs");
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    assert!(help.contains("serve") && !help.contains(CHILD_COMMAND), "{help}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// Whatever the bytes are, the answer is a document or an error, from this process.
    #[test]
    fn no_bytes_reach_the_parent(
        noise in proptest::collection::vec(any::<u8>(), 0..400),
        places in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..12),
    ) {
        let limits = Limits { wall_time: Duration::from_secs(20), cpu_time: Duration::from_secs(10), ..Limits::default() };
        let headed = [b"%PDF-1.7\n".as_slice(), &noise].concat();
        let _ = read_with(&real(), "a.pdf", &headed, &limits);
        for mut bytes in [pdf(&["Hello", "there"]), docx("Hello")] {
            for (place, byte) in &places {
                let at = place.index(bytes.len());
                bytes[at] = *byte;
            }
            let _ = read_with(&real(), "a", &bytes, &limits);
        }
    }
}
