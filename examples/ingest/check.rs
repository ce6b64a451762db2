//! Whether tree and rows agree: every file that the rows speak of is there, byte for byte, and no other.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};

use blake3::{Hash, Hasher};
use walkdir::WalkDir;

use crate::kb::Kb;
use crate::{Result, index};

/// Compares all of a knowledge base; how many documents it has, and a line for each thing that is not as it should be.
pub(crate) fn check(kb: &Kb) -> Result<(usize, Vec<String>)> {
    let txn = kb.journal.begin("check")?; // for its lock: nobody changes anything meanwhile
    let root = kb.journal.root();
    let mut findings = Vec::new();
    let (documents, mut missing) = expected(kb, &mut findings)?;
    let files: BTreeSet<PathBuf> = missing.keys().cloned().collect();
    let directories: BTreeSet<&Path> = files.iter().flat_map(|file| file.ancestors().skip(1)).collect();
    for own in ["raw", "pages", "index", index::TOP].map(|own| root.join(own)) {
        let there = own.symlink_metadata().is_ok();
        for entry in WalkDir::new(own).sort_by_file_name().into_iter().filter(|_| there) {
            let entry = entry?;
            let path = entry.path().strip_prefix(root)?;
            let known = match entry.file_type() {
                kind if kind.is_dir() => directories.contains(path) && !entry.path_is_symlink(),
                kind => kind.is_file() && files.contains(path),
            };
            if !known {
                findings.push(format!("{}: no row knows it", path.display()));
            } else if entry.file_type().is_file() && missing.remove(path) != Some(hash(entry.path())?) {
                findings.push(format!("{}: its bytes are not what the rows say", path.display()));
            }
        }
    }
    findings.extend(missing.keys().map(|path| format!("{}: missing", path.display())));
    drop(txn);
    Ok((documents, findings))
}

/// How many documents there are, and every file that follows from their rows, with the hash of its bytes.
fn expected(kb: &Kb, findings: &mut Vec<String>) -> Result<(usize, BTreeMap<PathBuf, Hash>)> {
    let (documents, orphans) = kb.journal.read(|rows| {
        let documents = rows.query_map("SELECT id, hash, title, raw, page FROM document", (), |row| {
            let text = |column| row.get::<_, String>(column);
            Ok((row.get::<_, i64>(0)?, text(1)?, text(2)?, text(3)?, text(4)?))
        })?;
        let orphans = "SELECT rowid FROM document_fts WHERE rowid NOT IN (SELECT id FROM document)";
        Ok((documents, rows.query_map(orphans, (), |row| row.get::<_, i64>(0))?))
    })?;
    findings.extend(orphans.iter().map(|id| format!("document {id}: search knows it, but there is no such row")));
    let count = documents.len();

    let mut files = BTreeMap::new();
    let mut shards = BTreeMap::<String, Vec<_>>::new();
    for (id, hash, title, raw, page) in documents {
        let sql = "SELECT text FROM document_fts WHERE rowid = ?1 AND title = ?2";
        match kb.journal.read(|rows| rows.query_opt(sql, (id, &title), |row| row.get::<_, String>(0)))? {
            Some(text) => _ = files.insert(PathBuf::from(&page), blake3::hash(text.as_bytes())),
            None => findings.push(format!("document {id}: search does not know it, or by another title")),
        }
        files.insert(PathBuf::from(raw), Hash::from_hex(hash)?);
        shards.entry(index::shard(&page)).or_default().push((title, page));
    }
    if count > 0 {
        let counts = shards.iter().map(|(shard, pages)| (shard.clone(), pages.len() as i64)).collect();
        files.insert(PathBuf::from(index::TOP), blake3::hash(index::top(&counts).as_bytes()));
    }
    for (shard, pages) in shards {
        files.insert(PathBuf::from(index::path(&shard)), blake3::hash(index::list(&shard, pages).as_bytes()));
    }
    Ok((count, files))
}

fn hash(path: &Path) -> Result<Hash> {
    Ok(Hasher::new().update_reader(File::open(path)?)?.finalize())
}
