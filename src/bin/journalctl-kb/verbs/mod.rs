//! One file a verb.

pub(crate) mod blobs;
pub(crate) mod exec;
pub(crate) mod followers;
pub(crate) mod init;
pub(crate) mod locks;
pub(crate) mod log;
pub(crate) mod outbox;
pub(crate) mod quarantine;
pub(crate) mod recover;
pub(crate) mod runs;
pub(crate) mod settle;
pub(crate) mod show;
pub(crate) mod status;
mod subreaper;
