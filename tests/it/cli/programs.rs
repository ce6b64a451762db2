//! `exec` with real programs, over an overlay and on the files themselves, as root and as an ordinary user: what they do is kept
//! when they end well, and undone when they do not.

use std::process::{Command, Stdio};

use super::exec::has;
use super::overlay::{Home, Who};
use crate::overlay_model::said;
use crate::skip::skip;

/// A program's work.
struct Work {
    /// What has to be there for it.
    needs: &'static str,
    /// Made beforehand, by whoever runs it.
    before: &'static str,
    script: &'static str,
    /// Holds afterwards, in the root.
    then: &'static str,
}

const WORK: &[Work] = &[
    Work {
        needs: "sed",
        before: "",
        script: "sed -i 's/the/THE/; $a more' wiki/*.md wiki/deep/*.md",
        then: "[ \"$(cat wiki/page7.md)\" = \"THE page 7\nmore\" ] && [ \"$(cat wiki/deep/page.md)\" = \"deep\nmore\" ] && ! ls -A wiki | grep '^sed'",
    },
    Work {
        needs: "git",
        before: "git init -q $BESIDE/origin && cd $BESIDE/origin && for n in $(seq 40); do mkdir -p d$n && seq $n > d$n/f; done && \
                 ln -s d1/f link && git add . && git -c user.name=x -c user.email=x@x commit -qm all",
        script: "git clone -q $BESIDE/origin wiki/clone && cd wiki/clone && git -c user.name=x -c user.email=x@x commit -q --allow-empty -m more && \
                 git mv d1 moved && git gc -q",
        then: "cd wiki/clone && [ \"$(git status --porcelain)\" = \"R  d1/f -> moved/f\" ] && git fsck --strict && \
               [ $(git log --oneline | wc -l) = 2 ] && [ $(seq 40 | md5sum | cut -c1-32) = $(md5sum < d40/f | cut -c1-32) ]",
    },
    Work {
        needs: "rsync",
        before: "mkdir -p $BESIDE/from/in && cp -p wiki/page1.md $BESIDE/from && for n in $(seq 50); do echo $n > $BESIDE/from/in/$n; done && \
                 ln $BESIDE/from/in/1 $BESIDE/from/in/one && ln -s in/1 $BESIDE/from/link && touch -d 2001-01-01 $BESIDE/from/in",
        script: "rsync -aH --delete $BESIDE/from/ wiki/ && rsync -aH --inplace --delete $BESIDE/from/ again/",
        then: "[ -z \"$(rsync -aHni --delete $BESIDE/from/ wiki/)\" ] && [ -z \"$(rsync -aHni --delete $BESIDE/from/ again/)\" ] && \
               [ wiki/in/1 -ef wiki/in/one ] && [ ! -e wiki/page2.md ]",
    },
    Work {
        needs: "sqlite3",
        before: "sqlite3 wiki/index.db 'PRAGMA journal_mode=wal; CREATE TABLE page (name); INSERT INTO page VALUES (1);' > /dev/null",
        script: "sqlite3 wiki/index.db 'INSERT INTO page VALUES (2); VACUUM;' && sqlite3 wiki/new.db 'CREATE TABLE x (y); INSERT INTO x VALUES (3);'",
        then: "[ \"$(sqlite3 wiki/index.db 'SELECT count(*) FROM page; PRAGMA integrity_check;')\" = \"2\nok\" ] && \
               [ $(sqlite3 wiki/new.db 'SELECT y FROM x') = 3 ]",
    },
    Work {
        needs: "tar",
        before: "mkdir -p $BESIDE/t/in/deep && echo 1 > $BESIDE/t/in/1 && chmod 640 $BESIDE/t/in/1 && ln $BESIDE/t/in/1 $BESIDE/t/in/deep/one && \
                 ln -s ../1 $BESIDE/t/in/deep/link && mkdir -m 711 $BESIDE/t/closed && mkfifo $BESIDE/t/fifo && truncate -s 3M $BESIDE/t/sparse && \
                 touch -d 2001-02-03 $BESIDE/t/in/deep $BESIDE/t/in/1 && tar -C $BESIDE/t -cSf $BESIDE/all.tar .",
        script: "tar -C wiki -xpf $BESIDE/all.tar",
        then: "tar -C wiki -df $BESIDE/all.tar && [ wiki/in/1 -ef wiki/in/deep/one ] && [ $(stat -c %a wiki/closed) = 711 ] && \
               [ $(stat -c %y wiki/in/deep | cut -c1-10) = 2001-02-03 ] && [ $(stat -c %b wiki/sparse) -lt 100 ] && [ -p wiki/fifo ]",
    },
    Work {
        needs: "make",
        before: "printf 'all: out/a out/b\\nout/%%: wiki/page1.md\\n\\tmkdir -p out\\n\\ttr a-z A-Z < $< > $@\\nclean:\\n\\trm -rf out\\n' > Makefile; mkdir out; echo old > out/a; touch -d 2001-01-01 out/a",
        script: "make -s -j2 && touch wiki/page1.md && sleep 0.01 && make -s",
        then: "[ \"$(cat out/a out/b)\" = \"THE PAGE 1\nTHE PAGE 1\" ] && make -sq",
    },
    Work {
        needs: "vim",
        before: "",
        script: "vim -es -u NONE -c '%s/the/THE/' -c wq wiki/page1.md; vim -es -u NONE -c 'set backupcopy=yes backup' -c '%s/the/THE/' -c wq wiki/page2.md; \
                 printf '1s/the/THE/\\nw\\nq\\n' | ed -s wiki/page3.md",
        then: "[ \"$(cat wiki/page1.md wiki/page2.md wiki/page3.md)\" = \"THE page 1\nTHE page 2\nTHE page 3\" ] && ! ls -A wiki | grep swp",
    },
    Work {
        needs: "python3",
        before: "",
        script: "python3 - <<'END'
import glob, os, subprocess
for name in sorted(glob.glob('wiki/*.md')):
    text = open(name).read()
    with open(name, 'w') as page:
        page.write(text.upper())
    with open('log.md', 'a') as log:
        log.write(name + '\\n')
    subprocess.run(['true'], check=True)
    if os.environ.get('DIES') and '7' in name:
        raise SystemExit('half way')
END",
        then: "[ \"$(cat wiki/page9.md)\" = 'THE PAGE 9' ] && [ $(wc -l < log.md) = 21 ]",
    },
];

fn run(home: &Home, how: &str, work: &Work) {
    let sh = |script: &str| {
        let exec = home.command(&[], "true");
        let mut plain = Command::new("sh");
        plain.args(["-ec", script]).current_dir(home.kb.path()).stdin(Stdio::null());
        plain.envs(exec.get_envs().filter_map(|(name, value)| Some((name, value?))));
        home.as_owner(&mut plain);
        plain.output().unwrap()
    };
    let what = format!("{} {how} {:?}", work.needs, home.who);
    let made = sh(work.before);
    assert!(made.status.success(), "{what}: {made:?}");
    let before = said(&crate::guard::full(home.kb.path()));
    let options = ["--isolate", how, "--append", "log.md"];
    for end in ["exit 9", "kill -9 $$"] {
        let ran = home.exec(&options, &format!("export DIES=1; {}\n{end}", work.script));
        assert!(matches!(ran.code, Some(9 | 1 | 137)), "{what}: {ran:?}");
        assert_eq!(said(&crate::guard::full(home.kb.path())), before, "{what}");
    }
    let ran = home.exec(&options, &format!("set -e; {}", work.script));
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""), "{what}: {}", ran.out);
    let then = sh(work.then);
    assert!(then.status.success(), "{what}: {then:?}");
    let status: super::Ran = super::cli(&["status", "--root"]).arg(home.kb.path()).output().unwrap().into();
    assert_eq!(status.code, Some(0), "{what}: {status:?}");
}

fn everybody(how: &str) {
    for work in WORK {
        if !has(work.needs) {
            skip(&format!("this needs {}", work.needs));
            continue;
        }
        let root = rustix::process::geteuid().is_root();
        for who in if root { &[Who::Me, Who::Nobody][..] } else { &[Who::Me] } {
            let home = Home::of(*who);
            let able = how != "overlay" || home.exec(&["--isolate", how], "true").code == Some(0);
            match able {
                true => run(&home, how, work),
                false => skip(&format!("this needs overlays, and namespaces for {who:?}")),
            }
        }
    }
}

#[test]
fn over_an_overlay() {
    everybody("overlay");
}

#[test]
fn on_the_files_themselves() {
    everybody("baseline");
}
