//! Keeps the shape of the house: what the compiler and clippy cannot see. A failure names file and line.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use walkdir::WalkDir;

/// The floors, ground first: a module may use those of lower floors.
const FLOORS: &[&[&str]] = &[
    &["error", "fault", "id", "time", "wait"],
    &["codec", "path"],
    &["fs"],
    &["store", "tree"],
    &["lock"],
    &["blob", "journal", "outbox", "run"],
    &["txn"],
    &["recovery", "history", "inspect"],
    &["engine", "options"],
    &["testing", "fuzz"],
];

/// What may be used on one's own floor, and by whom. It must stay free of circles.
const NEIGHBOURS: &[(&str, &str)] = &[("error", "id"), ("wait", "error"), ("wait", "time"), ("engine", "options")];

const LONGEST_FILE: usize = 500;

/// Directories that are no part of the source.
const NOT_SOURCE: &[&str] = &["target", ".git", ".journal", "corpus", "artifacts", "coverage"];

struct Source {
    /// Relative to the repository.
    name: String,
    text: String,
}

impl Source {
    /// Numbered from 1.
    fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        (1..).zip(self.text.lines())
    }

    /// What is compiled into the library or the command: no comments, and nothing from the tests at the end on.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let tests = self.text.match_indices("#[cfg(test)]").find(|(at, _)| {
            let attributed = self.text[*at..].lines().find(|line| !line.trim_start().starts_with("#["));
            attributed.is_some_and(|line| line.starts_with("mod "))
        });
        let tests = tests.map_or(usize::MAX, |(at, _)| self.text[..at].lines().count());
        let tests = if self.name.ends_with("/tests.rs") { 0 } else { tests };
        self.lines().take_while(move |(n, _)| *n <= tests).filter(|(_, line)| !line.trim_start().starts_with("//"))
    }

    fn is_library(&self) -> bool {
        self.name.starts_with("src/") && !self.name.starts_with("src/bin/")
    }
}

fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every text file below `directory`.
fn sources(directory: &str) -> Vec<Source> {
    let root = repository();
    // In a second worktree `.git` is a file.
    let ours = |entry: &walkdir::DirEntry| {
        entry.file_name() != ".git" && entry.file_type().is_file()
            || NOT_SOURCE.iter().all(|name| entry.file_name() != *name)
    };
    let files = WalkDir::new(root.join(directory)).sort_by_file_name().into_iter().filter_entry(ours);
    let files = files.map(Result::unwrap).filter(|entry| entry.file_type().is_file());
    let source = |entry: walkdir::DirEntry| {
        let name = entry.path().strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
        // What is not UTF-8 is not text.
        fs::read_to_string(entry.path()).ok().map(|text| Source { name, text })
    };
    let found: Vec<_> = files.filter_map(source).collect();
    found
}

fn rust(directory: &str) -> Vec<Source> {
    sources(directory).into_iter().filter(|source| source.name.ends_with(".rs")).collect()
}

/// Fails with all of `faults`, one a line.
fn none(rule: &str, faults: impl IntoIterator<Item = String>) {
    let faults = faults.into_iter().fold(String::new(), |mut all, fault| {
        writeln!(all, "  {fault}").unwrap();
        all
    });
    assert!(faults.is_empty(), "{rule}:\n{faults}");
}

/// The module of a file below src/: `src/fs/sync.rs` and `src/fs.rs` are both `fs`.
fn module(name: &str) -> &str {
    let name = name.trim_start_matches("src/").trim_end_matches(".rs");
    name.split('/').next().unwrap()
}

fn floor(module: &str) -> Option<usize> {
    FLOORS.iter().position(|floor| floor.contains(&module))
}

/// The modules that a text names as `crate::module` or inside `crate::{…}`, each with where it stands.
fn uses(text: &str) -> Vec<(usize, String)> {
    let word = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut found = Vec::new();
    for (at, key) in text.match_indices("crate::") {
        if text[..at].ends_with(|c: char| c == '$' || c == '_' || c.is_alphanumeric()) {
            continue;
        }
        let rest = &text[at + key.len()..];
        let Some(group) = rest.strip_prefix('{') else {
            found.push((at, word(rest)));
            continue;
        };
        let (mut depth, mut starts) = (0_usize, true);
        for (n, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => starts = true,
                c if starts && depth == 0 && !c.is_whitespace() => {
                    found.push((at, word(&group[n..])));
                    starts = false;
                }
                _ => {}
            }
        }
    }
    found
}

#[test]
fn uses_are_read_from_single_paths_and_from_groups() {
    let text = "use crate::fs::Root;\nuse crate::{id::{A, B}, error::Error,\n    time};\npub(crate) fn x() { $crate::no(); crate::codec::y() }";
    let found: Vec<_> = uses(text).into_iter().map(|(_, module)| module).collect();
    assert_eq!(found, ["fs", "id", "error", "time", "codec"]);
}

#[test]
fn modules_use_only_lower_floors() {
    let mut faults = Vec::new();
    for source in rust("src").iter().filter(|source| source.is_library() && source.name != "src/lib.rs") {
        let user = module(&source.name);
        let Some(own) = floor(user) else {
            faults.push(format!("{}: `{user}` stands on no floor of tests/it/tidy.rs", source.name));
            continue;
        };
        let code: Vec<_> = source.code().map(|(n, line)| (n, line.to_owned())).collect();
        let text = code.iter().map(|(_, line)| line.as_str()).collect::<Vec<_>>().join("\n");
        for (at, used) in uses(&text) {
            let line = code[text[..at].lines().count().max(1) - 1].0;
            let allowed =
                used == user || NEIGHBOURS.contains(&(user, &used)) || floor(&used).is_some_and(|floor| floor < own);
            if !allowed {
                faults.push(format!("{}:{line}: `{user}` may not use `crate::{used}`", source.name));
            }
        }
    }
    none("a use points to a lower floor, or to a neighbour that is named", faults);
}

#[test]
fn neighbours_form_no_circle() {
    let mut open = NEIGHBOURS.to_vec();
    // Take away, again and again, what nobody uses: a circle is what remains.
    loop {
        let used: Vec<_> = open.iter().map(|(_, used)| *used).collect();
        let before = open.len();
        open.retain(|(user, _)| used.contains(user));
        if open.len() == before {
            break;
        }
    }
    assert_eq!(open, [], "a circle");
    for (user, used) in NEIGHBOURS {
        assert_eq!((floor(user).is_some(), floor(user)), (true, floor(used)), "{user} and {used} are no neighbours");
    }
}

#[test]
fn files_are_short() {
    let long = rust("").into_iter().filter(|source| source.text.lines().count() > LONGEST_FILE);
    none(
        &format!("a file has at most {LONGEST_FILE} lines"),
        long.map(|source| format!("{}: {} lines", source.name, source.text.lines().count())),
    );
}

#[test]
fn nothing_is_left_open() {
    // Put together, or this file would find itself.
    let words = ["TO\u{44}O", "FIX\u{4d}E", "X\u{58}X:", "to\u{64}o!", "unimplemente\u{64}!", "db\u{67}!"];
    let faults = sources("").into_iter().flat_map(|source| {
        let found = |(n, line): (usize, &str)| {
            words.iter().find(|word| line.contains(**word)).map(|word| format!("{}:{n}: {word}", source.name))
        };
        source.lines().filter_map(found).collect::<Vec<_>>()
    });
    none("what is not done is an issue, not a comment", faults);
}

#[test]
fn the_library_neither_panics_by_habit_nor_prints() {
    let habits = [".unwrap()", "println!", "eprintln!", "print!", "eprint!", "panic!", "std::process::exit"];
    // What is for tests fails as tests do.
    let sources = rust("src").into_iter().filter(|source| source.is_library() && source.name != "src/testing.rs");
    let faults = sources.flat_map(|source| {
        let found = |(n, line): (usize, &str)| {
            habits.iter().find(|word| line.contains(**word)).map(|word| format!("{}:{n}: {word}", source.name))
        };
        source.code().filter_map(found).collect::<Vec<_>>()
    });
    none("errors are returned, and `tracing` says the rest", faults);
}

#[test]
fn bincode_is_named_in_one_file() {
    let others = rust("src").into_iter().filter(|source| source.name != "src/codec.rs");
    let faults = others.flat_map(|source| {
        source
            .code()
            .filter(|(_, line)| line.contains("bincode"))
            .map(|(n, _)| format!("{}:{n}", source.name))
            .collect::<Vec<_>>()
    });
    none("only codec.rs names bincode", faults);
}

#[test]
fn one_floor_changes_files_and_one_file_makes_its_calls() {
    // What std offers for this, clippy.toml bans.
    let calls = [
        "rename",
        "link",
        "unlink",
        "mkdir",
        "symlink",
        "ftruncate",
        "fchmod",
        "chmod",
        "fchown",
        "chown",
        "futimens",
        "utimensat",
        "fsync",
        "fdatasync",
        "syncfs",
        "copy_file_range",
        "fallocate",
        "fsetxattr",
        "setxattr",
        "lsetxattr",
        "removexattr",
        "fremovexattr",
        "lremovexattr",
        "ioctl_ficlone",
    ];
    let calls: Vec<_> = calls.iter().map(|call| format!("rustix::fs::{call}")).collect();
    let io = ["rustix::io::write", "rustix::io::pwrite"].map(str::to_owned);
    let open = ["rustix::fs::open".to_owned()];
    let faults = rust("src").into_iter().filter(Source::is_library).flat_map(|source| {
        let of_fs: &[String] = if module(&source.name) == "fs" { &[] } else { &open };
        let of_calls: &[String] = if source.name == "src/fs/calls.rs" { &[] } else { &calls };
        let found = |(n, line): (usize, &str)| {
            let mut all = of_fs.iter().chain(of_calls).chain(io.iter().filter(|_| !of_calls.is_empty()));
            all.find(|call| line.contains(call.as_str())).map(|call| format!("{}:{n}: {call}", source.name))
        };
        source.code().filter_map(found).collect::<Vec<_>>()
    });
    none("only `fs` opens files, and only its calls.rs changes them", faults);
}

#[test]
fn no_test_file_is_forgotten() {
    let main = fs::read_to_string(repository().join("tests/it/main.rs")).unwrap();
    let mut faults = Vec::new();
    for entry in fs::read_dir(repository().join("tests/it")).unwrap() {
        let path = entry.unwrap().path();
        let is_module = path.extension().is_some_and(|ending| ending == "rs") || path.join("mod.rs").exists();
        let name = path.file_stem().unwrap().to_str().unwrap();
        if is_module
            && name != "main"
            && !main.lines().any(|line| line.trim_start_matches("pub ") == format!("mod {name};"))
        {
            faults.push(format!("tests/it/main.rs: no `mod {name};` for {}", path.display()));
        }
    }
    none("every file of tests/it is a module of its main.rs", faults);
}

#[test]
fn tests_skip_in_one_way() {
    let mark = ["SK", "IP:"].concat();
    let others = ["src", "tests"].into_iter().flat_map(rust).filter(|source| source.name != "tests/it/skip.rs");
    let faults = others.flat_map(|source| {
        source
            .lines()
            .filter(|(_, line)| line.contains(&mark))
            .map(|(n, _)| format!("{}:{n}", source.name))
            .collect::<Vec<_>>()
    });
    none("a test skips by `crate::skip::skip`, which fails in CI", faults);
}

#[test]
fn the_readme_has_the_commands_that_ci_runs() {
    let readme = fs::read_to_string(repository().join("README.md")).unwrap();
    let ci = fs::read_to_string(repository().join(".ci/run")).unwrap();
    for name in ["test", "main", "look"] {
        let block =
            readme.split_once(&format!("<!-- ci:{name} -->\n```sh\n")).and_then(|(_, rest)| rest.split_once("```"));
        let (commands, _) =
            block.unwrap_or_else(|| panic!("README.md: no ```sh block right behind <!-- ci:{name} -->"));
        assert!(commands.lines().any(|line| line.starts_with("cargo ")), "README.md, ci:{name}: {commands}");
        assert!(ci.contains(&format!("readme {name}")), ".ci/run does not run the block ci:{name} of README.md");
        let words: Vec<_> = commands.split_whitespace().collect();
        for pair in words.windows(2) {
            let exists = |directory: &str| {
                let path = repository().join(directory).join(pair[1]);
                path.join("main.rs").exists() || path.with_extension("rs").exists()
            };
            match pair[0] {
                "--example" => assert!(exists("examples"), "README.md, ci:{name}: no example {}", pair[1]),
                "--bin" => assert!(exists("src/bin"), "README.md, ci:{name}: no binary {}", pair[1]),
                _ => {}
            }
        }
    }
}

#[test]
fn no_path_of_one_machine_is_written_down() {
    let places = ["root", "work", "home", "Users"].map(|name| format!("/{name}/"));
    let faults =
        sources("").into_iter().filter(|source| !Path::new(&source.name).ends_with("Cargo.lock")).flat_map(|source| {
            let found = |(n, line): (usize, &str)| {
                places
                    .iter()
                    .find(|place| line.contains(place.as_str()))
                    .map(|place| format!("{}:{n}: {place}", source.name))
            };
            source.lines().filter_map(found).collect::<Vec<_>>()
        });
    none("a file of the repository does not know where it lies", faults);
}
