//! Real documents from this machine, for tests that should not be about `lorem ipsum`.
//!
//! The Cargo registry's sources always exist where this project was built, and hold hundreds of READMEs and change
//! logs; the toolchain's books and `/usr/share/doc` join in where they are installed. Where all of that is not
//! enough, the longest Markdown files are taken apart at their headings: still real text.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{env, fs};

use walkdir::WalkDir;

/// No document is larger: converting a whole book in a debug build takes longer than a test should.
const MAX_BYTES: u64 = 256 << 10;

/// A place where documents are found.
struct Source {
    /// What it is called in the corpus.
    name: &'static str,
    root: PathBuf,
    /// One document of it for every `stride`-th of the others: HTML is slow to convert.
    stride: usize,
}

/// A document: its place in the corpus, where it is, its size.
type Found = (PathBuf, PathBuf, u64);

/// Fills `dest` with `n` real documents, fewer where the machine has no more; returns how many it wrote.
///
/// The same machine gives the same documents in the same places, with their real names and directories. Two are
/// larger than 64 KiB where there are any, so that content too large for the journal's rows is among them.
pub(crate) fn documents(n: usize, dest: &Path) -> usize {
    let mut found: Vec<(usize, Found)> = Vec::new();
    for source in sources() {
        let here = find(&source).into_iter().enumerate();
        found.extend(here.map(|(i, document)| (i * source.stride, document)));
    }
    found.sort_by_key(|(turn, _)| *turn); // stable: within a turn, in the order of the sources
    let found: Vec<Found> = found.into_iter().map(|(_, document)| document).collect();

    let large = found.iter().filter(|(_, _, size)| *size > 64 << 10).take(2);
    let mut chosen: BTreeMap<&Path, Vec<u8>> = BTreeMap::new();
    for (name, path, _) in large.chain(&found) {
        if chosen.len() == n {
            break;
        }
        if !chosen.contains_key(&**name)
            && let Some(bytes) = read(path)
        {
            chosen.insert(name, bytes);
        }
    }
    for (name, bytes) in &chosen {
        write(&dest.join(name), bytes);
    }
    let missing = n.saturating_sub(chosen.len());
    chosen.len() + if missing > 0 { sections(&found, missing, dest) } else { 0 }
}

/// Writes up to `n` sections of the longest Markdown files; returns how many.
fn sections(found: &[Found], n: usize, dest: &Path) -> usize {
    let mut books: Vec<&Found> =
        found.iter().filter(|(name, ..)| name.extension().is_some_and(|ending| ending == "md")).collect();
    books.sort_by_key(|(_, _, size)| std::cmp::Reverse(*size));
    let mut written = 0;
    for (name, path, _) in books {
        let Some(text) = read(path) else { continue };
        for (i, section) in split(&String::from_utf8_lossy(&text)).iter().enumerate().skip(1) {
            if written == n {
                return written;
            }
            let place = Path::new("sections").join(name.with_extension(""));
            write(&dest.join(place).join(format!("{i:03}.md")), section.as_bytes());
            written += 1;
        }
    }
    written
}

/// A Markdown text in pieces, each but the first beginning with a heading.
fn split(text: &str) -> Vec<String> {
    let mut pieces = vec![String::new()];
    let mut fenced = false;
    for line in text.split_inclusive('\n') {
        fenced ^= line.trim_start().starts_with("```");
        if line.starts_with('#') && !fenced {
            pieces.push(String::new());
        }
        pieces.last_mut().expect("there is a first one").push_str(line);
    }
    pieces
}

/// Where documents may lie, the surest place first.
fn sources() -> Vec<Source> {
    let home = env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let cargo = env::var_os("CARGO_HOME").map_or_else(|| home.join(".cargo"), PathBuf::from);
    let mut sources = vec![
        Source { name: "registry", root: cargo.join("registry/src"), stride: 1 },
        Source { name: "doc", root: "/usr/share/doc".into(), stride: 2 },
    ];
    // Cargo tells a test which cargo runs it: the toolchain's books lie beside it.
    if let Some(toolchain) = env::var_os("CARGO").map(PathBuf::from).as_deref().and_then(|path| path.parent()?.parent())
    {
        let html = toolchain.join("share/doc/rust/html");
        for book in ["book", "cargo", "reference"] {
            sources.push(Source { name: book, root: html.join(book), stride: 24 });
        }
    }
    sources
}

/// The documents of a source in the order of their names.
fn find(source: &Source) -> Vec<Found> {
    let endings = ["md", "txt", "html", "htm"];
    // A build beside the tests may be unpacking crates: one that is there as a whole has this file.
    let is_whole = |entry: &walkdir::DirEntry| {
        source.name != "registry" || entry.depth() != 2 || entry.path().join(".cargo-ok").exists()
    };
    let files = WalkDir::new(&source.root).sort_by_file_name().into_iter().filter_entry(is_whole);
    files
        .filter_map(Result::ok)
        .filter(|entry| entry.file_type().is_file())
        .filter(|entry| {
            let ending = entry.path().extension().unwrap_or_default();
            endings.iter().any(|known| ending.eq_ignore_ascii_case(known))
        })
        .filter_map(|entry| {
            let size = entry.metadata().ok()?.len();
            let inside = entry.path().strip_prefix(&source.root).expect("it was found below the root");
            (size <= MAX_BYTES).then(|| (Path::new(source.name).join(inside), entry.path().to_owned(), size))
        })
        .collect()
}

/// None when somebody has removed it meanwhile.
fn read(path: &Path) -> Option<Vec<u8>> {
    match fs::read(path) {
        Ok(bytes) => Some(bytes),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => panic!("{}: {error}", path.display()),
    }
}

fn write(path: &Path, bytes: &[u8]) {
    let parent = path.parent().expect("a document lies in a directory");
    fs::create_dir_all(parent)
        .and_then(|()| fs::write(path, bytes))
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}
