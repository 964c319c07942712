//! Excel workbooks, read with calamine cell by cell: a sheet becomes a heading and its rows.
//!
//! Cells are streamed, never collected into a rectangle: two cells in opposite corners would make one of 17 thousand
//! million cells.

use std::{io::Cursor, sync::Arc};

use calamine::{DataRef, ExcelDateTime, Reader, Xlsx, XlsxError};

use super::{
    ExtractError, Format,
    archive::{self, OfficeArchive},
    document::{BlockKind, DocumentBuilder, LineRange, SourceLocation, TableRows},
};

/// Columns read per row; the maximum of a sheet is 16,384.
const MAX_COLUMNS: usize = 16_384;

pub(super) fn read(mut archive: OfficeArchive, builder: &mut DocumentBuilder<'_>) -> Result<(), ExtractError> {
    archive::check_all(&mut archive, Format::Xlsx, builder.limits())?;
    let mut workbook: Xlsx<_> = Xlsx::new(archive.into_inner()).map_err(damaged)?;
    for name in workbook.sheet_names() {
        let sheet: Arc<str> = Arc::from(name.as_str());
        match read_sheet(&mut workbook, &sheet, builder) {
            // A chart sheet has no cells.
            Err(SheetError::Workbook(XlsxError::NotAWorksheet(_) | XlsxError::WorksheetNotFound(_))) => {}
            Err(SheetError::Workbook(error)) => builder.skip(format!("sheet {name:?} cannot be read: {error}")),
            Err(SheetError::Refused(error)) => return Err(error),
            Ok(()) => {}
        }
    }
    Ok(())
}

enum SheetError {
    Workbook(XlsxError),
    Refused(ExtractError),
}

fn read_sheet(
    workbook: &mut Xlsx<Cursor<Vec<u8>>>,
    sheet: &Arc<str>,
    builder: &mut DocumentBuilder<'_>,
) -> Result<(), SheetError> {
    let mut cells = workbook.worksheet_cells_reader(sheet).map_err(SheetError::Workbook)?;
    let mut table = TableRows::default();
    let mut row: Vec<String> = Vec::new();
    let mut row_number = 0_u32;
    let mut has_heading = false;
    loop {
        let cell = cells.next_cell().map_err(SheetError::Workbook)?;
        let position = cell.as_ref().map(calamine::Cell::get_position);
        if position.is_none_or(|(number, _)| number != row_number) && !row.is_empty() {
            if !has_heading {
                let place = SourceLocation { sheet: Some(sheet.clone()), ..SourceLocation::default() };
                builder.push(BlockKind::Heading { level: 2 }, sheet, place).map_err(SheetError::Refused)?;
                has_heading = true;
            }
            let line = row_number.saturating_add(1);
            let place = SourceLocation {
                page: None,
                sheet: Some(sheet.clone()),
                lines: Some(LineRange { first: line, last: line }),
            };
            table.push(std::mem::take(&mut row), place, builder).map_err(SheetError::Refused)?;
        }
        let (Some(cell), Some((number, column))) = (cell, position) else { break };
        row_number = number;
        let text = shown(cell.get_value());
        let column = usize::try_from(column).unwrap_or(usize::MAX);
        if !text.is_empty() && column < MAX_COLUMNS {
            if row.len() <= column {
                row.resize(column + 1, String::new());
            }
            row[column] = text;
        }
    }
    table.finish(builder).map_err(SheetError::Refused)
}

/// A cell as the spreadsheet displays it.
fn shown(value: &DataRef<'_>) -> String {
    match value {
        DataRef::Int(number) => number.to_string(),
        DataRef::Float(number) => number.to_string(),
        DataRef::String(text) | DataRef::DateTimeIso(text) | DataRef::DurationIso(text) => text.clone(),
        DataRef::SharedString(text) => (*text).to_owned(),
        DataRef::Bool(value) => value.to_string(),
        DataRef::DateTime(moment) => shown_moment(moment),
        DataRef::Error(error) => error.to_string(),
        DataRef::Empty => String::new(),
    }
}

fn shown_moment(moment: &ExcelDateTime) -> String {
    let number = moment.as_f64();
    // Outside this range a spreadsheet itself displays no date.
    if moment.is_duration() || !(0.0..2_958_466.0).contains(&number) {
        return number.to_string();
    }
    let (year, month, day, hour, minute, second, _) = moment.to_ymd_hms_milli();
    if number < 1.0 {
        return format!("{hour:02}:{minute:02}:{second:02}");
    }
    let date = format!("{year:04}-{month:02}-{day:02}");
    if (hour, minute, second) == (0, 0, 0) { date } else { format!("{date} {hour:02}:{minute:02}:{second:02}") }
}

fn damaged(error: XlsxError) -> ExtractError {
    match error {
        XlsxError::Password => ExtractError::Encrypted { format: Format::Xlsx },
        error => ExtractError::damaged(Format::Xlsx, error),
    }
}
