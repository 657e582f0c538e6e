//! Explicit faults of trials: what fault maps list, in place of what samplers draw.

use std::ops::Range;

use crate::enumerate::MAX_LAYERS;
use crate::error::Error;
use crate::faults::{LayerFaults, Owner, RowFaults};
use crate::inject::StepFaults;
use crate::map::Op;
use crate::sites::{SiteError, Sites};
use crate::step::{ReadEvent, StepRows, check_index, check_length};
use crate::target::{SCALE_BITS, Target};

/// The listed faults of all trials of a batch; index = entry. The counterpart of a
/// [`TrialTable`](crate::TrialTable): a step takes from it the faults of the tokens it writes, and of the read
/// event that it belongs to.
#[derive(Clone, Debug)]
pub struct EventTable {
    layers: u32,
    bits: u32,
    /// Tokens of each entry's prompt, where its first read event ends.
    prompt_len: Vec<u32>,
    /// Events of entry i are `starts[i]..starts[i + 1]`.
    starts: Vec<usize>,
    /// Of each entry in ascending order of [`Event::key`].
    events: Vec<Event>,
}

/// What happens to the bits of one element.
#[derive(Clone, Copy, Debug)]
struct Event {
    /// Read event, [`WRITE`] for a fault of a write.
    step: u32,
    token: u32,
    mask: u32,
    layer: u16,
    head: u16,
    elem: u16,
    kv: u8,
    target: Target,
    op: Op,
}

/// The step of writes: no read event has it, since an event reads the tokens below its step.
const WRITE: u32 = 0;

/// Layer, plane and head of the codes of a row, or of their scale.
type Row = (u16, u8, u16, Target);

impl Event {
    /// Step and token first, since a forward asks for those; then the order in which it lists its faults.
    fn key(&self) -> ((u32, u32), Row, Op, u16) {
        (self.place(), self.row(), self.op, self.elem)
    }

    fn place(&self) -> (u32, u32) {
        (self.step, self.token)
    }

    fn row(&self) -> Row {
        (self.layer, self.kv, self.head, self.target)
    }

    fn same_row(&self, other: &Self) -> bool {
        (self.place(), self.row()) == (other.place(), other.row())
    }

    fn same_element(&self, other: &Self) -> bool {
        self.same_row(other) && self.elem == other.elem
    }
}

impl EventTable {
    /// A table for a model of `layers` layers whose elements have `bits` bits. Entry i has a prompt of
    /// `prompt_len[i]` tokens and the rows `starts[i]..starts[i + 1]` of `sites`, in any order, each with its op and
    /// its target (none: all are values); a scale is element 0 of its row. Step 0 is a fault of a write, any other one that of a read event.
    ///
    /// Heads, elements and tokens are held against the cache by [`StepFaults::inject`].
    ///
    /// # Errors
    /// [`Error::Length`] for columns of unequal length or `starts` that do not cover them, [`Error::Range`] for
    /// `starts` that run backwards, [`Error::Bits`] for a width that no word has, [`Error::Index`] for a layer,
    /// plane, element of a scale or bit that is not there, [`Error::Order`] for a site that an entry has twice.
    pub fn new(
        layers: u32,
        bits: u32,
        starts: &[u64],
        prompt_len: &[u32],
        sites: &Sites<'_>,
        ops: &[Op],
        targets: &[Target],
    ) -> Result<Self, Error> {
        check_index("layers", layers.into(), MAX_LAYERS + 1)?;
        if !(1..=32).contains(&bits) {
            return Err(Error::Bits { bits });
        }
        if let Err(SiteError::Length {
            column: name,
            len,
            expected,
        }) = sites.check_lengths()
        {
            return Err(Error::Length {
                name,
                len,
                expected,
            });
        }
        check_length("op", ops.len(), sites.len())?;
        if !targets.is_empty() {
            check_length("target", targets.len(), sites.len())?;
        }
        let starts = check_starts(starts, sites.len())?;
        check_length("prompt_len", prompt_len.len(), starts.len() - 1)?;
        let mut rows = Vec::with_capacity(sites.len());
        for (i, &op) in ops.iter().enumerate() {
            check_index("layer", sites.layer[i].into(), layers.into())?;
            check_index("kv", sites.kv[i].into(), 2)?;
            let target = targets.get(i).copied().unwrap_or_default();
            let width = match target {
                Target::Values => bits,
                Target::Scales => SCALE_BITS,
            };
            check_index("bit", sites.bit[i].into(), width.into())?;
            if target == Target::Scales {
                check_index("element of a scale", sites.elem[i].into(), 1)?;
            }
            rows.push(Event {
                step: sites.step.map_or(WRITE, |step| step[i]),
                token: sites.token[i],
                mask: 1 << sites.bit[i],
                layer: sites.layer[i],
                head: sites.head[i],
                elem: sites.elem[i],
                kv: sites.kv[i],
                target,
                op,
            });
        }
        let mut events: Vec<Event> = Vec::with_capacity(rows.len());
        let mut merged_starts = vec![0];
        for entry in starts.windows(2) {
            let rows = &mut rows[entry[0]..entry[1]];
            rows.sort_unstable_by_key(Event::key);
            let first = events.len();
            for &row in &*rows {
                // Bits of an element that are to change alike become one mask.
                match events[first..].last_mut() {
                    Some(last) if last.same_element(&row) && last.op == row.op => {
                        check_apart(last.mask, row.mask, entry[0])?;
                        last.mask |= row.mask;
                    }
                    _ => events.push(row),
                }
            }
            check_elements(&events[first..], entry[0])?;
            merged_starts.push(events.len());
        }
        Ok(Self {
            layers,
            bits,
            prompt_len: prompt_len.to_vec(),
            starts: merged_starts,
            events,
        })
    }

    /// Number of entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.starts.len() - 1
    }

    /// Whether there is no entry.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The faults of the tokens that a step writes.
    ///
    /// # Errors
    /// [`Error::Length`] for columns of unequal length, [`Error::Index`] for an entry that is not there,
    /// [`Error::Range`] for tokens beyond 2^32.
    pub fn write_step(&self, step: &StepRows<'_>) -> Result<StepFaults, Error> {
        let mut faults = vec![LayerFaults::default(); self.layers as usize];
        for (i, entry, tokens) in step.checked(self.len())? {
            self.push(&mut faults, (i, step.row[i]), entry, WRITE, tokens);
        }
        Ok(self.faults(faults, step, None))
    }

    /// The faults that the attention of a step reads, forward by forward as in
    /// [`TrialTable::read_step`](crate::TrialTable::read_step).
    ///
    /// # Errors
    /// As [`Self::write_step`], with [`Error::Range`] also for an event beyond 2^32.
    pub fn read_step(&self, step: &StepRows<'_>) -> Result<StepFaults, Error> {
        let mut faults = vec![LayerFaults::default(); self.layers as usize];
        let mut first_shown = vec![0; step.entry.len()];
        for (i, entry, tokens) in step.checked(self.len())? {
            if let Some(event) = ReadEvent::of(&tokens, self.prompt_len[entry])? {
                first_shown[i] = event.first_shown;
                let seen = 0..tokens.end;
                self.push(&mut faults, (i, step.row[i]), entry, event.step, seen);
            }
        }
        Ok(self.faults(faults, step, Some(first_shown)))
    }

    /// Appends an entry's faults of one event in `tokens`. `owner` is its index in the step and its row of the batch.
    fn push(
        &self,
        faults: &mut [LayerFaults],
        owner: (usize, u32),
        entry: usize,
        step: u32,
        tokens: Range<u64>,
    ) {
        let events = &self.events[self.starts[entry]..self.starts[entry + 1]];
        let before =
            |token: u64| events.partition_point(|e| (e.step, u64::from(e.token)) < (step, token));
        let same = |a: &Event, b: &Event| a.same_row(b) && a.op == b.op;
        for row in events[before(tokens.start)..before(tokens.end)].chunk_by(same) {
            let Event {
                token,
                layer,
                kv,
                head,
                op,
                target,
                ..
            } = row[0];
            let (index, row_of_table) = owner;
            let owner = Owner {
                index: index as u32,
                row: row_of_table,
                op,
                target,
            };
            let place = RowFaults::new(owner, token, kv, head);
            faults[layer as usize].push_row(place, row.iter().map(|e| (e.elem, e.mask)));
        }
    }

    fn faults(
        &self,
        faults: Vec<LayerFaults>,
        step: &StepRows<'_>,
        first_shown: Option<Vec<u32>>,
    ) -> StepFaults {
        let entries = step.entry.len();
        StepFaults::new(
            self.layers,
            Some(self.bits),
            vec![faults],
            entries,
            first_shown,
        )
    }
}

fn check_starts(starts: &[u64], rows: usize) -> Result<Vec<usize>, Error> {
    let (Some(&0), Some(&last)) = (starts.first(), starts.last()) else {
        return Err(Error::Layout { name: "starts" });
    };
    check_length("starts", usize::try_from(last).unwrap_or(usize::MAX), rows)?;
    match starts.windows(2).find(|pair| pair[0] > pair[1]) {
        Some(&[start, end]) => Err(Error::Range {
            name: "starts",
            start,
            end,
            limit: rows as u64,
        }),
        // ascending up to `rows`, so that each fits
        _ => Ok(starts.iter().map(|&start| start as usize).collect()),
    }
}

/// Fails if an element of one entry has a bit with two ops. `index` is the entry's first row.
fn check_elements(events: &[Event], index: usize) -> Result<(), Error> {
    // Rows with several ops are rare: only the events of such rows are compared.
    for row in events.chunk_by(Event::same_row) {
        if row[0].op == row[row.len() - 1].op {
            continue;
        }
        let mut row = row.to_vec();
        row.sort_unstable_by_key(|e| e.elem);
        for element in row.chunk_by(Event::same_element) {
            let mut all = 0;
            for event in element {
                check_apart(all, event.mask, index)?;
                all |= event.mask;
            }
        }
    }
    Ok(())
}

fn check_apart(a: u32, b: u32, index: usize) -> Result<(), Error> {
    if a & b == 0 {
        Ok(())
    } else {
        Err(Error::Order { index })
    }
}
