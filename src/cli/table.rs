//! Tables: aligned columns for people.

use anstyle::Style;
use unicode_width::UnicodeWidthStr as _;

use super::exit::Error;
use super::output::{FAINT, Out};

/// Where a column's text stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Align {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

/// One field.
#[derive(Debug, Clone, Default)]
pub struct Cell {
    text: String,
    style: Style,
}

impl Cell {
    /// Text in a style.
    pub fn styled(text: impl Into<String>, style: Style) -> Self {
        Self { text: text.into(), style }
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self { text: text.into(), style: Style::new() }
    }
}

/// Rows under headings. A table without rows prints nothing.
#[derive(Debug)]
pub struct Table<const COLUMNS: usize> {
    columns: [(&'static str, Align); COLUMNS],
    rows: Vec<[Cell; COLUMNS]>,
}

impl<const COLUMNS: usize> Table<COLUMNS> {
    /// An empty table; headings that are all empty are not printed.
    pub fn new(columns: [(&'static str, Align); COLUMNS]) -> Self {
        Self { columns, rows: Vec::new() }
    }

    /// Adds a row.
    pub fn row(&mut self, row: [Cell; COLUMNS]) {
        self.rows.push(row);
    }

    /// Prints it, two spaces between columns.
    pub fn print(&self, out: &mut Out) -> Result<(), Error> {
        if self.rows.is_empty() {
            return Ok(());
        }
        let widths: [usize; COLUMNS] = std::array::from_fn(|at| {
            let cells = self.rows.iter().map(|row| row[at].text.width());
            cells.chain([self.columns[at].0.width()]).max().unwrap_or_default()
        });
        if self.columns.iter().any(|(name, _)| !name.is_empty()) {
            self.line(out, &widths, &self.columns.map(|(name, _)| Cell::styled(name, FAINT)))?;
        }
        self.rows.iter().try_for_each(|row| self.line(out, &widths, row))
    }

    fn line(&self, out: &mut Out, widths: &[usize; COLUMNS], cells: &[Cell; COLUMNS]) -> Result<(), Error> {
        let last = cells.iter().rposition(|cell| !cell.text.is_empty()).unwrap_or_default();
        let mut line = String::new();
        for (at, cell) in cells.iter().enumerate().take(last + 1) {
            let space = " ".repeat(widths[at] - cell.text.width());
            let text = out.paint(cell.style, &cell.text);
            line.push_str(if at == 0 { "" } else { "  " });
            match self.columns[at].1 {
                Align::Right => line.extend([&space, &*text]),
                Align::Left if at == last => line.push_str(&text), // no spaces at the end of a line
                Align::Left => line.extend([&*text, &space]),
            }
        }
        out.line(&line)
    }
}
