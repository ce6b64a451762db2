//! effectum as a queue: a job is put in and carried out, in each of the ways that `with_huey.py` knows, too. It is told where, how its
//! database writes, and how many jobs each way has; it answers in nanoseconds a job, in JSON on its standard output. With `one` behind that, they are put in
//! one by one, which a tracer looks at, and nothing else.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use effectum::{Job, JobRunner, Queue, RunningJob, Worker};
use rusqlite::Connection;
use serde_json::json;
use tokio::sync::Notify;
use tokio::task::JoinSet;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

const JOB: &str = "tell";
/// As in its documentation.
const CONCURRENCY: u16 = 10;
const LOCK: &str = include_str!("../Cargo.lock");
/// The most that is waited for what is to be over in seconds.
const LONG: Duration = Duration::from_secs(300);

/// What has been carried out.
#[derive(Debug, Default)]
struct Done {
    count: AtomicUsize,
    changed: Notify,
}

async fn tell(_: RunningJob, done: Arc<Done>) -> Result<()> {
    done.count.fetch_add(1, Ordering::SeqCst);
    done.changed.notify_one();
    Ok(())
}

fn job(number: usize) -> Job {
    Job::builder(JOB).payload(format!("{number:0>100}").into_bytes()).build()
}

async fn worker(queue: &Queue, done: &Arc<Done>) -> Result<Worker> {
    Ok(Worker::builder(queue, Arc::clone(done))
        .jobs([JobRunner::builder(JOB, tell).build()])
        .max_concurrency(CONCURRENCY)
        .build()
        .await?)
}

impl Done {
    async fn reaches(&self, count: usize) -> Result<()> {
        let all = async {
            while self.count.load(Ordering::SeqCst) < count {
                self.changed.notified().await;
            }
        };
        Ok(tokio::time::timeout(LONG, all).await?)
    }
}

/// By one who waits for each.
async fn one_by_one(queue: &Queue, jobs: usize) -> Result<f64> {
    let start = Instant::now();
    for number in 0..jobs {
        queue.add_job(job(number)).await?;
    }
    Ok(each(start, jobs))
}

/// By several at once, each of whom waits for theirs.
async fn together(queue: &Arc<Queue>, crowd: usize, jobs: usize) -> Result<f64> {
    let (start, mut all) = (Instant::now(), JoinSet::new());
    for _ in 0..crowd {
        let queue = Arc::clone(queue);
        all.spawn(async move { one_by_one(&queue, jobs / crowd).await });
    }
    while let Some(ended) = all.join_next().await {
        ended??;
    }
    Ok(each(start, jobs / crowd * crowd))
}

fn each(start: Instant, jobs: usize) -> f64 {
    start.elapsed().as_nanos() as f64 / jobs as f64
}

async fn measure(path: &Path, jobs: usize, crowd: usize, batch: usize) -> Result<serde_json::Value> {
    let queue = Arc::new(Queue::new(path).await?);
    let one = one_by_one(&queue, jobs).await?;
    let many = together(&queue, crowd, jobs).await?;
    let start = Instant::now();
    for first in (0..jobs).step_by(batch) {
        queue.add_jobs((first..jobs.min(first + batch)).map(job).collect()).await?;
    }
    let batched = each(start, jobs);
    let (done, waiting) = (Arc::new(Done::default()), 2 * jobs + jobs / crowd * crowd);
    let start = Instant::now();
    let worker = worker(&queue, &done).await?;
    done.reaches(waiting).await?;
    let drained = each(start, waiting);
    let start = Instant::now();
    one_by_one(&queue, jobs).await?;
    done.reaches(waiting + jobs).await?;
    let through = each(start, jobs);
    worker.unregister(Some(LONG)).await?;
    queue.close(LONG).await?;
    Ok(json!({ "one": one, "together": many, "batch": batched, "drain": drained, "through": through }))
}

/// What the file says of how it is written; the rest effectum sets for each connection, and does not say.
fn journal_mode(path: &Path) -> Result<String> {
    Ok(Connection::open(path)?.query_row("PRAGMA journal_mode", (), |row| row.get(0))?)
}

fn version() -> Result<&'static str> {
    let (_, rest) = LOCK.split_once("name = \"effectum\"\nversion = \"").ok_or("effectum has no version")?;
    Ok(rest.split('"').next().unwrap_or_default())
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [directory, mode, jobs, crowd, batch, only @ ..] = arguments.as_slice() else {
        return Err("usage: with-effectum DIRECTORY delete|wal JOBS CROWD BATCH [one]".into());
    };
    let jobs = jobs.parse()?;
    let path = PathBuf::from(directory).join("effectum.db");
    if mode != "delete" {
        // The file remembers that.
        Connection::open(&path)?.pragma_update_and_check(None, "journal_mode", mode, |_| Ok(()))?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    if only == ["one"] {
        runtime.block_on(async { one_by_one(&Queue::new(&path).await?, jobs).await })?;
        println!("null");
        return Ok(());
    }
    let mut answer = runtime.block_on(measure(&path, jobs, crowd.parse()?, batch.parse()?))?;
    answer["version"] = version()?.into();
    answer["journal_mode"] = journal_mode(&path)?.into();
    println!("{answer}");
    Ok(())
}
