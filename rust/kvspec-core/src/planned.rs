//! The flips that trials must have received, counted from their keys over the tokens that they really wrote.
//!
//! The other side of the proof of injection: it shares neither the logic of steps nor the arithmetic of addresses
//! with what counts the landed flips in the cache. It shares the table, and on a CPU the draws.

use std::ops::Range;

use crate::enumerate::Grid;
use crate::error::Error;
use crate::philox::{Key, read_key};
use crate::sample::Scratch;
use crate::step::{Entry, Site, TrialTable, check_index, check_length};

impl TrialTable {
    /// Flips of each of `entries` whose request wrote the positions `0 .. written`; those of reads once for each read
    /// event that is shown, the prefill's among them whatever was written.
    ///
    /// # Errors
    /// [`Error::Length`] for columns of unequal length, [`Error::Index`] for an entry that is not there.
    pub fn planned(&self, entries: &[u32], written: &[u32]) -> Result<Vec<u64>, Error> {
        check_length("written", written.len(), entries.len())?;
        let mut scratch = Scratch::default();
        let flips = |(&entry, &written): (&u32, &u32)| {
            check_index("entry", entry.into(), self.entries.len() as u64)?;
            Ok(self.planned_of(&self.entries[entry as usize], written, &mut scratch))
        };
        entries.iter().zip(written).map(flips).collect()
    }

    fn planned_of(&self, entry: &Entry, written: u32, scratch: &mut Scratch) -> u64 {
        let selector = &self.selectors[entry.selector];
        let (sampler, rows) = (&self.samplers[entry.sampler], &self.rows[entry.rows]);
        let mut flips = |key: Key, tokens: Range<u64>| {
            let grid = Grid {
                request: entry.request,
                layers: 0..self.layers,
                tokens,
                prompt_len: entry.prompt_len,
            };
            sampler.count_shown(key, &grid, selector, rows, scratch)
        };
        let mut planned = 0;
        if entry.site != Site::Read {
            planned += flips(entry.write_key, 0..u64::from(written));
        }
        if entry.site != Site::Write {
            // one event for the prefill, one for each decode forward; event s reads the tokens below s
            let last = u64::from(written.saturating_sub(entry.prompt_len));
            for number in selector.steps.within(0..last + 1).flatten() {
                let step = entry.prompt_len + number as u32;
                let key = read_key(entry.read_master, entry.request, step);
                planned += flips(key, 0..u64::from(step));
            }
        }
        planned
    }
}
