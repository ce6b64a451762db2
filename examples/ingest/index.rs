//! The index for readers: `index.md` counts, `index/<shard>.md` lists. A new page rewrites two small files.

use std::collections::BTreeMap;

pub(crate) const TOP: &str = "index.md";

/// The part of the index that lists the page `pages/…`: the first letter or digit of its name, or `other`.
pub(crate) fn shard(page: &str) -> String {
    match page.trim_start_matches("pages/").chars().next() {
        Some(first) if first.is_ascii_alphanumeric() => first.to_string(),
        _ => "other".to_owned(),
    }
}

/// Where a shard lies.
pub(crate) fn path(shard: &str) -> String {
    format!("index/{shard}.md")
}

/// The text of a shard: its pages, given as title and path, in the order of their titles, whatever the case.
pub(crate) fn list(shard: &str, mut pages: Vec<(String, String)>) -> String {
    pages.sort_by_cached_key(|(title, page)| (title.to_lowercase(), page.clone()));
    let lines = pages.iter().map(|(title, page)| format!("- [{title}](../{page})\n"));
    format!("# Index: {shard}\n\n{}", lines.collect::<String>())
}

/// The text of the top: how many pages each shard lists.
pub(crate) fn top(counts: &BTreeMap<String, i64>) -> String {
    let lines = counts.iter().map(|(shard, count)| format!("- [{shard}]({}): {count}\n", path(shard)));
    format!("# Index\n\nPages: {}\n\n{}", counts.values().sum::<i64>(), lines.collect::<String>())
}
