//! A child process that strace kills at a chosen system call.
//!
//! What strace 6.1 was seen to do with `-e inject=SET:signal=KILL:when=N`:
//!
//! - it counts per thread *and* per system call, so a point is a thread, a call and a number, never "the Nth of all";
//! - the signal comes on entry, and the call is not carried out: a kill at call N shows the state that call N-1 left;
//! - `-p TID` watches that one thread; with `-f` all threads of the process, and those it starts later, each with counts
//!   of its own. `--seccomp-bpf` does nothing for an attached process.
//!
//! So a child first runs unharmed under `-f`, and its trace yields the points. strace is attached only when the child
//! says that it is ready: what the test harness and the loader do before is no part of a workload.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{self, Command, Stdio};

/// Calls that change files, directories or what of them is durable. The question mark is strace's: an architecture may
/// lack the call.
pub(crate) const MUTATING: &str = "?write,?pwrite64,?writev,?pwritev,?pwritev2,?rename,?renameat,?renameat2,?link,?linkat,\
    ?unlink,?unlinkat,?mkdir,?mkdirat,?rmdir,?symlink,?symlinkat,?fsync,?fdatasync,?syncfs,?sync_file_range,\
    ?truncate,?ftruncate,?fallocate,?chmod,?fchmod,?fchmodat,?fchmodat2,?chown,?fchown,?lchown,?fchownat,\
    ?utimensat,?setxattr,?lsetxattr,?fsetxattr,?removexattr,?lremovexattr,?fremovexattr,?copy_file_range,?sendfile,\
    ?splice,?ioctl,?open,?creat,?openat,?openat2";

/// Which thread a call was made by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Thread {
    /// The one that runs the workload.
    Main,
    /// One that was there when the child was ready: its name, and its place among those of that name.
    Named(String, usize),
    /// One that came later: it can only be met by watching all.
    Late(String),
}

/// The entry of one system call.
#[derive(Clone, Debug)]
pub(crate) struct Point {
    pub(crate) thread: Thread,
    pub(crate) call: String,
    pub(crate) nth: usize,
    /// The call as strace prints it, for messages.
    shown: String,
}

impl std::fmt::Display for Point {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}, {} number {}: {}", self.thread, self.call, self.nth, self.shown)
    }
}

/// How a child ended, and what it had said until then.
#[derive(Debug)]
pub(crate) struct End {
    pub(crate) killed: bool,
    said: Vec<String>,
}

impl End {
    pub(crate) fn said(&self, word: &str) -> bool {
        self.said.iter().any(|line| line == word)
    }

    /// All that it said.
    pub(crate) fn words(&self) -> &[String] {
        &self.said
    }
}

/// True when strace is here and may trace.
pub(crate) fn usable() -> bool {
    let probe = Command::new("strace").args(["-o", "/dev/null", "true"]).stderr(Stdio::null()).status();
    probe.is_ok_and(|status| status.success())
}

/// In the child: says what is so far, unless that very call is what fails. Lines of the test harness do not begin with this mark.
pub(crate) fn say(word: &str) {
    let _ = writeln!(std::io::stdout(), "\n@{word}");
}

/// In the child: lets strace attach, then goes on.
pub(crate) fn ready() {
    // Needed where only a parent may trace, unless root (Yama).
    let _ = rustix::process::set_ptracer(rustix::process::PTracer::Any);
    let thread = fs::read_link("/proc/thread-self").unwrap();
    say(&format!("ready {}", thread.file_name().unwrap().display()));
    std::io::stdin().read_line(&mut String::new()).unwrap();
}

/// Runs a child to its end and lists its mutating calls, in their order.
pub(crate) fn points(test: &str, workload: &str, root: &Path) -> Vec<Point> {
    let child = Child::spawn(test, workload, root);
    let threads = child.threads();
    parse(&child.trace(root), &threads)
}

/// Runs a child to its end and gives the trace of its mutating calls, as strace writes it.
pub(crate) fn trace(test: &str, workload: &str, root: &Path) -> String {
    Child::spawn(test, workload, root).trace(root)
}

/// Runs a child that is killed when it enters the call at `point`.
pub(crate) fn kill_at(test: &str, workload: &str, root: &Path, point: &Point) -> End {
    inject(test, workload, root, point, "signal=KILL", "")
}

/// Runs a child whose call at `point` is not carried out, and answers this error instead; with `+` as `onwards` every such
/// call that follows, too.
pub(crate) fn fail_at(test: &str, workload: &str, root: &Path, point: &Point, error: &str, onwards: &str) -> End {
    inject(test, workload, root, point, &format!("error={error}"), onwards)
}

fn inject(test: &str, workload: &str, root: &Path, point: &Point, what: &str, onwards: &str) -> End {
    let child = Child::spawn(test, workload, root);
    let inject = format!("inject={}:{what}:when={}{onwards}", point.call, point.nth);
    let trace = format!("trace={}", point.call);
    let log = log_file(root);
    let mut options = vec!["-o", log.to_str().unwrap(), "-e", &trace, "-e", &inject];
    let wanted = match &point.thread {
        Thread::Late(_) => None,
        thread => child.threads().into_iter().find(|(_, found)| found == thread).map(|(tid, _)| tid),
    };
    if wanted.is_none() {
        options.push("-f");
    }
    let end = child.go(&options, wanted);
    wait_for_locks(root);
    end
}

/// Waits until the kernel has let go of the locks of whoever was killed, which under load is a little later than its end is
/// told: what is tested is what the next one finds.
pub(crate) fn wait_for_locks(root: &Path) {
    let files = walkdir::WalkDir::new(root.join(".journal")).max_depth(2).into_iter().filter_map(Result::ok);
    let locks: BTreeSet<u64> = files
        .filter(|file| file.path().extension().is_some_and(|extension| extension == "lock"))
        .filter_map(|file| Some(file.metadata().ok()?.ino()))
        .collect();
    for _ in 0..1000 {
        let held = fs::read_to_string("/proc/locks").unwrap_or_default();
        // The sixth field: device and inode.
        let inodes = held.lines().filter_map(|line| line.split_whitespace().nth(5)?.rsplit(':').next()?.parse().ok());
        if !inodes.into_iter().any(|inode: u64| locks.contains(&inode)) {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

fn log_file(root: &Path) -> PathBuf {
    root.with_extension("strace")
}

struct Child {
    process: process::Child,
    output: BufReader<process::ChildStdout>,
    main: u32,
}

impl Child {
    /// Starts this very test binary again, with only `test` to run, and waits until that is ready.
    fn spawn(test: &str, workload: &str, root: &Path) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture", "--test-threads=1"])
            .env("JOURNAL_KB_CHILD", workload)
            .env("JOURNAL_KB_ROOT", root)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(process.stdout.take().unwrap());
        let mut line = String::new();
        while !line.starts_with("@ready ") {
            line.clear();
            assert_ne!(output.read_line(&mut line).unwrap(), 0, "the child {workload} ended before it was ready");
        }
        let main = line["@ready ".len()..].trim().parse().unwrap();
        Self { process, output, main }
    }

    fn threads(&self) -> BTreeMap<u32, Thread> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.process.id())).unwrap();
        let tids: BTreeSet<u32> =
            tasks.map(|task| task.unwrap().file_name().to_str().unwrap().parse().unwrap()).collect();
        let mut seen = BTreeMap::new();
        let name = |tid: u32| {
            if tid == self.main {
                return (tid, Thread::Main);
            }
            let name = fs::read_to_string(format!("/proc/{}/task/{tid}/comm", self.process.id())).unwrap_or_default();
            let nth = seen.entry(name.clone()).and_modify(|nth| *nth += 1).or_insert(0_usize);
            (tid, Thread::Named(name.trim_end().to_owned(), *nth))
        };
        tids.into_iter().map(name).collect()
    }

    fn trace(self, root: &Path) -> String {
        let log = log_file(root);
        let calls = format!("trace={MUTATING}");
        let end = self.go(&["-f", "-Y", "-y", "-s", "200", "-o", log.to_str().unwrap(), "-e", &calls], None);
        assert!(end.said("done"), "the child did not reach its end unharmed: {end:?}");
        fs::read_to_string(log).unwrap()
    }

    /// Attaches strace, to one thread or to all, and lets the child run until it ends.
    fn go(mut self, options: &[&str], thread: Option<u32>) -> End {
        let target = thread.unwrap_or(self.process.id()).to_string();
        let mut strace = Command::new("strace")
            .args(options)
            .args(["-p", &target])
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // "Process N attached" is printed once no further call can escape.
        let mut messages = BufReader::new(strace.stderr.take().unwrap());
        let mut line = String::new();
        while !line.contains("attached") {
            line.clear();
            assert_ne!(messages.read_line(&mut line).unwrap(), 0, "strace could not attach: {line}");
        }
        self.process.stdin.take().unwrap().write_all(b"go\n").unwrap();
        let mut said = String::new();
        self.output.read_to_string(&mut said).unwrap();
        let status = self.process.wait().unwrap();
        strace.wait().unwrap();
        let killed = std::os::unix::process::ExitStatusExt::signal(&status) == Some(9);
        assert!(killed || status.success(), "the child failed by itself: {said}");
        End { killed, said: said.lines().filter_map(|line| line.strip_prefix('@')).map(str::to_owned).collect() }
    }
}

/// Reads the lines of a trace: `1234<name> call(arguments…) = result`. A call that another thread interrupts is printed
/// in two parts; the second, `<... call resumed>`, is not counted again.
pub(crate) fn parse(trace: &str, threads: &BTreeMap<u32, Thread>) -> Vec<Point> {
    let mut counts: BTreeMap<(u32, &str), usize> = BTreeMap::new();
    let mut points = Vec::new();
    for line in trace.lines() {
        let Some((who, shown)) = line.split_once(' ') else { continue };
        let (tid, name) = who.split_once('<').map_or((who, "?"), |(tid, name)| (tid, name.trim_end_matches('>')));
        let (Ok(tid), Some((call, arguments))) = (tid.parse::<u32>(), shown.trim_start().split_once('(')) else {
            continue;
        };
        if !call.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
            continue;
        }
        let nth = counts.entry((tid, call)).and_modify(|nth| *nth += 1).or_insert(1);
        if !is_mutation(call, arguments) {
            continue;
        }
        let thread = threads.get(&tid).cloned().unwrap_or_else(|| Thread::Late(name.to_owned()));
        points.push(Point { thread, call: call.to_owned(), nth: *nth, shown: shown.trim().to_owned() });
    }
    points
}

fn is_mutation(call: &str, arguments: &str) -> bool {
    match call {
        "open" | "openat" | "openat2" => {
            ["O_CREAT", "O_TRUNC", "O_TMPFILE"].iter().any(|flag| arguments.contains(flag))
        }
        "ioctl" => arguments.contains("FICLONE"),
        // One that strace has no name for yet, and shows whatever it was asked for: `listxattrat`.
        "syscall_0x1d1" => false,
        // What the child says to its parent, and the harness to nobody.
        "write" => !["1,", "1<", "2,", "2<"].iter().any(|told| arguments.starts_with(told)),
        _ => true,
    }
}

#[test]
fn a_trace_is_read() {
    let trace = "7<it-1> openat(3, \"a\", O_RDONLY) = 4\n\
        8<journal-settle> fsync(5 <unfinished ...>\n\
        7<it-1> openat(3, \"b\", O_RDWR|O_CREAT, 0666) = 4\n\
        8<journal-settle> <... fsync resumed>) = 0\n\
        9<new> fsync(5) = 0\n\
        8<journal-settle> fsync(5) = ?\n\
        7<it-1> write(1</dev/pts/0>, \"x\", 1) = 1\n\
        7<it-1> --- SIGCHLD {si_signo=SIGCHLD} ---\n\
        7<it-1> +++ exited with 0 +++\n";
    let settle = Thread::Named("journal-settle".to_owned(), 0);
    let threads = BTreeMap::from([(7, Thread::Main), (8, settle.clone())]);
    let found: Vec<_> = parse(trace, &threads).into_iter().map(|point| (point.thread, point.call, point.nth)).collect();
    let expected = [
        (settle.clone(), "fsync", 1),
        (Thread::Main, "openat", 2),
        (Thread::Late("new".to_owned()), "fsync", 1),
        (settle, "fsync", 2),
    ];
    assert_eq!(found, expected.map(|(thread, call, nth)| (thread, call.to_owned(), nth)));
}
