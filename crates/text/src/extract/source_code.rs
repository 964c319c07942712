//! Source code and configuration: pieces of whole lines, split at blank lines that precede an unindented line, where a
//! definition usually begins.

use std::sync::Arc;

use super::{
    ExtractError,
    document::{BlockKind, DocumentBuilder, SourceLocation},
};

/// Extensions (or bare file names) of files that are read as code, with the language's name.
const LANGUAGES: [(&str, &str); 66] = [
    ("ada", "ada"),
    ("asm", "assembly"),
    ("bash", "shell"),
    ("bat", "batch"),
    ("c", "c"),
    ("cc", "cpp"),
    ("cfg", "ini"),
    ("clj", "clojure"),
    ("cmake", "cmake"),
    ("conf", "ini"),
    ("cpp", "cpp"),
    ("cs", "csharp"),
    ("css", "css"),
    ("cu", "cuda"),
    ("cxx", "cpp"),
    ("dart", "dart"),
    ("dockerfile", "dockerfile"),
    ("el", "lisp"),
    ("env", "ini"),
    ("erl", "erlang"),
    ("ex", "elixir"),
    ("exs", "elixir"),
    ("f90", "fortran"),
    ("fs", "fsharp"),
    ("go", "go"),
    ("gradle", "groovy"),
    ("graphql", "graphql"),
    ("groovy", "groovy"),
    ("h", "c"),
    ("hpp", "cpp"),
    ("hs", "haskell"),
    ("ini", "ini"),
    ("java", "java"),
    ("jl", "julia"),
    ("js", "javascript"),
    ("jsx", "javascript"),
    ("justfile", "just"),
    ("kt", "kotlin"),
    ("lisp", "lisp"),
    ("lua", "lua"),
    ("makefile", "make"),
    ("mjs", "javascript"),
    ("mk", "make"),
    ("ml", "ocaml"),
    ("nix", "nix"),
    ("php", "php"),
    ("pl", "perl"),
    ("proto", "protobuf"),
    ("ps1", "powershell"),
    ("py", "python"),
    ("r", "r"),
    ("rb", "ruby"),
    ("rs", "rust"),
    ("scala", "scala"),
    ("sh", "shell"),
    ("sql", "sql"),
    ("swift", "swift"),
    ("tf", "terraform"),
    ("toml", "toml"),
    ("ts", "typescript"),
    ("tsx", "typescript"),
    ("vue", "vue"),
    ("xml", "xml"),
    ("yaml", "yaml"),
    ("yml", "yaml"),
    ("zig", "zig"),
];

/// The language for an extension.
pub(super) fn language_of(extension: &str) -> Option<&'static str> {
    LANGUAGES.iter().find(|(known, _)| *known == extension).map(|(_, language)| *language)
}

pub(super) fn read(text: &str, language: Option<&str>, builder: &mut DocumentBuilder<'_>) -> Result<(), ExtractError> {
    let kind = BlockKind::Code { language: language.map(Arc::from) };
    let mut piece = String::new();
    let mut first = 1;
    let mut last = 1;
    let mut after_blank = false;
    for (index, line) in text.lines().enumerate() {
        let line = line.trim_end();
        if line.is_empty() {
            after_blank = true;
            if !piece.is_empty() {
                piece.push('\n');
            }
            continue;
        }
        if after_blank && !piece.is_empty() && begins_something(line) {
            builder.push(kind.clone(), &piece, SourceLocation::lines(first, last))?;
            piece.clear();
        }
        after_blank = false;
        if piece.is_empty() {
            first = index + 1;
        }
        last = index + 1;
        piece.push_str(line);
        piece.push('\n');
    }
    builder.push(kind, &piece, SourceLocation::lines(first, last))
}

fn begins_something(line: &str) -> bool {
    !line.starts_with([' ', '\t', '}', ')', ']'])
}
