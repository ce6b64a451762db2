//! What a tree should be: paths and what lies there, and what each operation makes of them.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::input::Input;

/// A small name space, so that operations meet.
pub(crate) const NAMES: [&str; 12] = ["a", "b", "c", "d", "d/a", "d/b", "d/e", "d/e/a", "d/e/b", "f", "f/a", "f/e"];

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Node {
    Directory,
    File(Vec<u8>),
    Link(String),
}

/// One operation on a tree.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    Write(&'static str, Vec<u8>),
    Remove(&'static str),
    RemoveDirAll(&'static str),
    Rename(&'static str, &'static str),
    CreateDirAll(&'static str),
    Symlink(String, &'static str),
}

impl Op {
    pub(crate) fn read(input: &mut Input<'_>, unique: &str) -> Self {
        let (path, other) = (*input.one(&NAMES), *input.one(&NAMES));
        match input.byte() % 12 {
            0..=2 => Self::Write(path, unique.as_bytes().to_vec()),
            // Longer than what rides in the journal.
            3 => Self::Write(path, unique.repeat(20).into_bytes()),
            4 => Self::Remove(path),
            5 => Self::RemoveDirAll(path),
            6..=8 => Self::Rename(path, other),
            9 => Self::CreateDirAll(path),
            10 => Self::Symlink(unique.to_owned(), path),
            _ => Self::Write(path, Vec::new()),
        }
    }

    /// True when it needs nothing but the paths it names, and changes nothing below them.
    pub(crate) fn is_of_single_files(&self, tree: &Tree) -> bool {
        match self {
            Self::RemoveDirAll(_) => false,
            Self::Rename(from, _) => tree.0.get(*from) != Some(&Node::Directory),
            _ => true,
        }
    }

    /// True when it takes one call that changes the tree, so that nobody is killed in the middle of it.
    pub(crate) fn is_one_call(&self, tree: &Tree) -> bool {
        let (path, parts) = match self {
            Self::Write(path, _) | Self::Remove(path) | Self::Symlink(_, path) | Self::Rename(_, path) => (path, 1),
            Self::CreateDirAll(path) => (path, 1),
            Self::RemoveDirAll(path) => (path, tree.below(path).len()),
        };
        parts == 1 && Tree::above(path).all(|above| tree.0.get(above) == Some(&Node::Directory))
    }

    pub(crate) fn is_within(&self, top: &str) -> bool {
        let within = |path: &str| Path::new(path).starts_with(top) && path != top;
        match self {
            Self::Write(path, _) | Self::Remove(path) | Self::RemoveDirAll(path) => within(path),
            Self::CreateDirAll(path) | Self::Symlink(_, path) => within(path),
            Self::Rename(from, to) => within(from) && within(to),
        }
    }
}

/// What lies where, relative to the root.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tree(pub(crate) BTreeMap<String, Node>);

impl Tree {
    /// What lies below a root, but for the engine's own.
    pub(crate) fn read(root: &Path) -> Self {
        let walk = walkdir::WalkDir::new(root).min_depth(1).into_iter();
        let entries = walk.filter_entry(|entry| entry.file_name() != ".journal").map(|entry| {
            let entry = entry.unwrap();
            let node = if entry.file_type().is_dir() {
                Node::Directory
            } else if entry.file_type().is_symlink() {
                Node::Link(fs::read_link(entry.path()).unwrap().to_str().unwrap().to_owned())
            } else {
                Node::File(fs::read(entry.path()).unwrap())
            };
            (entry.path().strip_prefix(root).unwrap().to_str().unwrap().to_owned(), node)
        });
        Self(entries.collect())
    }

    fn above(path: &str) -> impl Iterator<Item = &str> {
        path.match_indices('/').map(|(at, _)| &path[..at])
    }

    /// True when everything above the path is a directory, or missing from some point on.
    fn on_directories(&self, path: &str) -> bool {
        Self::above(path).all(|above| matches!(self.0.get(above), None | Some(Node::Directory)))
    }

    /// True when no symlink lies on the way.
    pub(crate) fn is_straight(&self, path: &str) -> bool {
        !Self::above(path).any(|above| matches!(self.0.get(above), Some(Node::Link(_))))
    }

    fn put(&mut self, path: &str, node: Node) {
        for above in Self::above(path) {
            self.0.entry(above.to_owned()).or_insert(Node::Directory);
        }
        self.0.insert(path.to_owned(), node);
    }

    fn below(&self, path: &str) -> Vec<String> {
        let inside = format!("{path}/");
        self.0.keys().filter(|name| *name == path || name.starts_with(&inside)).cloned().collect()
    }

    /// Carries an operation out if the rules allow it, and says whether they do.
    pub(crate) fn apply(&mut self, op: &Op) -> bool {
        let found = |path: &str| if self.on_directories(path) { self.0.get(path).cloned() } else { None };
        let free = |path: &str| self.on_directories(path) && self.0.get(path) != Some(&Node::Directory);
        match op {
            Op::Write(path, bytes) if free(path) => self.put(path, Node::File(bytes.clone())),
            Op::Symlink(target, path) if free(path) => self.put(path, Node::Link(target.clone())),
            Op::Remove(path) if matches!(found(path), Some(Node::File(_) | Node::Link(_))) => {
                self.0.remove(*path);
            }
            Op::RemoveDirAll(path) if found(path) == Some(Node::Directory) => {
                for gone in self.below(path) {
                    self.0.remove(&gone);
                }
            }
            Op::CreateDirAll(path) => {
                let there = self.0.get(*path);
                if !self.on_directories(path) || there.is_some_and(|node| *node != Node::Directory) {
                    return false;
                }
                self.put(path, Node::Directory);
            }
            Op::Rename(from, to) => {
                let Some(what) = found(from) else { return false };
                if from == to {
                    return true;
                }
                let onto = self.0.get(*to);
                let refused = onto == Some(&Node::Directory) || what == Node::Directory && onto.is_some();
                if Path::new(to).starts_with(from) || refused || !self.on_directories(to) {
                    return false;
                }
                let moved: Vec<_> = self.below(from).into_iter().map(|name| (self.0.remove(&name), name)).collect();
                for (node, name) in moved {
                    self.put(&format!("{to}{}", &name[from.len()..]), node.unwrap());
                }
            }
            _ => return false,
        }
        true
    }

    /// Says where another tree differs.
    pub(crate) fn differences(&self, found: &Tree) -> String {
        let shown = |node: Option<&Node>| match node {
            Some(Node::File(bytes)) => format!("a file {:?}", String::from_utf8_lossy(&bytes[..bytes.len().min(24)])),
            Some(node) => format!("{node:?}"),
            None => "nothing".to_owned(),
        };
        let mut all: Vec<_> = self.0.keys().chain(found.0.keys()).collect();
        all.sort();
        all.dedup();
        all.retain(|path| self.0.get(*path) != found.0.get(*path));
        let told = all
            .iter()
            .map(|path| format!("{path}: {} where {} should be", shown(found.0.get(*path)), shown(self.0.get(*path))));
        told.collect::<Vec<_>>().join("; ")
    }
}
