//! A vault on a simulated machine, driven by a seed through starts, appends, faults and crashes, beside
//! a model of what was promised.

pub(crate) mod disk;
mod image;
mod machine;
mod model;
mod report;
mod run;

pub(crate) use run::{Profile, Told, run};
