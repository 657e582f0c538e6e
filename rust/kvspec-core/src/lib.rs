//! The core of kvspec: sampling of faults, fault maps, storage formats.
//!
//! The definition is `sampling.md`, version 2. A fault has a logical site (request, layer, plane, head, token,
//! element, bit), and each flip is a pure function of a key and its site: no state, no order, no batch.
//!
//! - [`derive_keys`] turns (seed, experiment, trial, fault entry) into the keys of a trial.
//! - A [`Sampler`] is a [`FaultModel`] bound to the [`Geometry`] of a layer. It enumerates into a [`FaultMap`].
//! - A [`TrialTable`] holds the trials of a campaign and samples what one engine step writes: [`StepFaults`].
//! - An [`EventTable`] does the same for trials whose faults are listed, as maps have them.
//! - A [`Selector`] hides flips and never moves one.
//! - A [`Format`] encodes and decodes the stored elements. Where rows have scales, those are a [`Target`] of their own.

mod cache;
mod count;
mod dense;
pub mod drift;
mod eligible;
mod enumerate;
mod error;
mod events;
mod fault;
mod faults;
mod format;
mod inject;
mod map;
mod pattern;
mod philox;
mod planned;
mod sample;
mod scatter;
mod select;
mod sites;
mod span;
mod step;
mod target;
mod thresholds;

pub use cache::{CacheTables, LayerCache};
pub use enumerate::{Grid, MAX_FLIPS};
pub use error::Error;
pub use events::EventTable;
pub use fault::{FaultModel, Geometry, Level, Page, Per, Sampler};
pub use format::Format;
pub use inject::{StepColumns, StepFaults};
pub use map::{Columns, FaultMap, Layout, Op, Word};
pub use pattern::Pattern;
pub use philox::{
    Block, Key, LANES, Lanes, derive_keys, philox, philox_lanes, read_key, scale_keys,
};
pub use scatter::scatter;
pub use select::{Indices, Phase, Selector};
pub use sites::{SiteBounds, SiteCheck, SiteError, Sites};
pub use step::{Site, StepRows, TrialTable, Trials};
pub use target::{SCALE_BITS, Target};
pub use thresholds::thresholds;
