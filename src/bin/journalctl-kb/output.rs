//! Writing: lines and tables for people, objects for programs.

use std::fmt::{Display, Write as _};
use std::io::{BufWriter, StdoutLock, Write};
use std::path::Path;

use anstream::{AutoStream, ColorChoice};
use clap::builder::styling::{AnsiColor, Style};
use comfy_table::{Cell, CellAlignment, Color, ContentArrangement, presets};
use serde::Serialize;

use crate::exit::Failure;

/// Standard output. Styles are dropped where it is no terminal, or `NO_COLOR` is set.
pub(crate) struct Out {
    stream: BufWriter<AutoStream<StdoutLock<'static>>>,
    json: bool,
    colour: bool,
}

impl Out {
    pub(crate) fn new(json: bool) -> Self {
        let stdout = std::io::stdout();
        let colour = !json && AutoStream::choice(&stdout) != ColorChoice::Never;
        let choice = if colour { ColorChoice::Always } else { ColorChoice::Never };
        Self { stream: BufWriter::new(AutoStream::new(stdout.lock(), choice)), json, colour }
    }

    /// True when programs read along.
    pub(crate) fn json(&self) -> bool {
        self.json
    }

    /// Writes one object on a line of its own.
    pub(crate) fn object(&mut self, object: &impl Serialize) -> Result<(), Failure> {
        let text = serde_json::to_string(object).map_err(std::io::Error::from)?;
        self.line(escaped(&text))
    }

    pub(crate) fn line(&mut self, line: impl Display) -> Result<(), Failure> {
        Ok(writeln!(self.stream, "{line}")?)
    }

    /// Writes a table without lines, its columns two spaces apart.
    pub(crate) fn table(&mut self, table: Table) -> Result<(), Failure> {
        let mut inner = table.inner;
        // comfy-table asks the terminal only for its width; whether to style was decided above.
        if self.colour {
            inner.enforce_styling();
        } else {
            inner.force_no_tty();
        }
        for line in inner.lines() {
            writeln!(self.stream, "{}", line.trim_end())?;
        }
        Ok(())
    }

    pub(crate) fn flush(&mut self) -> Result<(), Failure> {
        Ok(self.stream.flush()?)
    }
}

/// Rows and columns.
pub(crate) struct Table {
    inner: comfy_table::Table,
    indent: u16,
}

impl Table {
    pub(crate) fn new(header: &[&str]) -> Self {
        let mut inner = comfy_table::Table::new();
        inner.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
        if !header.is_empty() {
            inner.set_header(header.iter().map(|name| Cell::new(name).add_attribute(comfy_table::Attribute::Dim)));
        }
        Self { inner, indent: 0 }
    }

    /// Without a header, set off from the margin.
    pub(crate) fn indented() -> Self {
        Self { indent: 2, ..Self::new(&[]) }
    }

    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        self.inner.add_row(cells);
        for (at, column) in self.inner.column_iter_mut().enumerate() {
            column.set_padding((if at == 0 { self.indent } else { 0 }, 2));
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.inner.is_empty()
    }
}

/// A cell of text from the journal, made harmless.
pub(crate) fn cell(text: impl AsRef<str>) -> Cell {
    Cell::new(plain(text.as_ref()))
}

/// A cell with a number in it.
pub(crate) fn number(number: impl Display) -> Cell {
    Cell::new(number).set_alignment(CellAlignment::Right)
}

/// A cell in a colour.
pub(crate) fn tinted(text: impl AsRef<str>, tint: Tint) -> Cell {
    let cell = cell(text);
    match tint {
        Tint::Good => cell.fg(Color::DarkGreen),
        Tint::Busy => cell.fg(Color::DarkCyan),
        Tint::Warning => cell.fg(Color::DarkYellow),
        Tint::Bad => cell.fg(Color::DarkRed),
        Tint::None => cell,
    }
}

/// What a colour stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tint {
    None,
    Good,
    Busy,
    Warning,
    Bad,
}

impl Tint {
    /// The one for a state of a transaction.
    pub(crate) fn of_state(state: &str) -> Self {
        match state {
            "settled" => Self::Good,
            "committed" | "applied" | "settling" => Self::Busy,
            "pending" => Self::Warning,
            "rolled_back" => Self::None,
            _ => Self::Bad,
        }
    }

    /// The one for the level of an event.
    pub(crate) fn of_level(level: &str) -> Self {
        match level {
            "info" => Self::None,
            "warn" => Self::Warning,
            _ => Self::Bad,
        }
    }

    /// The text between the codes for this colour; [`Out`] drops them where they do not belong.
    pub(crate) fn paint(self, text: impl Display) -> String {
        let style = match self {
            Self::None => return text.to_string(),
            Self::Good => AnsiColor::Green,
            Self::Busy => AnsiColor::Cyan,
            Self::Warning => AnsiColor::Yellow,
            Self::Bad => AnsiColor::Red,
        }
        .on_default();
        format!("{style}{text}{style:#}")
    }
}

/// Bold, where that is to be had.
pub(crate) fn bold(text: impl Display) -> String {
    let style = Style::new().bold();
    format!("{style}{text}{style:#}")
}

/// Faint, where that is to be had.
pub(crate) fn dim(text: impl Display) -> String {
    let style = Style::new().dimmed();
    format!("{style}{text}{style:#}")
}

/// Text that somebody stored, with every control character spelled out: a label must not move the cursor.
pub(crate) fn plain(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut out, c| {
        if c.is_control() {
            let _ = write!(out, "{}", c.escape_default());
        } else {
            out.push(c);
        }
        out
    })
}

/// Text as one word for a shell; what it takes for something else stands in quotes.
pub(crate) fn shell_word(text: &str) -> String {
    let harmless = |c: char| c.is_alphanumeric() || "_-./:@%+=,".contains(c);
    if !text.is_empty() && text.chars().all(harmless) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

/// JSON, with those control characters spelled out, too, that JSON lets stand in a text: some terminals obey them, and a stream
/// without styles drops them.
fn escaped(json: &str) -> String {
    json.chars().fold(String::with_capacity(json.len()), |mut out, c| {
        if c.is_control() {
            let _ = write!(out, "\\u{:04x}", u32::from(c));
        } else {
            out.push(c);
        }
        out
    })
}

/// A path, lossily where it is not UTF-8.
pub(crate) fn path(path: &Path) -> String {
    plain(&path.to_string_lossy())
}

/// A size as people read it.
pub(crate) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let (mut size, mut unit) = (bytes as f64 / 1024.0, 0);
    while size >= 1023.95 && unit + 1 < UNITS.len() {
        size /= 1024.0;
        unit += 1;
    }
    format!("{size:.1} {}", UNITS[unit])
}

/// The state of a transaction as people read it.
pub(crate) fn state(state: &str) -> &str {
    if state == "rolled_back" { "rolled back" } else { state }
}

/// "1 path", "2 paths".
pub(crate) fn many(count: u64, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_stored_reaches_the_terminal_as_a_command() {
        assert_eq!(plain("a\u{1b}[31mb\n\tc\u{9b}d\u{7f} é"), "a\\u{1b}[31mb\\n\\tc\\u{9b}d\\u{7f} é");
    }

    #[test]
    fn every_control_character_is_spelled_out_in_json_and_comes_back() {
        let text: String = (0..0x100).filter_map(char::from_u32).collect();
        let json = escaped(&serde_json::to_string(&text).unwrap());
        assert_eq!(json.chars().find(|c| c.is_control()), None);
        assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text);
    }

    #[test]
    fn a_word_stays_one_word_in_a_shell() {
        for text in ["sync:source-a", "a b", "", "it's", "$(date)", "a\nb", "*", "é"] {
            let echoed =
                std::process::Command::new("sh").args(["-c", &format!("printf %s {}", shell_word(text))]).output();
            assert_eq!(String::from_utf8(echoed.unwrap().stdout).unwrap(), text);
        }
        assert_eq!(shell_word("sync:source-a"), "sync:source-a");
    }

    #[test]
    fn sizes_are_short() {
        for (size, want) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (1_048_575, "1.0 MiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(bytes(size), want);
        }
        assert_eq!((many(1, "path"), many(0, "path")), ("1 path".into(), "0 paths".into()));
    }
}
