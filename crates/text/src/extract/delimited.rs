//! CSV and TSV: each row is a block that includes the column names, so that a row makes sense on its own.

use super::{
    ExtractError, Format,
    document::{DocumentBuilder, SourceLocation, TableRows},
};

const DELIMITERS: [u8; 4] = [b',', b';', b'\t', b'|'];

pub(super) fn read(text: &str, format: Format, builder: &mut DocumentBuilder<'_>) -> Result<(), ExtractError> {
    let delimiter = if format == Format::Tsv { b'\t' } else { likely_delimiter(text) };
    let mut reader = reader(text, delimiter);
    let mut table = TableRows::default();
    let mut record = csv::StringRecord::new();
    while reader.read_record(&mut record).map_err(|error| ExtractError::damaged(format, error))? {
        let first = record.position().map_or(1, |position| to_usize(position.line()));
        let cells: Vec<String> = record.iter().map(str::to_owned).collect();
        let inner_lines: usize = cells.iter().map(|cell| cell.matches('\n').count()).sum();
        table.push(cells, SourceLocation::lines(first, first + inner_lines), builder)?;
    }
    table.finish(builder)
}

fn reader(text: &str, delimiter: u8) -> csv::Reader<&[u8]> {
    csv::ReaderBuilder::new().delimiter(delimiter).has_headers(false).flexible(true).from_reader(text.as_bytes())
}

fn to_usize(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// The delimiter that evenly splits the first rows into the most columns; a comma if none does.
fn likely_delimiter(text: &str) -> u8 {
    DELIMITERS
        .into_iter()
        .filter_map(|delimiter| even_columns(text, delimiter, 2).map(|(columns, _)| (columns, delimiter)))
        .max_by_key(|(columns, delimiter)| (*columns, *delimiter == b','))
        .map_or(b',', |(_, delimiter)| delimiter)
}

/// The delimiter of a text that is clearly a table: at least four rows with the same number of columns, three or more,
/// or two if tabs separate them.
pub(super) fn evident_delimiter(text: &str) -> Option<u8> {
    DELIMITERS.into_iter().filter(|delimiter| *delimiter != b'|').find(|delimiter| {
        let least = if *delimiter == b'\t' { 2 } else { 3 };
        even_columns(text, *delimiter, least).is_some_and(|(_, rows)| rows >= 4)
    })
}

/// The number of columns and of rows inspected, if all of the first rows have the same number of columns, at least
/// `least`.
fn even_columns(text: &str, delimiter: u8, least: usize) -> Option<(usize, usize)> {
    // The last row may be cut off at the end of the inspected text.
    let head = if text.len() > 16_384 { &text[..text.floor_char_boundary(16_384)] } else { text };
    let mut rows: Vec<usize> =
        reader(head, delimiter).records().take(40).map_while(|record| record.ok().map(|record| record.len())).collect();
    if head.len() < text.len() && rows.len() > 1 {
        rows.pop();
    }
    let columns = *rows.first()?;
    (columns >= least && rows.iter().all(|row| *row == columns)).then_some((columns, rows.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prose_is_no_table() {
        let prose = "First, we went home.\nThen, it rained, and rained.\nLater on nothing.\nSo, what.\nYes.";
        assert_eq!(evident_delimiter(prose), None);
    }

    #[test]
    fn the_delimiter_is_the_one_that_parts_evenly() {
        assert_eq!(likely_delimiter("a;b;c\n1,5;2,5;3\n"), b';');
        assert_eq!(likely_delimiter("a,b\n1,2\n"), b',');
        assert_eq!(evident_delimiter("a\tb\nc\td\ne\tf\ng\th\n"), Some(b'\t'));
    }
}
