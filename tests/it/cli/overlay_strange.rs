//! What a stranger found in `exec` over an overlay: each was once wrong.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use journal_kb::Journal;

use super::exec::{has, wait_until};
use super::overlay::{Home, Who, as_everybody};
use super::{Ran, cli};
use crate::skip::skip;

fn set(path: &Path, name: &str, value: &str) {
    rustix::fs::setxattr(path, name, value.as_bytes(), rustix::fs::XattrFlags::empty()).unwrap();
}

fn get(path: &Path, name: &str) -> Option<String> {
    let mut value = vec![0; 256];
    let length = rustix::fs::getxattr(path, name, &mut value).ok()?;
    Some(String::from_utf8(value[..length].to_vec()).unwrap())
}

#[test]
fn what_looks_like_a_note_of_overlayfs_is_the_users_own() {
    as_everybody(|home| {
        for name in ["opaque", "redirect", "origin", "foo"] {
            set(&home.path("wiki"), &format!("user.overlay.{name}"), "y");
            set(&home.path("wiki/page1.md"), &format!("user.overlay.{name}"), "y");
        }
        home.over("echo x > wiki/new; echo y >> wiki/page1.md; chmod 705 wiki/deep").says_nothing();
        assert_eq!((home.read("wiki/new").as_str(), home.read("wiki/page2.md").as_str()), ("x\n", "the page 2\n"));
        for path in ["wiki", "wiki/page1.md"] {
            for name in ["opaque", "redirect", "origin", "foo"] {
                let found = get(&home.path(path), &format!("user.overlay.{name}"));
                assert_eq!(found.as_deref(), Some("y"), "{path} {name}");
            }
        }
        if has("python3") {
            let own = "python3 -c \"import os; os.setxattr('wiki/page3.md', 'user.overlay.mine', b'1')\"";
            home.over(own).says_nothing();
            assert_eq!(get(&home.path("wiki/page3.md"), "user.overlay.mine").as_deref(), Some("1"));
        }
    });
}

#[test]
fn a_directory_of_many_files_takes_no_descriptor_for_each() {
    as_everybody(|home| {
        let limited = |script: &str| -> Ran {
            let mut exec = home.command(&["--isolate", "overlay"], script);
            let words: Vec<_> = exec.get_args().map(ToOwned::to_owned).collect();
            let program = exec.get_program().to_owned();
            let mut sh = Command::new("sh");
            sh.args(["-c", "ulimit -n 700; exec \"$0\" \"$@\""]).arg(program).args(words).current_dir(home.kb.path());
            home.as_owner(&mut sh);
            exec.current_dir("/");
            sh.output().unwrap().into()
        };
        limited(
            "mkdir many; cd many; for n in $(seq 1500); do : > $n; done; for n in $(seq 900); do mkdir w$n; : > w$n/f; done; \
                 mkdir deep; cd deep; for n in $(seq 300); do mkdir d; cd d; done",
        )
        .says_nothing();
        limited("mv many more").says_nothing();
        limited("rm -r more; mkdir z; cd z; for n in $(seq 1500); do : > $n; done").says_nothing();
        assert_eq!(fs::read_dir(home.path("z")).unwrap().count(), 1500);
        assert!(!home.path("more").exists());
        assert_eq!(limited("mkdir y; cd y; for n in $(seq 1500); do : > $n; done; exit 3").code, Some(3));
        assert_eq!(fs::read_dir(home.path(".journal/stage")).unwrap().count(), 0);
    });
}

#[test]
fn what_cannot_be_replaced_leaves_all_of_the_work_where_it_is_said_to_be() {
    if !rustix::process::geteuid().is_root() || !has("chattr") {
        return skip("this needs root, and chattr");
    }
    let home = Home::of(Who::Me);
    let chattr = |how: &str| Command::new("chattr").arg(how).arg(home.path("log.md")).status().unwrap().success();
    if !chattr("+a") {
        return skip("this needs a filesystem with append-only files");
    }
    let before = home.manifest();
    let ran = home.over("echo more >> log.md; echo new > wiki/new; mkdir nd; echo z > nd/z; rm wiki/page2.md");
    let refused = home.exec(&["--append", "log.md"], "true");
    assert!(chattr("-a"));
    assert_eq!(ran.code, Some(1), "{ran:?}");
    let kept = ran.err.lines().find_map(|line| line.split_once(" is in ")).expect(&ran.err).1;
    for (path, bytes) in [("log.md", "# Log\nmore\n"), ("wiki/new", "new\n"), ("nd/z", "z\n")] {
        assert_eq!(fs::read_to_string(Path::new(kept).join(path)).unwrap(), bytes, "{path}");
    }
    assert_eq!(home.manifest(), before);
    assert!(refused.code == Some(125) && refused.err.contains("append-only"), "{refused:?}");
}

#[test]
fn what_was_put_back_has_the_names_it_had() {
    as_everybody(|home| {
        let links = || fs::metadata(home.path("wiki/page1.md")).unwrap().nlink();
        let mut journal = Journal::open(home.kb.path()).unwrap();
        for round in 0..2 {
            home.give_away();
            let mut txn = journal.begin("").unwrap();
            let layer = txn.layer("wiki", [""; 0]).unwrap();
            // As overlayfs writes it: one file renamed, another replaced.
            fs::copy(home.path("wiki/page1.md"), layer.upper().join("moved.md")).unwrap();
            fs::write(layer.upper().join("page2.md"), "other").unwrap();
            txn.absorb(&[layer]).unwrap();
            fs::rename(home.path("wiki/page1.md"), home.path("wiki/again.md")).unwrap();
            fs::rename(home.path("wiki/again.md"), home.path("wiki/page1.md")).unwrap();
            txn.rollback().unwrap();
            assert_eq!(links(), 1, "{round}");
            let mut txn = journal.begin("").unwrap();
            txn.guard_with(journal_kb::Guard::paths(["wiki/page1.md", "wiki/d", "wiki/d/in"]).replacing()).unwrap();
            fs::create_dir(home.path("wiki/d")).unwrap();
            fs::rename(home.path("wiki/page1.md"), home.path("wiki/d/in")).unwrap();
            txn.rollback().unwrap();
            assert_eq!(links(), 1, "{round}");
            journal.close().unwrap();
            journal = Journal::open(home.kb.path()).unwrap();
        }
        journal.close().unwrap();
    });
}

#[test]
fn the_tree_is_reached_through_the_overlay_only() {
    if !rustix::process::geteuid().is_root() {
        return skip("this mounts, which needs root");
    }
    let home = Home::of(Who::Me);
    let alias = home.beside.path().join("alias");
    fs::create_dir(&alias).unwrap();
    let mounted = Command::new("mount").arg("--bind").arg(home.kb.path()).arg(&alias).status().unwrap();
    assert!(mounted.success());
    let before = home.manifest();
    for dir in [alias.clone(), alias.join("wiki")] {
        let ran = home
            .command(&["--isolate", "overlay"], "echo live > page1.md; echo live > wiki/page1.md; exit 1")
            .current_dir(&dir)
            .status();
        assert_eq!((ran.unwrap().code(), home.manifest()), (Some(1), before.clone()), "{}", dir.display());
    }
    Command::new("umount").arg(&alias).status().unwrap();
    // A name that leads elsewhere guards nothing.
    std::os::unix::fs::symlink("wiki", home.path("link")).unwrap();
    for how in ["overlay", "baseline"] {
        let ran = home.exec(&["--isolate", how, "--guard", "link"], "echo bad > link/page1.md");
        assert!(ran.code == Some(125) && ran.err.contains("symlink"), "{ran:?}");
    }
    assert_eq!(home.read("wiki/page1.md"), "the page 1\n");
}

#[test]
fn a_command_whose_parent_was_killed_keeps_what_it_works_on() {
    as_everybody(|home| {
        let script = "echo > $BESIDE/begun; while [ ! -e $BESIDE/go ]; do sleep 0.01; done; \
                      ls wiki/page1.md > $BESIDE/seen; echo two > wiki/two || echo failed >> $BESIDE/seen";
        let mut running = home.command(&["--isolate", "overlay"], script).spawn().unwrap();
        wait_until("the command", || home.beside.path().join("begun").exists());
        running.kill().unwrap();
        running.wait().unwrap();
        let recovered: Ran = cli(&["recover", "--root"]).arg(home.kb.path()).output().unwrap().into();
        assert!(!recovered.out.contains("swept"), "{recovered:?}");
        fs::write(home.beside.path().join("go"), "").unwrap();
        let seen = home.beside.path().join("seen");
        wait_until("the command's end", || {
            let journal = Journal::open(home.kb.path()).unwrap();
            journal.recover().unwrap();
            fs::read_dir(home.path(".journal/stage")).unwrap().count() == 0
        });
        assert_eq!(fs::read_to_string(seen).unwrap(), "wiki/page1.md\n");
        assert!(!home.path("wiki/two").exists());
    });
}

#[test]
fn what_is_ignored_stays_so_and_what_is_closed_is_committed() {
    as_everybody(|home| {
        let words = home.command(&[], "kill -HUP $$; echo survived");
        let mut nohup = Command::new("sh");
        nohup.args(["-c", "trap '' HUP; exec \"$0\" \"$@\""]).arg(words.get_program()).args(words.get_args());
        home.as_owner(nohup.current_dir(home.kb.path()));
        let ran: Ran = nohup.output().unwrap().into();
        assert_eq!((ran.code, ran.out.as_str()), (Some(0), "survived\n"), "{}", ran.err);
        for how in ["overlay", "baseline"] {
            let script = "mkdir cl; echo x > cl/x; chmod 000 cl; echo x > f; chmod 000 f";
            let ran = home.exec(&["--isolate", how], script);
            assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""), "{how}");
            for path in ["cl", "f"] {
                fs::set_permissions(home.path(path), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
            }
            fs::remove_dir_all(home.path("cl")).unwrap();
            fs::remove_file(home.path("f")).unwrap();
        }
        let nowhere = tempfile::tempdir().unwrap();
        let ran: Ran = cli(&["exec", "--", "true"]).current_dir(nowhere.path()).output().unwrap().into();
        assert_eq!(ran.code, Some(125), "{ran:?}");
        home.exec(&["--db", "wiki/new.db"], "echo x > wiki/page1.md").says_nothing();
    });
}

#[test]
fn the_stage_of_a_state_directory_elsewhere_is_not_seen() {
    let home = Home::of(Who::Me);
    let shm = Path::new("/dev/shm");
    if !shm.is_dir() || fs::metadata(shm).unwrap().dev() == fs::metadata(home.kb.path()).unwrap().dev() {
        return skip("this needs a second filesystem in /dev/shm");
    }
    let state = tempfile::tempdir_in(shm).unwrap();
    fs::remove_dir_all(home.path(".journal")).unwrap();
    let state_dir = ["--state-dir", state.path().to_str().unwrap()];
    let init: Ran = cli(&["init", "--root"]).arg(home.kb.path()).args(state_dir).output().unwrap().into();
    assert_eq!(init.code, Some(0), "{init:?}");
    let options = [&["--isolate", "overlay"], &state_dir[..]].concat();
    let ran = home.exec(&options, "find . > /dev/null && [ -z \"$(ls -A .journal-stage)\" ] && echo x > wiki/page1.md");
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""), "{}", ran.out);
    assert_eq!(home.read("wiki/page1.md"), "x\n");
}
