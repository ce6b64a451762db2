//! Guards: what is claimed of them, measured and drawn. `bash benches/run` writes docs/guards-performance.md with it.
//!
//! - [`tree`] is what is guarded; [`rounds`] are the transactions, in processes of their own;
//! - [`naive`] and [`bare`] are what they are compared with;
//! - [`recovery`], [`exec`] and [`syncing`] are what needs more than one process;
//! - [`results`] has all that measured, [`claims`] judges it, [`page`] writes it down, with the curves of [`chart`].

mod bare;
mod chart;
mod claims;
mod curves;
pub mod exec;
mod naive;
pub mod page;
pub mod recovery;
pub mod results;
pub mod rounds;
mod scale;
mod syncing;
mod tree;
