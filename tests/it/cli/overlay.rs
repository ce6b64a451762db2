//! `exec` over an overlay: nobody sees what the command does before it has ended well, then all of it is there, whatever it
//! was; and what others did meanwhile is never lost. As root and as an ordinary user.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use journal_kb::{Begin, Error, Journal};
use tempfile::TempDir;

use super::exec::{has, kb, wait_until};
use super::{Ran, cli};
use crate::guard::full;
use crate::overlay_model::{SEEN, said};
use crate::skip::skip;
use crate::support::child;

/// Who owns nothing on this machine.
const NOBODY: u32 = 65534;

/// Who runs a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Who {
    Me,
    Nobody,
}

/// A root of somebody's, and a directory beside it for what tests say to each other.
pub(super) struct Home {
    pub(super) kb: TempDir,
    pub(super) beside: TempDir,
    pub(super) who: Who,
}

impl Home {
    pub(super) fn of(who: Who) -> Self {
        let (kb, beside) = (kb(), tempfile::tempdir().unwrap());
        let home = Self { kb, beside, who };
        home.give_away();
        home
    }

    /// What was put there by hand is that user's too.
    pub(super) fn give_away(&self) {
        if self.who == Who::Nobody {
            for entry in [self.kb.path(), self.beside.path()].into_iter().flat_map(walkdir::WalkDir::new) {
                std::os::unix::fs::lchown(entry.unwrap().path(), Some(NOBODY), Some(NOBODY)).unwrap();
            }
        }
    }

    pub(super) fn path(&self, path: &str) -> PathBuf {
        self.kb.path().join(path)
    }

    pub(super) fn read(&self, path: &str) -> String {
        fs::read_to_string(self.path(path)).unwrap()
    }

    pub(super) fn command(&self, options: &[&str], script: &str) -> Command {
        let mut exec = cli(&["exec", "--root"]);
        exec.arg(self.kb.path()).args(options).args(["--", "sh", "-c", script]).current_dir(self.kb.path());
        exec.env("BESIDE", self.beside.path()).env("KB", self.kb.path()).env("HOME", self.beside.path());
        self.as_owner(&mut exec);
        exec
    }

    pub(super) fn as_owner(&self, command: &mut Command) {
        if self.who == Who::Nobody {
            command.uid(NOBODY).gid(NOBODY);
        }
    }

    pub(super) fn exec(&self, options: &[&str], script: &str) -> Ran {
        self.command(options, script).output().unwrap().into()
    }

    /// Over an overlay, or not at all.
    pub(super) fn over(&self, script: &str) -> Ran {
        self.exec(&["--isolate", "overlay"], script)
    }

    /// Starts a command that says so, and waits at its end until it is told to go on.
    pub(super) fn start(&self, options: &[&str], script: &str) -> Child {
        let script = format!("{script}; echo > $BESIDE/begun; while [ ! -e $BESIDE/go ]; do sleep 0.01; done");
        let mut command = self.command(options, &script);
        let running = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        wait_until("the command", || self.beside.path().join("begun").exists());
        running
    }

    pub(super) fn go_on(&self, running: Child) -> Ran {
        fs::write(self.beside.path().join("go"), "").unwrap();
        let ran = running.wait_with_output().unwrap().into();
        for name in ["begun", "go"] {
            fs::remove_file(self.beside.path().join(name)).unwrap();
        }
        ran
    }

    pub(super) fn manifest(&self) -> String {
        said(&full(self.kb.path()))
    }
}

/// Runs a test as everybody that can run it here.
pub(super) fn as_everybody(test: impl Fn(&Home)) {
    if !rustix::process::geteuid().is_root() {
        skip("as root: this is none");
        return as_one(Who::Me, test);
    }
    as_one(Who::Me, &test);
    as_one(Who::Nobody, &test);
}

fn as_one(who: Who, test: impl Fn(&Home)) {
    let home = Home::of(who);
    let ran = home.over("true");
    if ran.code != Some(0) {
        return skip(&format!("this needs overlays, and namespaces for {who:?}: {}", ran.err));
    }
    test(&home);
}

#[test]
fn the_tree_becomes_what_the_command_saw_last() {
    if !has("python3") {
        return skip("this needs python3");
    }
    as_everybody(|home| {
        let long = "n".repeat(255);
        let root = home.who == Who::Me;
        home.exec(&["--isolate", "baseline"], "mkdir -p a/inner b c/deep d e f x; echo 1 > a/1; echo 2 > a/inner/2; echo 3 > b/3; \
            echo 4 > c/deep/4; echo 5 > d/5; echo 6 > e/6; ln -s 1 a/link; echo 7 > f/7; echo 8 > f/8; echo 9 > file; echo x > x/x");
        let script = format!(
            "set -e
            rm wiki/page1.md; echo new > wiki/page1.md                    # removed, and made anew
            rm -r c; mkdir c; echo other > c/other                        # opaque
            {swap}
            rm -r d; echo now a file > d; rm file; mkdir file; echo in > file/in
            chmod 711 e; rm e/6; touch -d 2001-02-03T04:05:06.123456789 e wiki/page2.md; chmod 4755 wiki/page3.md
            rm a/link; ln -s /no/where a/link; ln -s gone wiki/dangling
            ln wiki/page4.md wiki/second; ln wiki/page4.md wiki/third; ln wiki/page10.md wiki/tenth; chmod 607 wiki/page10.md
            truncate -s 5M wiki/sparse; echo end >> wiki/sparse
            echo x > wiki/{long}; mkdir -p wiki/empty/in/it; mkfifo wiki/fifo
            mv f/7 f/moved; : > f/emptied; cat f/8 >> f/8b; mv wiki/page5.md x/x
            python3 - <<'END'
import os
os.setxattr('wiki/page6.md', 'user.said', b'by the command')
open(b'wiki/not\\xffutf8', 'w').write('x')
open('wiki/page7.md', 'a').close()
with open('wiki/page8.md', 'r+') as f: f.write('THE')
END",
            swap = if root {
                "python3 -c \"import os; os.rename('a', 't'); os.rename('b', 'a'); os.rename('t', 'b'); \
                 os.rename('b/inner', 'moved')\"; echo in the moved > moved/m; echo 33 > a/3"
            } else {
                "mv a t; mv b a; mv t b; mv b/inner moved; echo in the moved > moved/m; echo 33 > a/3"
            }
        );
        let script = script.replace("rm a/link; ln -s /no/where a/link", "rm b/link; ln -s /no/where b/link");
        let seen = home.beside.path().join("seen");
        let manifest = child("overlay_model::the_manifest", home.kb.path());
        let words: Vec<_> = [manifest.get_program()].into_iter().chain(manifest.get_args()).collect();
        let words: Vec<_> = words.iter().map(|word| word.to_str().unwrap()).collect();
        let mut exec = home.command(&["--isolate", "overlay"], &format!("{script}\n{}", words.join(" ")));
        exec.envs(manifest.get_envs().filter_map(|(name, value)| Some((name, value?)))).env(SEEN, &seen);
        let inode = |path: &str| fs::metadata(home.path(path)).unwrap().ino();
        let (untouched, opened) = (inode("b/3"), inode("wiki/page7.md"));
        let ran: Ran = exec.output().unwrap().into();
        assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""), "{}", ran.out);
        let (is, was) = (home.manifest(), fs::read_to_string(&seen).unwrap());
        // Who made the namespace is not told the same inode for all names of a file; that it is one, is looked at below.
        let told = |line: &str| if root { line.to_owned() } else { line.rsplit_once(" [").unwrap().0.to_owned() };
        let different: Vec<_> = is.lines().zip(was.lines()).filter(|(is, was)| told(is) != told(was)).collect();
        assert_eq!((different, is.lines().count()), (vec![], was.lines().count()));
        // What overlayfs writes down for itself has not come along.
        for entry in walkdir::WalkDir::new(home.kb.path()) {
            let mut names = vec![0; 4096];
            let length = rustix::fs::llistxattr(entry.unwrap().path(), &mut names).unwrap();
            assert!(!String::from_utf8_lossy(&names[..length]).contains("overlay"));
        }
        let ids = |paths: [&str; 3]| paths.map(|path| inode(&format!("wiki/{path}")));
        let [one, two, three] = ids(["page4.md", "second", "third"]);
        assert_eq!([one, one], [two, three]);
        assert_eq!(inode("wiki/page10.md"), inode("wiki/tenth"));
        assert!(fs::metadata(home.path("wiki/sparse")).unwrap().blocks() < 1000);
        // Opened to be written to, and not written to.
        assert_eq!(inode("wiki/page7.md"), opened);
        if root {
            // What a renamed directory brings along is not copied.
            assert_ne!(inode("a/3"), untouched);
            assert_eq!(fs::read(home.path("moved/2")).unwrap(), b"2\n");
        }
    });
}

#[test]
fn nobody_sees_it_before_it_has_ended_well() {
    as_everybody(|home| {
        let before = home.manifest();
        let script = "cd wiki; rm page1.md; echo x > page2.md; mkdir ../more; echo y > deep/y; \
                      [ -z \"$(ls -A $KB/.journal)\" ] || exit 9";
        let running = home.start(&["--isolate", "overlay"], script);
        assert_eq!(home.manifest(), before);
        home.go_on(running).says_nothing();
        assert_eq!((home.read("wiki/page2.md").as_str(), home.read("wiki/deep/y").as_str()), ("x\n", "y\n"));
        let after = home.manifest();
        for (end, code) in [("exit 3", 3), ("kill -9 $$", 137), ("no-such-command", 127)] {
            let ran = home.over(&format!("rm -r wiki more; mkdir wiki; echo > wiki/x; {end}"));
            assert_eq!(ran.code, Some(code), "{}", ran.err);
            assert_eq!(home.manifest(), after);
        }
        // One that wants the journal finds none, rather than a copy of its own.
        let nested = format!("{} --root . status", env!("CARGO_BIN_EXE_journalctl-kb"));
        assert_eq!(home.over(&nested).code, Some(1));
    });
}

impl Ran {
    pub(super) fn says_nothing(&self) {
        assert_eq!((self.code, self.err.as_str()), (Some(0), ""));
    }
}

#[test]
fn a_journal_within_the_tree_is_left_alone() {
    as_everybody(|home| {
        Journal::open(home.path("wiki/deep")).unwrap().close().unwrap();
        home.give_away();
        home.over("echo fine > wiki/page1.md; ls wiki/deep/.journal > /dev/null").says_nothing();
        let before = full(home.kb.path());
        for script in [
            "echo x >> wiki/deep/.journal/journal.db",
            "rm -r wiki/deep",
            "mv wiki/deep wiki/deeper",
            "mkdir -p wiki/x/.journal",
        ] {
            let ran = home.over(script);
            assert_eq!(ran.code, Some(1), "{script}: {ran:?}");
            assert!(ran.err.contains("a journal of its own"), "{}", ran.err);
            assert_eq!(full(home.kb.path()), before, "{script}");
        }
        assert!(home.path("wiki/deep/.journal/journal.db").exists());
    });
}

#[test]
fn appended_files_are_seen_through_and_cut_off() {
    as_everybody(|home| {
        let options = ["--isolate", "overlay", "--append", "log.md"];
        let inode = fs::metadata(home.path("log.md")).unwrap().ino();
        let running = home.start(&options, "echo line >> log.md; echo x > wiki/page1.md");
        assert_eq!(home.read("log.md"), "# Log\nline\n");
        super::overlay_conflicts::append(&home.path("log.md"));
        assert_eq!(home.read("wiki/page1.md"), "the page 1\n");
        home.go_on(running).says_nothing();
        assert_eq!(
            (home.read("log.md").as_str(), home.read("wiki/page1.md").as_str()),
            ("# Log\nline\ntheirs\n", "x\n")
        );
        let before = home.manifest();
        assert_eq!(home.exec(&options, "echo lost >> log.md; rm wiki/page1.md; exit 7").code, Some(7));
        assert_eq!(home.manifest(), before);
        assert_eq!(fs::metadata(home.path("log.md")).unwrap().ino(), inode);
        // One that is not there yet is made in the overlay, like any file.
        home.exec(&["--append", "new.md"], "echo first >> new.md").says_nothing();
        assert_eq!(home.read("new.md"), "first\n");
    });
}

#[test]
fn files_and_missing_paths_are_guarded_beside_the_overlay() {
    as_everybody(|home| {
        let options = [
            "--guard",
            "wiki",
            "--guard",
            "log.md",
            "--guard",
            "new",
            "--guard",
            "wiki/deep",
            "--guard",
            "wiki/page1.md",
        ];
        let before = home.manifest();
        let script = "mkdir new; echo n > new/n; echo more >> log.md; echo x > wiki/page1.md; echo y > wiki/deep/y";
        assert_eq!(home.exec(&options, &format!("{script}; false")).code, Some(1));
        assert_eq!(home.manifest(), before);
        home.exec(&options, script).says_nothing();
        assert_eq!((home.read("new/n").as_str(), home.read("log.md").as_str()), ("n\n", "# Log\nmore\n"));
        assert_eq!((home.read("wiki/page1.md").as_str(), home.read("wiki/deep/y").as_str()), ("x\n", "y\n"));
    });
}

#[test]
fn everything_it_started_is_over_before_anything_is_decided() {
    if !has("setsid") {
        return skip("this needs setsid");
    }
    as_everybody(|home| {
        // Gone from its session, and with no descriptor of whoever started it.
        let daemon = "trap '' HUP TERM; for fd in 3 4 5 6 7 8 9; do eval \"exec $fd>&-\"; done; while :; do echo x >> wiki/endless; \
                      echo x >> $BESIDE/endless; sleep 0.01; done";
        let ran = home.over(&format!(
            "setsid sh -c '{daemon}' > /dev/null 2>&1 < /dev/null & exit 0",
            daemon = daemon.replace('\'', "'\\''")
        ));
        assert_eq!(ran.code, Some(0), "{}", ran.err);
        let sizes = || ["wiki/endless"].map(|path| home.read(path).len() as u64);
        let beside = || fs::metadata(home.beside.path().join("endless")).unwrap().len();
        let (ended, outside) = (sizes(), beside());
        std::thread::sleep(Duration::from_millis(200));
        assert_eq!((sizes(), beside()), (ended, outside));
        assert!(ended[0] > 0);
    });
}

#[test]
fn process_one_killed_ends_all_and_nothing_is_kept() {
    as_everybody(|home| {
        let before = home.manifest();
        let running = home.start(&["--isolate", "overlay"], "echo half > wiki/page1.md");
        let init = fs::read_to_string(format!("/proc/{0}/task/{0}/children", running.id())).unwrap();
        let init = rustix::process::Pid::from_raw(init.trim().parse().unwrap()).unwrap();
        rustix::process::kill_process(init, rustix::process::Signal::KILL).unwrap();
        let ran = home.go_on(running);
        assert_eq!(ran.code, Some(137), "{}", ran.err);
        assert_eq!(home.manifest(), before);
    });
}

#[test]
fn others_who_use_the_journal_are_refused_the_paths_meanwhile() {
    as_everybody(|home| {
        let journal = Journal::open(home.kb.path()).unwrap();
        home.give_away();
        let running = home.start(&["--isolate", "overlay", "--guard", "wiki"], "echo half > wiki/page1.md");
        let mut txn = journal.begin_with(Begin::new("theirs").lock("other")).unwrap();
        txn.write("wiki/page2.md", b"theirs").unwrap();
        let refused = txn.commit();
        assert!(matches!(refused, Err(Error::PathBusy { .. })), "{refused:?}");
        let mut txn = journal.begin_with(Begin::new("theirs").lock("other")).unwrap();
        txn.write("beside.md", b"theirs").unwrap();
        txn.commit().unwrap();
        let refused = home.exec(&["--lock", "third", "--guard", "wiki/deep"], "true");
        assert!(refused.code == Some(125) && refused.err.contains("is guarded by"), "{refused:?}");
        let status: Ran = cli(&["status", "--json", "--root"]).arg(home.kb.path()).output().unwrap().into();
        assert!(status.out.contains("\"layer\""), "{}", status.out);
        home.go_on(running).says_nothing();
        assert_eq!((home.read("wiki/page1.md").as_str(), home.read("beside.md").as_str()), ("half\n", "theirs"));
        journal.close().unwrap();
    });
}

#[test]
fn without_overlays_it_says_so_and_works_on_the_files() {
    if !rustix::process::geteuid().is_root() {
        return skip("this mounts, which needs root");
    }
    // An overlay is no place for the upper layer of another.
    let (below, at) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for dir in ["lower/kb/wiki", "upper", "work"] {
        fs::create_dir_all(below.path().join(dir)).unwrap();
    }
    fs::write(below.path().join("lower/kb/wiki/page.md"), "page\n").unwrap();
    let options =
        ["lower", "upper", "work"].map(|dir| format!("{dir}dir={}", below.path().join(dir).display())).join(",");
    let mounted =
        Command::new("mount").args(["-t", "overlay", "overlay", "-o", &options]).arg(at.path()).output().unwrap();
    if !mounted.status.success() {
        return skip("this needs overlays");
    }
    let kb = at.path().join("kb");
    Journal::open(&kb).unwrap().close().unwrap();
    let exec = |how: &str, script: &str| -> Ran {
        let mut exec = cli(&["exec", "--isolate", how, "--root"]);
        exec.arg(&kb).args(["--", "sh", "-c", script]).current_dir(&kb).output().unwrap().into()
    };
    let refused = exec("overlay", "echo x > wiki/page.md");
    let (fell_back, failed) = (exec("auto", "echo y > wiki/page.md"), exec("auto", "rm -r wiki; exit 3"));
    let told = fs::read_to_string(kb.join("wiki/page.md"));
    Command::new("umount").arg(at.path()).status().unwrap();
    assert!(refused.code == Some(125) && refused.err.contains("--isolate baseline"), "{refused:?}");
    assert!(fell_back.code == Some(0) && fell_back.err.contains("works on the files themselves"), "{fell_back:?}");
    assert_eq!((failed.code, told.unwrap().as_str()), (Some(3), "y\n"), "{failed:?}");
}

#[test]
fn a_path_with_any_byte_can_be_laid_over() {
    as_everybody(|home| {
        let odd = std::ffi::OsStr::from_bytes(b"a,b:c\\d e\"\xff");
        let dir = home.kb.path().join(odd);
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("page"), "page\n").unwrap();
        home.give_away();
        let exec = home.command(&["--isolate", "overlay"], "true");
        let words: Vec<_> = exec.get_args().map(ToOwned::to_owned).collect();
        let dash = words.iter().position(|word| word == "--").unwrap();
        let program = exec.get_program().to_owned();
        let mut with_guard = Command::new(program);
        with_guard.args(&words[..dash]).arg("--guard").arg(odd).args([
            "--",
            "sh",
            "-c",
            "echo x > \"$0\"/page; cd \"$0\"; echo y > y",
        ]);
        with_guard.arg(odd).current_dir(home.kb.path());
        home.as_owner(&mut with_guard);
        let ran: Ran = with_guard.output().unwrap().into();
        assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""));
        assert_eq!(
            fs::read_to_string(dir.join("page")).unwrap() + &fs::read_to_string(dir.join("y")).unwrap(),
            "x\ny\n"
        );
    });
}
