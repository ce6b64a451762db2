//! Text for a page.

/// The longest line of prose.
const WIDTH: usize = 120;

/// A table.
pub fn table<const N: usize>(head: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let mut text = String::new();
    let mut line = |cells: &[String]| {
        cells.iter().for_each(|cell| text.extend(["| ", cell, if cell.is_empty() { "" } else { " " }]));
        text.push_str("|\n");
    };
    line(&head.map(str::to_owned));
    line(&head.map(|_| "---".to_owned()));
    rows.into_iter().for_each(|row| line(&row));
    text
}

/// A paragraph in lines that are not too long, and the empty line behind it.
pub fn paragraph(text: &str) -> String {
    let mut lines = String::new();
    let mut width = 0;
    for word in text.split_whitespace() {
        let length = word.chars().count();
        let fits = width + 1 + length <= WIDTH;
        if width > 0 {
            lines.push(if fits { ' ' } else { '\n' });
        }
        width = if fits && width > 0 { width + 1 + length } else { length };
        lines.push_str(word);
    }
    lines + "\n\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_a_head_and_rows() {
        let rows = [["1".to_owned(), String::new()]];
        assert_eq!(table(["a", "b"], rows), "| a | b |\n| --- | --- |\n| 1 | |\n");
    }

    #[test]
    fn no_line_of_prose_is_too_long_and_no_word_is_lost() {
        let text = "µ ".repeat(100);
        let lines = paragraph(&text);
        // Words and spaces make an odd number.
        let widths: Vec<_> = lines.lines().map(|line| line.chars().count()).filter(|width| *width > 0).collect();
        assert_eq!(widths, [WIDTH - 1, 200 - WIDTH - 1]);
        assert!(lines.split_whitespace().eq(text.split_whitespace()), "{lines}");
        assert!(lines.ends_with("\n\n"));
    }
}
