//! What has to be so of all blobs of a journal, whatever was done with them and whoever died of it.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::path::Path;

use journal_kb::rusqlite::{Connection, Row};
use journal_kb::{BlobId, Journal};

/// What a sealed blob says.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Sealed {
    pub(crate) id: String,
    /// How often it was sealed, and not removed.
    pub(crate) times: u64,
    pub(crate) hash: Vec<u8>,
}

/// All blobs that are sealed.
pub(crate) fn sealed(root: &Path) -> Vec<Sealed> {
    let database = database(root);
    let all = |sql: &str, row: fn(&Row<'_>) -> rusqlite::Result<Sealed>| {
        let mut all = database.prepare(sql).unwrap();
        all.query_map((), row).unwrap().collect::<Result<Vec<_>, _>>().unwrap()
    };
    let mut sealed = all("SELECT hash, direct FROM journal_blob_content WHERE direct > 0", |row| {
        let hash: Vec<u8> = row.get(0)?;
        let id = format!("blake3:{}", blake3::Hash::from_slice(&hash).unwrap().to_hex());
        Ok(Sealed { id, times: row.get(1)?, hash })
    });
    sealed.extend(all(
        "SELECT b.id, c.hash FROM journal_blob b JOIN journal_blob_content c ON c.id = b.content WHERE b.state = 'sealed'",
        |row| Ok(Sealed { id: row.get(0)?, times: 1, hash: row.get(1)? }),
    ));
    sealed.sort();
    sealed
}

fn database(root: &Path) -> Connection {
    Connection::open(root.join(".journal/journal.db")).unwrap()
}

/// What is wrong with a journal that somebody has recovered and nobody uses: after settling it, sealed blobs that are not whole,
/// files that no row names, rows that should have gone.
pub(crate) fn wrong(root: &Path) -> Vec<String> {
    let journal = Journal::open(root).unwrap();
    let mut wrong: Vec<String> = journal.settle().err().map(|error| format!("settling: {error}")).into_iter().collect();
    for Sealed { id, hash, .. } in sealed(root) {
        let mut bytes = Vec::new();
        let opened = journal.blobs().opener().verify(true).open(&id);
        let read = opened
            .map_err(|error| error.to_string())
            .and_then(|mut blob| blob.read_to_end(&mut bytes).map_err(|error| error.to_string()));
        match read {
            Err(error) => wrong.push(format!("{id} is sealed, and not whole: {error}")),
            Ok(_) if *blake3::hash(&bytes).as_bytes() != hash[..] => wrong.push(format!("{id} says something else")),
            Ok(_) => {}
        }
    }
    journal.close().unwrap();
    wrong.extend(untidy(root));
    wrong
}

/// What of rows and files does not go together.
fn untidy(root: &Path) -> Vec<String> {
    let database = database(root);
    let lines = |sql: &str| {
        let mut lines = database.prepare(sql).unwrap();
        lines.query_map((), |row| row.get::<_, String>(0)).unwrap().collect::<Result<BTreeSet<_>, _>>().unwrap()
    };
    let odd = lines(
        "SELECT 'content ' || id || ' is ' || state || ', said ' || direct || ' and ' || named || ' times'
           FROM journal_blob_content c
           WHERE direct + named < 1 OR state NOT IN ('inline', 'placed') OR (state = 'inline') <> (name IS NULL)
             OR named <> (SELECT count(*) FROM journal_blob b WHERE b.content = c.id AND b.state = 'sealed')
         UNION ALL SELECT 'blob ' || id || ' is ' || state FROM journal_blob
           WHERE state = 'writing' OR session IS NOT NULL OR (state = 'sealed') <> (content IS NOT NULL)",
    );
    let rows = lines("SELECT id || '.' || name FROM journal_blob_content WHERE name IS NOT NULL");
    let files: BTreeSet<String> = ["blobs", "stage"]
        .iter()
        .flat_map(|dir| fs::read_dir(root.join(".journal").join(dir)).into_iter().flatten())
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let files =
        files.symmetric_difference(&rows).map(|name| format!("a file without a row, or a row without a file: {name}"));
    odd.into_iter().chain(files).collect()
}

/// What a blob is called that is called by its content.
pub(crate) fn by_content(content: &[u8]) -> BlobId {
    BlobId::new(&format!("blake3:{}", blake3::hash(content).to_hex())).unwrap()
}
