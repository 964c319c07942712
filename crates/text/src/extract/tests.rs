//! Documents of each format: small valid ones, and malformed ones that must be refused with the right error. PDF is
//! read only in a child process, so its tests are in `tests/documents.rs`.

use std::io::Write;

use proptest::prelude::*;
use zip::{ZipWriter, write::SimpleFileOptions};

use super::*;

fn read_with(name: &str, bytes: &[u8], limits: &Limits) -> Result<Extracted, ExtractError> {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file can be made");
    file.write_all(bytes).expect("it can be written");
    extract_unprotected(read_whole(file.path(), limits)?, name, limits)
}

fn read(name: &str, bytes: &[u8]) -> Result<Extracted, ExtractError> {
    read_with(name, bytes, &Limits::default())
}

/// Kind and text of each block, abbreviated.
fn shown(extracted: &Extracted) -> Vec<String> {
    let kind = |block: &Block| match &block.kind {
        BlockKind::Heading { level } => format!("h{level}"),
        BlockKind::Paragraph => "p".to_owned(),
        BlockKind::ListItem => "li".to_owned(),
        BlockKind::TableRow => "tr".to_owned(),
        BlockKind::Code { language } => format!("code {}", language.as_deref().unwrap_or("-")),
    };
    extracted.blocks.iter().map(|block| format!("{}: {}", kind(block), block.text)).collect()
}

fn lines(extracted: &Extracted) -> Vec<(u32, u32)> {
    let range = |block: &Block| block.place.lines.map_or((0, 0), |lines| (lines.first, lines.last));
    extracted.blocks.iter().map(range).collect()
}

fn zipped(parts: &[(&str, &str)]) -> Vec<u8> {
    let mut archive = ZipWriter::new(io::Cursor::new(Vec::new()));
    for (name, content) in parts {
        archive.start_file(*name, SimpleFileOptions::default()).expect("a part begins");
        archive.write_all(content.as_bytes()).expect("a part is written");
    }
    archive.finish().expect("the archive ends").into_inner()
}

fn docx(body: &str) -> Vec<u8> {
    let styles = r#"<w:styles xmlns:w="w"><w:style w:styleId="berschrift1"><w:name w:val="heading 1"/></w:style>
        <w:style w:styleId="Own"><w:name w:val="Own"/><w:pPr><w:outlineLvl w:val="1"/></w:pPr></w:style></w:styles>"#;
    zipped(&[
        ("[Content_Types].xml", "<Types/>"),
        ("word/styles.xml", styles),
        ("word/document.xml", &format!(r#"<w:document xmlns:w="w"><w:body>{body}</w:body></w:document>"#)),
    ])
}

fn xlsx(sheet_data: &str) -> Vec<u8> {
    zipped(&[
        ("[Content_Types].xml", r#"<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types"/>"#),
        (
            "_rels/.rels",
            r#"<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">
                <Relationship Id="rId1" Target="xl/workbook.xml"
                Type="http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument"/></Relationships>"#,
        ),
        (
            "xl/workbook.xml",
            r#"<workbook xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"
                xmlns:r="http://schemas.openxmlformats.org/officeDocument/2006/relationships">
                <sheets><sheet name="Staff" sheetId="1" r:id="rId1"/></sheets></workbook>"#,
        ),
        (
            "xl/_rels/workbook.xml.rels",
            r#"<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">
                <Relationship Id="rId1" Target="worksheets/sheet1.xml"
                Type="http://schemas.openxmlformats.org/officeDocument/2006/relationships/worksheet"/></Relationships>"#,
        ),
        (
            "xl/worksheets/sheet1.xml",
            &format!(
                r#"<worksheet xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main">
                <sheetData>{sheet_data}</sheetData></worksheet>"#
            ),
        ),
    ])
}

#[test]
fn plain_text_is_parted_by_blank_lines() {
    let extracted = read("notes.txt", b"One line\r\nand more\r\n\r\n\r\nTwo\n").unwrap();
    assert_eq!(extracted.format, Format::PlainText);
    assert_eq!(shown(&extracted), ["p: One line\nand more", "p: Two"]);
    assert_eq!(lines(&extracted), [(1, 2), (5, 5)]);
}

#[test]
fn markdown_keeps_its_structure() {
    let text = "# Pump\n\nTurn it *on* with `--now`.\nThen wait.\n\n- first\n- second\n  - inner\n\n## Data\n\n| part | mass |\n|---|---|\n\
        | wheel | 3 kg |\n| bolt | 1 g |\n\n```rust\nfn main() {\n    run();\n}\n```\n";
    let extracted = read("pump.md", text.as_bytes()).unwrap();
    assert_eq!(extracted.title.as_deref(), Some("Pump"));
    assert_eq!(
        shown(&extracted),
        [
            "h1: Pump",
            "p: Turn it on with --now.\nThen wait.",
            "li: first",
            "li: second",
            "li: inner",
            "h2: Data",
            "tr: part: wheel | mass: 3 kg",
            "tr: part: bolt | mass: 1 g",
            "code rust: fn main() {\n    run();\n}",
        ]
    );
    assert_eq!(lines(&extracted)[..3], [(1, 1), (3, 4), (6, 6)]);
    assert_eq!(lines(&extracted)[6..], [(14, 14), (15, 15), (18, 20)]);
}

#[test]
fn html_keeps_headings_and_drops_what_is_no_text() {
    let page = "<!DOCTYPE html><html><head><title>Pump &amp; co</title><style>p{}</style></head><body>
        <nav><ul><li><a href=x>Home</a></li></ul></nav><script>if (a < b) { alert('<p>no</p>') }</script>
        <h1>The   pump</h1><p>Turn it <b>on</b>,<br>then wait.<div>Loose text</div>
        <ul><li>first<li>second</ul>
        <table><tr><th>part<th>mass</tr><tr><td>wheel</td><td>3 kg</td></tr></table>
        <pre><code class='language-sh'>if x\n  y\n</code></pre></body></html>";
    let extracted = read("pump.html", page.as_bytes()).unwrap();
    assert_eq!(extracted.format, Format::Html);
    assert_eq!(extracted.title.as_deref(), Some("Pump & co"));
    assert_eq!(
        shown(&extracted),
        [
            "h1: The pump",
            "p: Turn it on,\nthen wait.",
            "p: Loose text",
            "li: first",
            "li: second",
            "tr: part: wheel | mass: 3 kg",
            "code sh: if x\n  y",
        ]
    );
    assert_eq!(extracted.blocks[0].place.lines, Some(LineRange { first: 3, last: 3 }));
}

#[test]
fn a_table_for_the_layout_is_no_table() {
    let page = "<html><table><tr><td><h2>Inside</h2><p>Some text</td></tr></table><p>After</html>";
    let extracted = read("page", page.as_bytes()).unwrap();
    assert_eq!(shown(&extracted), ["h2: Inside", "p: Some text", "p: After"]);
}

#[test]
fn a_million_open_elements_cost_their_bytes() {
    let mut page = String::from("<html>");
    for _ in 0..100_000 {
        page.push_str("<div><table><tr><td>");
    }
    page.push_str("deep");
    assert_eq!(shown(&read("deep.html", page.as_bytes()).unwrap()).last().unwrap(), "tr: deep");
}

#[test]
fn rows_of_a_table_carry_the_names_of_their_columns() {
    let extracted = read("staff.csv", b"name;born;city\nAda;1815;\"Lon\ndon\"\nAlan;1912;\n").unwrap();
    assert_eq!(extracted.format, Format::Csv);
    assert_eq!(shown(&extracted), ["tr: name: Ada | born: 1815 | city: Lon don", "tr: name: Alan | born: 1912"]);
    assert_eq!(lines(&extracted), [(2, 3), (4, 4)]);
    let without_names = read("points.tsv", b"1\t2\n3\t4\n").unwrap();
    assert_eq!(
        (without_names.format, shown(&without_names)),
        (Format::Tsv, vec!["tr: 1 | 2".into(), "tr: 3 | 4".into()])
    );
}

#[test]
fn json_is_flattened_by_record() {
    let extracted = read("a.json", br#"[{"name":"Ada","tags":["x","y"],"none":null},{"name":"Alan"}]"#).unwrap();
    assert_eq!(extracted.format, Format::Json);
    assert_eq!(shown(&extracted), ["tr: name: Ada\ntags[0]: x\ntags[1]: y", "tr: name: Alan"]);
    let object = read("a.json", br#"{"title":"T","rows":[{"a":1},{"a":2}]}"#).unwrap();
    assert_eq!(shown(&object), ["tr: title: T", "tr: rows[0].a: 1", "tr: rows[1].a: 2"]);
    let records = read("a.jsonl", b"{\"a\":1}\n\n{\"a\":true}\n").unwrap();
    assert_eq!((records.format, shown(&records)), (Format::JsonLines, vec!["tr: a: 1".into(), "tr: a: true".into()]));
    assert_eq!(lines(&records), [(1, 1), (3, 3)]);
}

#[test]
fn paths_that_repeat_are_counted() {
    let limits = Limits { text_bytes: 100_000, ..Limits::default() };
    let text = format!(r#"{{"{}":{{"b":[{}1]}}}}"#, "k".repeat(5_000), "1,".repeat(5_000));
    let refused = read_with("a.json", text.as_bytes(), &limits).unwrap_err();
    assert!(matches!(refused, ExtractError::OverLimit { limit: Limit::TextBytes, .. }), "{refused}");
}

#[test]
fn code_is_cut_where_definitions_begin() {
    let extracted = read("src/main.rs", b"//! Doc\n\nfn a() {\n    x();\n\n    y();\n}\n\nfn b() {}\n").unwrap();
    assert_eq!(
        shown(&extracted),
        ["code rust: //! Doc", "code rust: fn a() {\n    x();\n\n    y();\n}", "code rust: fn b() {}"]
    );
    assert_eq!(lines(&extracted), [(1, 1), (3, 7), (9, 9)]);
}

#[test]
fn word_documents_keep_headings_lists_and_tables() {
    let body = r#"<w:p><w:pPr><w:pStyle w:val="berschrift1"/></w:pPr><w:r><w:t>Die Pumpe</w:t></w:r></w:p>
        <w:p><w:pPr><w:pStyle w:val="Own"/></w:pPr><w:r><w:t>Teil</w:t></w:r></w:p>
        <w:p><w:r><w:t xml:space="preserve">Ein </w:t></w:r><w:del><w:r><w:delText>nie</w:delText></w:r></w:del>
            <w:r><w:t>&lt;Teil&gt; &#228; &amp; mehr</w:t><w:br/><w:t>neu</w:t></w:r></w:p>
        <w:p><w:pPr><w:numPr><w:ilvl w:val="0"/></w:numPr></w:pPr><w:r><w:t>Punkt</w:t></w:r></w:p>
        <w:tbl><w:tr><w:tc><w:p><w:r><w:t>Teil</w:t></w:r></w:p></w:tc><w:tc><w:p><w:r><w:t>Masse</w:t></w:r></w:p></w:tc></w:tr>
        <w:tr><w:tc><w:p><w:r><w:t>Rad</w:t></w:r></w:p></w:tc><w:tc><w:p><w:r><w:t>3 kg</w:t></w:r></w:p></w:tc></w:tr></w:tbl>"#;
    let extracted = read("pumpe.docx", &docx(body)).unwrap();
    assert_eq!((extracted.format, extracted.title.as_deref()), (Format::Docx, Some("Die Pumpe")));
    assert_eq!(
        shown(&extracted),
        ["h1: Die Pumpe", "h2: Teil", "p: Ein <Teil> ä & mehr\nneu", "li: Punkt", "tr: Teil: Rad | Masse: 3 kg",]
    );
}

#[test]
fn workbooks_give_rows_with_their_place() {
    let sheet = r#"<row r="1"><c r="A1" t="inlineStr"><is><t>name</t></is></c><c r="B1" t="inlineStr"><is><t>born</t></is></c></row>
        <row r="3"><c r="A3" t="inlineStr"><is><t>Ada</t></is></c><c r="B3"><v>1815</v></c></row>"#;
    let extracted = read("staff.xlsx", &xlsx(sheet)).unwrap();
    assert_eq!(extracted.format, Format::Xlsx);
    assert_eq!(shown(&extracted), ["h2: Staff", "tr: name: Ada | born: 1815"]);
    let place = &extracted.blocks[1].place;
    assert_eq!((place.sheet.as_deref(), place.lines), (Some("Staff"), Some(LineRange { first: 3, last: 3 })));
}

#[test]
fn cells_in_opposite_corners_make_no_rectangle() {
    let sheet = r#"<row r="1"><c r="A1"><v>1</v></c></row><row r="1048576"><c r="XFD1048576"><v>2</v></c></row>"#;
    assert_eq!(shown(&read("far.xlsx", &xlsx(sheet)).unwrap()), ["h2: Staff", "tr: 1", "tr: 2"]);
}

#[test]
fn content_decides_what_a_file_is() {
    let page = b"<!doctype html><h1>Hello</h1>";
    for name in ["page.md", "page.txt", "page.pdf", "page.docx", "page", "../../etc/page.py", "C:\\x\\page.csv"] {
        assert_eq!(read(name, page).unwrap().format, Format::Html, "{name}");
    }
    assert_eq!(read("report.pdf", &docx("<w:p><w:r><w:t>x</w:t></w:r></w:p>")).unwrap().format, Format::Docx);
    assert_eq!(read("a.html", b"{\"a\": 1}").unwrap().format, Format::Json);
    assert_eq!(read("a.json", b"{ not json").unwrap().format, Format::PlainText);
    assert_eq!(read("a.txt", b"a,b,c\n1,2,3\n4,5,6\n7,8,9\n").unwrap().format, Format::Csv);
    assert_eq!(read("README", b"# One\n\ntext\n\n## Two\n\ntext\n").unwrap().format, Format::Markdown);
    assert_eq!(read("about.txt", b"A PDF begins with %PDF-1.7 and that is all.").unwrap().format, Format::PlainText);
    let script = read("run", b"#!/usr/bin/env python3\nprint(1)\n").unwrap();
    assert_eq!(shown(&script), ["code python: #!/usr/bin/env python3\nprint(1)"]);
}

#[test]
fn text_comes_in_any_encoding() {
    let utf_16: Vec<u8> = "\u{FEFF}Grüße".encode_utf16().flat_map(u16::to_le_bytes).collect();
    assert_eq!(shown(&read("a.txt", &utf_16).unwrap()), ["p: Grüße"]);
    assert_eq!(
        shown(&read("a.txt", b"Stra\xDFe nach M\xFCnchen, sch\xF6n gr\xFCn").unwrap()),
        ["p: Straße nach München, schön grün"]
    );
    let page = b"<html><head><meta charset='windows-1251'></head><p>\xCF\xF0\xE8\xE2\xE5\xF2</p></html>";
    assert_eq!(shown(&read("a.html", page).unwrap()), ["p: Привет"]);
}

#[test]
fn what_is_no_document_is_refused_by_name() {
    let refusal = |name: &str, bytes: &[u8]| read(name, bytes).unwrap_err().to_string();
    assert_eq!(read("empty.pdf", b"").unwrap_err(), ExtractError::Empty);
    assert_eq!(read("blank.txt", b" \n\t\n").unwrap_err(), ExtractError::NoText { format: Format::PlainText });
    assert!(refusal("a.txt", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0").contains("image/png"));
    assert!(refusal("a.txt", b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0").contains("binary data"));
    assert!(refusal("a.zip", &zipped(&[("a.txt", "x")])).contains("a ZIP archive"));
    assert!(refusal("a.pptx", &zipped(&[("ppt/presentation.xml", "x")])).contains("PowerPoint"));
    assert!(refusal("a.rtf", b"{\\rtf1 hello}").contains("RTF"));
    assert!(refusal("a.doc", b"\xD0\xCF\x11\xE0\xA1\xB1\x1A\xE1 old").contains("before 2007"));
    let mut encrypted = b"\xD0\xCF\x11\xE0\xA1\xB1\x1A\xE1".to_vec();
    encrypted.extend("EncryptedPackage".encode_utf16().flat_map(u16::to_le_bytes));
    assert_eq!(read("a.xlsx", &encrypted).unwrap_err(), ExtractError::Encrypted { format: Format::Xlsx });
}

#[test]
fn limits_are_refused_by_name() {
    let over = |limit: Limit, result: Result<Extracted, ExtractError>| {
        let error = result.unwrap_err();
        assert!(
            matches!(&error, ExtractError::OverLimit { limit: found, .. } if *found == limit),
            "{limit:?}: {error}"
        );
    };
    let small = Limits { file_bytes: 10, ..Limits::default() };
    over(Limit::FileBytes, read_with("a.txt", b"more than ten bytes", &small));
    let short = Limits { text_bytes: 10, ..Limits::default() };
    over(Limit::TextBytes, read_with("a.txt", b"more than ten bytes", &short));
    let few = Limits { blocks: 2, ..Limits::default() };
    over(Limit::Blocks, read_with("a.txt", b"a\n\nb\n\nc", &few));
    let entries = Limits { archive_entries: 2, ..Limits::default() };
    over(Limit::ArchiveEntries, read_with("a.docx", &docx(""), &entries));
    let nested = "<w:p>".repeat(100_000);
    over(Limit::Depth, read("a.docx", &docx(&nested)));
}

#[test]
fn a_zip_bomb_is_not_unpacked() {
    let zeros = " ".repeat(8 * 1024 * 1024);
    for bomb in [docx(&zeros), xlsx(&zeros)] {
        assert!(bomb.len() < 100_000);
        let error = read("bomb.docx", &bomb).unwrap_err();
        assert!(matches!(error, ExtractError::OverLimit { limit: Limit::ArchiveRatio, .. }), "{error}");
        let limits = Limits { archive_bytes: 1_000_000, archive_ratio: 100_000, ..Limits::default() };
        let error = read_with("bomb.docx", &bomb, &limits).unwrap_err();
        assert!(matches!(error, ExtractError::OverLimit { limit: Limit::ArchiveBytes, .. }), "{error}");
    }
}

fn gzipped(bytes: &[u8]) -> Vec<u8> {
    let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    writer.write_all(bytes).expect("it is packed");
    writer.finish().expect("it ends")
}

#[test]
fn what_is_packed_with_gzip_is_read_as_what_it_holds() {
    let extracted = read("notes.md.gz", &gzipped(b"# Valves\n\nSix bar.")).unwrap();
    assert_eq!(
        (extracted.format, shown(&extracted)),
        (Format::Markdown, vec!["h1: Valves".into(), "p: Six bar.".into()])
    );
    let workbook = gzipped(&xlsx(r#"<row r="1"><c r="A1" t="inlineStr"><is><t>bolt</t></is></c></row>"#));
    assert_eq!(read("parts.xlsx.gz", &workbook).unwrap().format, Format::Xlsx);
    let mut members = gzipped(b"first line\n");
    members.extend(gzipped(b"second line\n"));
    assert_eq!(shown(&read("log.gz", &members).unwrap()), ["p: first line\nsecond line"]);
}

#[test]
fn a_gzip_file_is_refused_by_what_is_wrong_with_it() {
    let bomb = gzipped(&vec![b'a'; 8 << 20]);
    let limits = |file_bytes| Limits { file_bytes, ..Limits::default() };
    let refusal = |bytes: &[u8], limits: &Limits| read_with("a.txt.gz", bytes, limits).unwrap_err().to_string();
    assert!(refusal(&bomb, &limits(64 << 20)).contains("unpacked bytes for each packed one"));
    assert!(refusal(&gzipped(&[b'a'; 4096]), &limits(1000)).contains("bytes in the file"));
    assert!(refusal(&bomb[..200], &Limits::default()).contains("a gzip file that cannot be unpacked"));
    assert!(refusal(&gzipped(&gzipped(b"text")), &Limits::default()).contains("a gzip file within a gzip file"));
    assert_eq!(read("a.gz", &gzipped(b"")).unwrap_err(), ExtractError::Empty);
}

#[test]
fn damaged_documents_say_so() {
    let mut cut = docx("<w:p><w:r><w:t>Hello</w:t></w:r></w:p>");
    cut.truncate(cut.len() / 2);
    assert!(matches!(read("a.docx", &cut).unwrap_err(), ExtractError::Unsupported { .. }));
    let no_main = zipped(&[("[Content_Types].xml", "<Types/>"), ("word/styles.xml", "<s/>")]);
    assert!(read("a.docx", &no_main).unwrap_err().to_string().contains("word/document.xml, is missing"));
    assert!(matches!(read("a.docx", &docx("")).unwrap_err(), ExtractError::NoText { .. }));
}

#[test]
fn control_characters_stay_out() {
    assert_eq!(shown(&read("a.txt", "so\u{AD}ft \u{1B}[31mred\u{7}".as_bytes()).unwrap()), ["p: soft [31mred"]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_bytes_make_a_text_format_panic(
        bytes in proptest::collection::vec(any::<u8>(), 1..2_000),
        name in "[a-z/\\\\.]{0,8}\\.(txt|md|html|csv|tsv|json|jsonl|rs|docx|xlsx|)",
    ) {
        let _ = read(&name, &bytes);
        for format in [Format::PlainText, Format::Markdown, Format::Html, Format::Csv, Format::Json, Format::JsonLines, Format::Code] {
            let _ = extract_text(&bytes, format, None, &Limits::default());
        }
    }

    #[test]
    fn no_markup_makes_a_reader_panic(
        pieces in proptest::collection::vec(
            prop_oneof![
                Just("<table>"), Just("</table>"), Just("<tr>"), Just("</tr>"), Just("<td>"), Just("</td>"), Just("<li>"),
                Just("<ul>"), Just("</ul>"), Just("<h2>"), Just("</h2>"), Just("<pre>"), Just("</pre>"), Just("<nav>"),
                Just("</nav>"), Just("<script>"), Just("</script>"), Just("<title>"), Just("</title>"), Just("text "),
                Just("# a\n"), Just("- b\n"), Just("```\n"), Just("| a | b |\n|---|---|\n"), Just("> "), Just("\n\n"),
                Just("&amp;"), Just("<!--"), Just("-->"), Just("[^1]: "), Just("---\n"),
            ],
            0..60,
        )
    ) {
        let text: String = pieces.concat();
        let _ = read("a.html", format!("<html>{text}").as_bytes());
        let _ = read("a.md", text.as_bytes());
    }

    #[test]
    fn no_parts_make_an_office_reader_panic(
        document in "(<w:(p|r|t|tbl|tr|tc|pPr|del)>|</w:(p|r|t|tbl|tr|tc|pPr|del)>|<w:br/>|text|&amp;|&x;){0,40}",
        sheet in "(<row r=\"[0-9]{0,9}\">|</row>|<c r=\"[A-Z]{0,5}[0-9]{0,9}\" t=\"(s|n|inlineStr|b|d)\">|</c>|<v>[0-9]{0,12}</v>|<is><t>a</t></is>){0,20}",
    ) {
        let _ = read("a.docx", &docx(&document));
        let _ = read("a.xlsx", &xlsx(&sheet));
    }

    #[test]
    fn every_word_of_a_text_is_extracted(words in proptest::collection::vec("[a-zäж]{1,12}", 1..80)) {
        let text = words.chunks(5).map(|line| line.join(" ")).collect::<Vec<_>>().join("\n\n");
        let extracted = read("a.txt", text.as_bytes()).unwrap();
        let together: Vec<String> =
            extracted.blocks.iter().flat_map(|block| block.text.split_whitespace()).map(str::to_owned).collect();
        prop_assert_eq!(together, words);
    }
}
