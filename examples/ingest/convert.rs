//! From the bytes of a document to its page. Pure: the same bytes under the same name give the same page, always.

use std::borrow::Cow;
use std::path::Path;

use htmd::element_handler::Handlers;
use htmd::options::{BrStyle, Options};
use htmd::{Element, HtmlToMarkdown};

use crate::Result;

/// A page is made of no more of a document than this; the original is kept whole.
pub(crate) const PAGE_LIMIT: usize = 16 << 20;

/// Deeper nesting than any person writes. htmd recurses, and an overflowed stack would end the whole batch.
const MAX_DEPTH: usize = 256;

/// How a document is read, told by the ending of its name.
pub(crate) enum Kind {
    Text,
    Html,
}

impl Kind {
    /// The kind of the file at `path`; `None` when it is not a document.
    pub(crate) fn of(path: &Path) -> Option<Kind> {
        match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
            "md" | "txt" => Some(Kind::Text),
            "html" | "htm" => Some(Kind::Html),
            _ => None,
        }
    }
}

/// A document made readable.
pub(crate) struct Page {
    /// The first heading (in HTML the `<title>` becomes one), or else the stem of the file's name.
    pub(crate) title: String,
    /// What a reader should know about how the text came to be.
    pub(crate) notes: Vec<&'static str>,
    /// Markdown with `\n` line endings, no trailing space and one final newline.
    pub(crate) body: String,
}

/// Converts a document.
pub(crate) fn convert(path: &Path, bytes: &[u8]) -> Result<Page> {
    let mut notes = Vec::new();
    let mut shown = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    if bytes.len() >= PAGE_LIMIT {
        notes.push("long: only the beginning is shown");
        shown = &shown[..shown.iter().rposition(|&byte| byte == b'\n').unwrap_or(shown.len())];
    }
    let text = String::from_utf8_lossy(shown);
    if matches!(text, Cow::Owned(_)) {
        notes.push("not valid UTF-8: what was not is shown as \u{fffd}");
    }
    let body = match Kind::of(path) {
        Some(Kind::Html) => normalise(&markdown(&text)?),
        _ => normalise(&text),
    };
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let title = heading(&body).map(plain).filter(|title| !title.is_empty()).unwrap_or(stem.into_owned());
    Ok(Page { title, notes, body })
}

fn markdown(html: &str) -> Result<String> {
    let title = |handlers: &dyn Handlers, title: Element<'_>| {
        Some(format!("# {}\n\n", handlers.walk_children(title.node).content).into())
    };
    let converter = HtmlToMarkdown::builder()
        .options(Options { br_style: BrStyle::Backslash, ..Options::default() })
        .skip_tags(vec!["script", "style", "svg", "template"])
        .add_handler(vec!["title"], title)
        .build();
    let document = converter.html_to_tree(html)?;
    let mut level = vec![document.clone()];
    for _ in 0..MAX_DEPTH {
        level = level.iter().flat_map(|node| node.children.borrow().clone()).collect();
    }
    if !level.is_empty() {
        return Err(format!("its HTML is nested more than {MAX_DEPTH} deep").into());
    }
    Ok(converter.tree_to_markdown(&document))
}

fn normalise(text: &str) -> String {
    let text = text.replace("\r\n", "\n").replace('\r', "\n").replace('\0', "\u{fffd}");
    let lines: Vec<&str> = text.trim().lines().map(str::trim_end).collect();
    lines.join("\n") + "\n"
}

/// The first heading outside a code block: `# so`, or a line with `===` below.
fn heading(body: &str) -> Option<&str> {
    let (mut code, mut above) = (false, "");
    for line in body.lines() {
        code ^= line.starts_with("```") || line.starts_with("~~~");
        if !code && line.starts_with('#') && line.trim_start_matches('#').starts_with(' ') {
            return Some(line.trim_matches('#'));
        } else if !code && line.starts_with("===") && line.trim_matches('=').is_empty() && !above.is_empty() {
            return Some(above);
        }
        above = line;
    }
    None
}

/// A heading without badges and marks.
fn plain(heading: &str) -> String {
    let text = heading.split("[![").next().unwrap_or_default().replace(['`', '*', '[', ']', '\\'], "");
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
