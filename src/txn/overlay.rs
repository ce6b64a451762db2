//! What a transaction has staged, laid over the live tree: a tree of the paths it named.
//!
//! A path that is not named is inherited: it is what the live tree has at the place its directory came from. So a
//! moved directory needs no listing, and a transaction reads its own writes wherever they went.

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

use super::effect::Effect;
use crate::error::{Error, Result};
use crate::path::RelPath;

/// New bytes of a file.
#[derive(Clone, Debug)]
pub(crate) enum Bytes {
    /// In memory; they will ride in the write-ahead log.
    Inline(Arc<[u8]>),
    /// In the state directory's stage, under this name.
    Staged { name: String, area: i64, size: u64 },
}

impl Bytes {
    pub(crate) fn size(&self) -> u64 {
        match self {
            Self::Inline(bytes) => bytes.len() as u64,
            Self::Staged { size, .. } => *size,
        }
    }
}

/// A file as it will be.
#[derive(Clone, Debug)]
pub(crate) struct NewFile {
    pub(crate) bytes: Bytes,
    pub(crate) hash: [u8; 32],
    pub(crate) database: bool,
    /// The live file whose mode, owner and xattrs it takes over, in the tree as it was.
    pub(crate) like: Option<RelPath>,
}

/// Something published: where it lies until COMMIT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Published {
    pub(crate) source: PathBuf,
    pub(crate) directory: bool,
}

/// Where a directory's unnamed content comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The live directory at this path; none is the root.
    Live(Option<RelPath>),
    /// A directory from outside the tree.
    Published(Arc<Published>),
    /// Nothing: it is new.
    Fresh,
}

/// What the transaction puts at a path.
#[derive(Clone, Debug)]
pub(crate) enum Node {
    File(NewFile),
    Symlink(PathBuf),
    /// A live file or symlink from another path.
    Moved(RelPath),
    /// A file from outside the tree.
    Published(Arc<Published>),
    Dir(DirNode),
}

/// A directory in which something is named.
#[derive(Clone, Debug)]
pub(crate) struct DirNode {
    pub(crate) origin: Origin,
    names: BTreeMap<Vec<u8>, Entry>,
}

/// What is known of a name.
#[derive(Clone, Debug)]
struct Entry {
    /// What the name inherits was removed or moved away.
    lifted: bool,
    /// None: nothing is there.
    node: Option<Node>,
}

/// What a path shows to the transaction.
#[derive(Debug)]
pub(crate) enum View<'o> {
    /// Nothing, whatever the live tree has.
    Absent,
    /// What the live tree has at that path.
    Live(RelPath),
    /// What lies at a path outside the tree, to be published.
    Outside(PathBuf),
    /// What comes along with a directory that is published, if it is there.
    Along(PathBuf),
    /// A directory in which something is staged.
    Dir,
    /// A new file.
    File(&'o NewFile),
    /// A new symlink.
    Symlink,
}

impl Node {
    /// The live directory whose content this one inherits.
    pub(crate) fn live_origin(&self) -> Option<&RelPath> {
        match self {
            Node::Dir(DirNode { origin: Origin::Live(from), .. }) => from.as_ref(),
            _ => None,
        }
    }

    /// Cuts a directory, and those in it, off from live ones that do not exist.
    pub(crate) fn make_fresh(&mut self) {
        if let Node::Dir(dir) = self {
            let mut dirs = vec![dir];
            while let Some(dir) = dirs.pop() {
                // What only came along is cut off with it; what was moved in from elsewhere is not.
                let along: Vec<Option<Origin>> = dir.names.keys().map(|name| dir.inherited(name)).collect();
                dir.origin = Origin::Fresh;
                dirs.extend(dir.names.values_mut().zip(along).filter_map(|(entry, along)| match &mut entry.node {
                    Some(Node::Dir(inner)) if along.as_ref() == Some(&inner.origin) => Some(inner),
                    _ => None,
                }));
            }
        }
    }
}

impl DirNode {
    fn new(origin: Origin) -> Self {
        Self { origin, names: BTreeMap::new() }
    }

    /// What a name that is not mentioned stands for.
    fn inherited(&self, name: &[u8]) -> Option<Origin> {
        match &self.origin {
            Origin::Fresh => None,
            Origin::Live(at) => Some(Origin::Live(Some(RelPath::join(at.as_ref(), name)))),
            Origin::Published(published) => {
                let source = published.source.join(as_os(name));
                Some(Origin::Published(Arc::new(Published { source, directory: true })))
            }
        }
    }
}

fn as_os(name: &[u8]) -> &std::ffi::OsStr {
    std::os::unix::ffi::OsStrExt::from_bytes(name)
}

/// The overlay of one transaction.
#[derive(Debug)]
pub(crate) struct Overlay {
    root: DirNode,
}

impl Overlay {
    pub(crate) fn new() -> Self {
        Self { root: DirNode::new(Origin::Live(None)) }
    }

    /// What the transaction sees at a path.
    pub(crate) fn view(&self, path: &RelPath) -> Result<View<'_>> {
        let mut dir = &self.root;
        let mut rest = path.as_bytes();
        loop {
            let (name, behind) = match rest.iter().position(|&byte| byte == b'/') {
                Some(at) => (&rest[..at], Some(&rest[at + 1..])),
                None => (rest, None),
            };
            let last = behind.is_none();
            let Some(entry) = dir.names.get(name) else {
                return Ok(match &dir.origin {
                    Origin::Fresh => View::Absent,
                    // Nothing on the way was moved: it is where it always was.
                    Origin::Live(at)
                        if at.as_ref().map_or(0, |at| at.as_bytes().len() + 1) + rest.len()
                            == path.as_bytes().len()
                            && at.as_ref().is_none_or(|at| path.is_within(at)) =>
                    {
                        View::Live(path.clone())
                    }
                    Origin::Live(at) => View::Live(RelPath::join(at.as_ref(), rest)),
                    Origin::Published(published) => View::Along(published.source.join(as_os(rest))),
                });
            };
            match &entry.node {
                None => return Ok(View::Absent),
                Some(Node::Dir(_)) if last => return Ok(View::Dir),
                Some(Node::Dir(inner)) => dir = inner,
                Some(_) if !last => return Err(Error::NotADirectory { path: path.to_path_buf() }),
                Some(Node::File(file)) => return Ok(View::File(file)),
                Some(Node::Symlink(_)) => return Ok(View::Symlink),
                Some(Node::Moved(from)) => return Ok(View::Live(from.clone())),
                Some(Node::Published(published)) => return Ok(View::Outside(published.source.clone())),
            }
            match behind {
                Some(behind) => rest = behind,
                None => return Ok(View::Dir),
            }
        }
    }

    /// Puts something at a path. Directories on the way come into being; what a file replaces is judged at COMMIT.
    pub(crate) fn put(&mut self, path: &RelPath, node: Node) -> Result<()> {
        let (dir, name) = self.parent_of(path)?;
        let lifted = dir.names.get(&name).is_some_and(|entry| entry.lifted);
        dir.names.insert(name, Entry { lifted, node: Some(node) });
        Ok(())
    }

    /// Makes sure that a directory is at a path that shows none, or inherits one.
    pub(crate) fn put_directory(&mut self, path: &RelPath) -> Result<()> {
        let (dir, name) = self.parent_of(path)?;
        let inherited = dir.inherited(&name);
        let entry = dir.names.entry(name).or_insert(Entry { lifted: false, node: None });
        if !matches!(entry.node, Some(Node::Dir(_))) {
            let origin = if entry.lifted { Origin::Fresh } else { inherited.unwrap_or(Origin::Fresh) };
            entry.node = Some(Node::Dir(DirNode::new(origin)));
        }
        Ok(())
    }

    /// Takes what is at a path away, and answers it if it was staged.
    pub(crate) fn lift(&mut self, path: &RelPath) -> Result<Option<Node>> {
        let (dir, name) = self.parent_of(path)?;
        let old = dir.names.insert(name, Entry { lifted: true, node: None });
        Ok(old.and_then(|entry| entry.node))
    }

    /// A directory whose unnamed content is the live one's.
    pub(crate) fn moved_directory(from: RelPath) -> Node {
        Node::Dir(DirNode::new(Origin::Live(Some(from))))
    }

    /// A directory whose unnamed content comes from outside the tree.
    pub(crate) fn published_directory(published: Arc<Published>) -> Node {
        Node::Dir(DirNode::new(Origin::Published(published)))
    }

    fn parent_of(&mut self, path: &RelPath) -> Result<(&mut DirNode, Vec<u8>)> {
        let mut dir = &mut self.root;
        let mut names = path.names().peekable();
        loop {
            let Some(name) = names.next() else {
                // A RelPath has at least one name, so the loop below has returned by now.
                return Err(Error::BadPath { path: path.to_path_buf(), reason: "it is empty" });
            };
            if names.peek().is_none() {
                return Ok((dir, name.to_vec()));
            }
            let lifted = match dir.names.get(name) {
                Some(Entry { node: None, lifted }) => Some(*lifted),
                None => Some(false),
                Some(_) => None,
            };
            if let Some(lifted) = lifted {
                let inherited = if lifted { None } else { dir.inherited(name) };
                let node = Node::Dir(DirNode::new(inherited.unwrap_or(Origin::Fresh)));
                dir.names.insert(name.to_vec(), Entry { lifted, node: Some(node) });
            }
            match dir.names.get_mut(name).and_then(|entry| entry.node.as_mut()) {
                Some(Node::Dir(inner)) => dir = inner,
                _ => return Err(Error::NotADirectory { path: path.to_path_buf() }),
            }
        }
    }

    /// The names in stages that this overlay's files have.
    pub(crate) fn staged_names(&self) -> Vec<(i64, String)> {
        let staged = |effect: Effect| match effect {
            Effect::File(_, NewFile { bytes: Bytes::Staged { name, area, .. }, .. }) => Some((area, name)),
            _ => None,
        };
        self.effects().into_iter().filter_map(staged).collect()
    }

    /// The final effects: one a path, in the order in which they can be carried out. See [`super::effect`].
    pub(crate) fn effects(&self) -> Vec<Effect> {
        let mut lifted = Vec::new();
        let mut placed = Vec::new();
        collect(&self.root, None, &mut lifted, &mut placed);
        // A move lifts its origin itself.
        let moved: HashSet<&RelPath> = placed.iter().filter_map(Effect::moved_from).collect();
        lifted.retain(|path| !moved.contains(path));
        // Deepest first: what lies in a directory is lifted out of it before the directory itself goes.
        lifted.sort_by(|a, b| b.cmp(a));
        lifted.into_iter().map(Effect::Lift).chain(placed).collect()
    }
}

fn collect(dir: &DirNode, at: Option<&RelPath>, lifted: &mut Vec<RelPath>, placed: &mut Vec<Effect>) {
    for (name, entry) in &dir.names {
        let path = RelPath::join(at, name);
        if entry.lifted
            && let Some(Origin::Live(Some(from))) = dir.inherited(name)
        {
            lifted.push(from);
        }
        match &entry.node {
            None => {}
            Some(Node::File(file)) => placed.push(Effect::File(path, file.clone())),
            Some(Node::Symlink(target)) => placed.push(Effect::Symlink(path, target.clone())),
            // Renamed and renamed back: it never moved.
            Some(Node::Moved(from)) if dir.inherited(name) == Some(Origin::Live(Some(from.clone()))) => {
                lifted.retain(|lifted| lifted != from);
            }
            Some(Node::Moved(from)) => placed.push(Effect::Move { from: from.clone(), to: path }),
            Some(Node::Published(published)) => placed.push(Effect::Publish(Arc::clone(published), path)),
            Some(Node::Dir(inner)) => {
                let inherits = dir.inherited(name);
                match &inner.origin {
                    // It came along with its parent, or back to it.
                    origin if inherits.as_ref() == Some(origin) => {
                        if let Origin::Live(Some(from)) = origin {
                            lifted.retain(|lifted| lifted != from);
                        }
                        placed.push(Effect::Directory(path.clone()));
                    }
                    Origin::Live(Some(from)) => {
                        placed.push(Effect::Move { from: from.clone(), to: path.clone() });
                    }
                    Origin::Published(published) => {
                        placed.push(Effect::Publish(Arc::clone(published), path.clone()));
                    }
                    Origin::Live(None) | Origin::Fresh => placed.push(Effect::Directory(path.clone())),
                }
                collect(inner, Some(&path), lifted, placed);
            }
        }
    }
}
