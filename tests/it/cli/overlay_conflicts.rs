//! What others do to the tree while a command works over an overlay: never lost, and a conflict where both did something to the
//! same path.

use std::fs;
use std::path::Path;

use super::overlay::{Home, Who, as_everybody};
use super::{Ran, cli};

#[test]
fn what_others_did_to_the_same_paths_is_a_conflict_and_the_work_is_kept() {
    type Hand = fn(&Home);
    // Of what it did not touch before, an overlay of an ordinary user's does not know where it came from.
    const BY_ORIGIN: [&str; 2] = ["they remove what it writes to", "they exchange the directory"];
    let cases: &[(&str, &str, Hand)] = &[
        ("both write to it", "echo mine >> wiki/page1.md", |home| append(&home.path("wiki/page1.md"))),
        ("they replace what it writes to", "echo mine >> wiki/page1.md", |home| replace(&home.path("wiki/page1.md"))),
        ("they write to what it replaces", "echo mine > t; mv t wiki/page1.md", |home| {
            append(&home.path("wiki/page1.md"))
        }),
        ("they write to what it removes", "rm wiki/page1.md", |home| append(&home.path("wiki/page1.md"))),
        ("they remove what it writes to", "echo mine >> wiki/page1.md", |home| {
            fs::remove_file(home.path("wiki/page1.md")).unwrap();
        }),
        ("both make it", "echo mine > wiki/new.md", |home| fs::write(home.path("wiki/new.md"), "theirs").unwrap()),
        ("they put something where it removes all", "rm -r wiki/deep", |home| {
            fs::write(home.path("wiki/deep/theirs"), "theirs").unwrap();
        }),
        ("they put something where it makes it anew", "rm -r wiki/deep; mkdir wiki/deep", |home| {
            fs::write(home.path("wiki/deep/theirs"), "theirs").unwrap();
        }),
        ("they write to something in what it renames", "mv wiki/deep wiki/deeper", |home| {
            append(&home.path("wiki/deep/page.md"));
        }),
        ("they exchange the directory", "echo mine >> wiki/deep/page.md", |home| {
            fs::rename(home.path("wiki/deep"), home.path("wiki/was")).unwrap();
            fs::rename(home.path("old"), home.path("wiki/deep")).unwrap();
        }),
        ("they put a file where its directory is", "echo mine >> wiki/deep/page.md", |home| {
            fs::remove_dir_all(home.path("wiki/deep")).unwrap();
            fs::write(home.path("wiki/deep"), "theirs").unwrap();
        }),
        ("both close the directory", "chmod 711 wiki/deep", |home| {
            let closed = std::os::unix::fs::PermissionsExt::from_mode(0o700);
            fs::set_permissions(home.path("wiki/deep"), closed).unwrap();
        }),
    ];
    as_everybody(|home| {
        for (what, script, hand) in cases {
            if home.who == Who::Nobody && BY_ORIGIN.contains(what) {
                continue;
            }
            let home = Home::of(home.who);
            fs::create_dir(home.path("old")).unwrap();
            fs::write(home.path("old/page.md"), "deep\n").unwrap();
            home.give_away();
            let running = home.start(&["--isolate", "overlay"], &format!("{script}; echo more > wiki/elsewhere"));
            hand(&home);
            let theirs = home.manifest();
            let ran = home.go_on(running);
            assert_eq!(ran.code, Some(1), "{what}: {ran:?}");
            assert_eq!(home.manifest(), theirs, "{what}");
            let kept = ran.err.lines().find_map(|line| line.split_once(" is in ")).expect(&ran.err).1;
            assert_eq!(fs::read_to_string(Path::new(kept).join("wiki/elsewhere")).unwrap(), "more\n", "{what}");
            let status: Ran = cli(&["status", "--json", "--root"]).arg(home.kb.path()).output().unwrap().into();
            assert!(status.out.contains("\"set-aside\"") && status.out.contains(kept), "{what}: {}", status.out);
            // The next one finds nothing in its way, and what was kept stays.
            home.give_away();
            home.over("echo again > wiki/page1.md").says_nothing();
            assert!(Path::new(kept).join("wiki/elsewhere").exists(), "{what}");
        }
    });
}

pub(super) fn append(path: &Path) {
    use std::io::Write;
    fs::OpenOptions::new().append(true).open(path).unwrap().write_all(b"theirs\n").unwrap();
}

fn replace(path: &Path) {
    let beside = path.with_extension("theirs");
    fs::write(&beside, "theirs").unwrap();
    fs::rename(beside, path).unwrap();
}

#[test]
fn what_others_did_beside_it_stays() {
    as_everybody(|home| {
        let running =
            home.start(&["--isolate", "overlay"], "echo mine > wiki/page1.md; echo n > wiki/new; echo x > wiki/deep/x");
        append(&home.path("wiki/page2.md"));
        replace(&home.path("wiki/deep/page.md"));
        fs::write(home.path("wiki/theirs"), "theirs").unwrap();
        fs::remove_file(home.path("wiki/page3.md")).unwrap();
        fs::create_dir(home.path("wiki/their-dir")).unwrap();
        let time = fs::metadata(home.path("wiki")).unwrap().modified().unwrap();
        let ran = home.go_on(running);
        assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""));
        assert_eq!(home.read("wiki/page1.md"), "mine\n");
        assert_eq!(home.read("wiki/page2.md"), "the page 2\ntheirs\n");
        assert_eq!(home.read("wiki/deep/page.md"), "theirs");
        assert_eq!((home.read("wiki/theirs").as_str(), home.read("wiki/deep/x").as_str()), ("theirs", "x\n"));
        assert!(home.path("wiki/their-dir").is_dir() && !home.path("wiki/page3.md").exists());
        // Who goes by its time sees that something came.
        assert!(fs::metadata(home.path("wiki")).unwrap().modified().unwrap() >= time);
    });
}

#[test]
fn what_a_mirror_links_to_has_no_other_name() {
    as_everybody(|home| {
        if home.who == Who::Nobody {
            // The mirror is made by this process.
            return;
        }
        let journal = journal_kb::Journal::open(home.kb.path()).unwrap();
        let mut txn = journal.begin("").unwrap();
        txn.guard_with(journal_kb::Guard::tree("wiki").replacing()).unwrap();
        txn.rollback().unwrap();
        home.over("echo more >> wiki/page1.md; mv wiki/page2.md wiki/moved.md").says_nothing();
        assert_eq!(home.read("wiki/page1.md"), "the page 1\nmore\n");
        let mut txn = journal.begin("").unwrap();
        txn.guard_with(journal_kb::Guard::tree("wiki").replacing()).unwrap();
        fs::remove_dir_all(home.path("wiki")).unwrap();
        txn.rollback().unwrap();
        assert_eq!(home.read("wiki/page1.md"), "the page 1\nmore\n");
        assert_eq!(home.read("wiki/moved.md"), "the page 2\n");
        journal.close().unwrap();
    });
}

#[test]
fn one_of_several_names_is_not_written_to_behind_the_others() {
    as_everybody(|home| {
        fs::hard_link(home.path("wiki/page1.md"), home.path("outside")).unwrap();
        let before = home.manifest();
        for script in ["echo more >> wiki/page1.md", "chmod 600 wiki/page1.md"] {
            let ran = home.exec(&["--isolate", "overlay", "--guard", "wiki"], script);
            assert_eq!(ran.code, Some(1), "{script}: {ran:?}");
            assert!(ran.err.contains("other names"), "{}", ran.err);
            assert_eq!(home.manifest(), before);
        }
        home.exec(&["--guard", "wiki"], "cat wiki/page1.md; rm wiki/page1.md").says_nothing();
        assert_eq!(home.read("outside"), "the page 1\n");
    });
}
