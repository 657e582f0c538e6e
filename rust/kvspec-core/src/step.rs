//! What one step of the engine writes and reads: the flips of all its rows and layers.
//!
//! All trials of a campaign run in one batch. A [`TrialTable`] knows the sampler, selector and keys of each
//! fault entry of each trial; a step names the entries that are in the batch and the tokens they write.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::panic::resume_unwind;
use std::thread;

use crate::enumerate::{MAX_LAYERS, MAX_TOKENS, check_flips};
use crate::error::Error;
use crate::fault::{Level, Sampler};
use crate::faults::{LayerFaults, Owner};
use crate::inject::StepFaults;
use crate::map::Op;
use crate::philox::{Key, LANES, read_key};
use crate::sample::{Place, Scratch};
use crate::select::{Rows, Selector, check_range};
use crate::span::{Span, cell_cost, share, threads_for};
use crate::target::Target;

/// Where the faults of an entry are injected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Site {
    /// When a token is written, to stay.
    Write,
    /// Anew at every read event, undone after it.
    Read,
    /// Both, as two independent streams.
    Both,
}

impl Site {
    /// The site of that name.
    ///
    /// # Errors
    /// [`Error::Word`] for any other name.
    pub fn parse(name: &str) -> Result<Self, Error> {
        match name {
            "KV_WRITE" => Ok(Self::Write),
            "KV_READ" => Ok(Self::Read),
            "BOTH" => Ok(Self::Both),
            _ => Err(Error::Word {
                name: "site",
                value: name.to_owned(),
                allowed: &["KV_WRITE", "KV_READ", "BOTH"],
            }),
        }
    }
}

/// Fault entries of trials, as columns of equal length; index = entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trials {
    /// Index into the samplers.
    pub sampler: Vec<u32>,
    /// Index into the selectors.
    pub selector: Vec<u32>,
    /// Write key.
    pub write_key: Vec<Key>,
    /// Index of the request in the plan.
    pub request: Vec<u32>,
    /// Tokens of the prompt: where a selector asks for a phase, and where the first read event ends.
    pub prompt_len: Vec<u32>,
    /// Site of each sampler; empty if all are [`Site::Write`].
    pub site: Vec<Site>,
    /// Op of each sampler; empty if all are [`Op::Flip`].
    pub op: Vec<Op>,
    /// Target of each sampler; empty if all are [`Target::Values`].
    pub target: Vec<Target>,
    /// Read master; empty if no site reads.
    pub read_master: Vec<Key>,
}

/// What a step writes, as columns of equal length: tokens `start .. start + count` of an entry, whose request
/// is `row` of the batch.
#[derive(Clone, Copy, Debug)]
pub struct StepRows<'a> {
    /// Index into the table.
    pub entry: &'a [u32],
    /// Row of the block table.
    pub row: &'a [u32],
    /// First token written.
    pub start: &'a [u32],
    /// Tokens written.
    pub count: &'a [u32],
}

impl StepRows<'_> {
    /// Each row with its index, its entry among `entries`, and the tokens it writes.
    ///
    /// # Errors
    /// [`Error::Length`], [`Error::Index`], [`Error::Range`].
    pub(crate) fn checked(&self, entries: usize) -> Result<Vec<(usize, usize, Range<u64>)>, Error> {
        let expected = self.entry.len();
        check_length("row", self.row.len(), expected)?;
        check_length("start", self.start.len(), expected)?;
        check_length("count", self.count.len(), expected)?;
        let row = |(i, &entry): (usize, &u32)| {
            check_index("entry", entry.into(), entries as u64)?;
            let start = u64::from(self.start[i]);
            let tokens = start..start + u64::from(self.count[i]);
            check_range("tokens", &tokens, MAX_TOKENS)?;
            Ok((i, entry as usize, tokens))
        };
        self.entry.iter().enumerate().map(row).collect()
    }
}

/// The fault entries of all trials of a campaign.
#[derive(Clone, Debug)]
pub struct TrialTable {
    pub(crate) layers: u32,
    /// Of the codes; `None` if all faults are of scales.
    bits: Option<u32>,
    pub(crate) samplers: Vec<Sampler>,
    pub(crate) selectors: Vec<Selector>,
    /// Shown rows of each (sampler, selector) in use.
    pub(crate) rows: Vec<Rows>,
    pub(crate) entries: Vec<Entry>,
}

#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) sampler: usize,
    pub(crate) selector: usize,
    pub(crate) rows: usize,
    pub(crate) site: Site,
    op: Op,
    target: Target,
    pub(crate) write_key: Key,
    pub(crate) read_master: Key,
    pub(crate) request: u32,
    pub(crate) prompt_len: u32,
}

/// Index of a row in the step's columns, its entry, and the tokens it writes.
type StepRow<'a> = (usize, &'a Entry, Range<u64>);

impl TrialTable {
    /// A table for a model of `layers` layers of one geometry.
    ///
    /// # Errors
    /// [`Error::Length`] for columns of unequal length, [`Error::Index`] for a sampler or selector that is not
    /// there or too many layers, [`Error::Width`] if the samplers of values differ in bits per element, or one of
    /// scales has another width than theirs, [`Error::ScaleRow`] if it has more than one element.
    pub fn new(
        layers: u32,
        samplers: Vec<Sampler>,
        selectors: Vec<Selector>,
        trials: &Trials,
    ) -> Result<Self, Error> {
        check_index("layers", layers.into(), MAX_LAYERS + 1)?;
        let expected = trials.sampler.len();
        check_length("selector", trials.selector.len(), expected)?;
        check_length("write_key", trials.write_key.len(), expected)?;
        check_length("request", trials.request.len(), expected)?;
        check_length("prompt_len", trials.prompt_len.len(), expected)?;
        let sites = &trials.site;
        if !sites.is_empty() {
            check_length("site", sites.len(), samplers.len())?;
        }
        if !trials.op.is_empty() {
            check_length("op", trials.op.len(), samplers.len())?;
        }
        if sites.iter().any(|&site| site != Site::Write) {
            check_length("read_master", trials.read_master.len(), expected)?;
        }
        if !trials.target.is_empty() {
            check_length("target", trials.target.len(), samplers.len())?;
        }
        let target = |i: usize| trials.target.get(i).copied().unwrap_or_default();
        let mut width = None;
        for (i, sampler) in samplers.iter().enumerate() {
            let bits = sampler.geometry().bits;
            target(i).check(sampler.geometry())?;
            if target(i) == Target::Scales {
                continue;
            }
            let expected = *width.get_or_insert(bits);
            if bits != expected {
                return Err(Error::Width { bits, expected });
            }
        }

        let mut rows = Vec::new();
        let mut seen = HashMap::new();
        let mut entries = Vec::with_capacity(expected);
        for i in 0..expected {
            let (sampler, selector) = (trials.sampler[i], trials.selector[i]);
            check_index("sampler", sampler.into(), samplers.len() as u64)?;
            check_index("selector", selector.into(), selectors.len() as u64)?;
            let (sampler, selector) = (sampler as usize, selector as usize);
            let shown = *seen.entry((sampler, selector)).or_insert_with(|| {
                rows.push(selectors[selector].rows(samplers[sampler].geometry()));
                rows.len() - 1
            });
            entries.push(Entry {
                sampler,
                selector,
                rows: shown,
                site: sites.get(sampler).copied().unwrap_or(Site::Write),
                op: trials.op.get(sampler).copied().unwrap_or(Op::Flip),
                target: target(sampler),
                write_key: trials.write_key[i],
                read_master: trials.read_master.get(i).copied().unwrap_or_default(),
                request: trials.request[i],
                prompt_len: trials.prompt_len[i],
            });
        }
        Ok(Self {
            layers,
            bits: width,
            samplers,
            selectors,
            rows,
            entries,
        })
    }

    /// Number of entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no entry.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Samples what a step writes, on all cores if that is worth it.
    ///
    /// # Errors
    /// [`Error::Length`] for columns of unequal length, [`Error::Index`] for an entry that is not there,
    /// [`Error::Range`] for tokens beyond 2^32, [`Error::TooManyFlips`] if they would not fit into memory.
    pub fn write_step(&self, step: &StepRows<'_>) -> Result<StepFaults, Error> {
        let spans = self.write_spans(step)?;
        let threads = threads_for(&spans);
        Ok(self.sample(step, spans, threads, None))
    }

    /// [`Self::write_step`] on that many threads; the result does not depend on their number.
    ///
    /// # Errors
    /// As [`Self::write_step`].
    pub fn write_step_on(
        &self,
        step: &StepRows<'_>,
        threads: NonZeroUsize,
    ) -> Result<StepFaults, Error> {
        let spans = self.write_spans(step)?;
        Ok(self.sample(step, spans, threads, None))
    }

    /// Samples what the attention of a step reads: of each row the event `max(seq_len, prompt_len)`, with
    /// `seq_len = start + count`, over the tokens `0 .. seq_len`.
    ///
    /// A row whose tokens belong to several events (more than one token, not all of the prompt) cannot be served
    /// and gets no fault, so its trial lands less than was planned. Only the recompute of a preempted request has
    /// such rows.
    ///
    /// A chunked prefill shows the same event again in each chunk. Its faults are in every forward, but each
    /// counts as landed only in the first one that shows it: that of the chunk which writes its token.
    ///
    /// # Errors
    /// As [`Self::write_step`], with [`Error::Range`] also for an event beyond 2^32.
    pub fn read_step(&self, step: &StepRows<'_>) -> Result<StepFaults, Error> {
        let mut spans = Vec::with_capacity(step.entry.len());
        let mut first_shown = vec![0; step.entry.len()];
        let mut flips = 0.0;
        for (i, entry, tokens) in self.rows_of(step)? {
            if entry.site == Site::Write {
                continue;
            }
            let Some(event) = ReadEvent::of(&tokens, entry.prompt_len)? else {
                continue;
            };
            let selector = &self.selectors[entry.selector];
            if !selector.steps.contains(event.number.into()) {
                continue;
            }
            first_shown[i] = event.first_shown;
            let key = read_key(entry.read_master, entry.request, event.step);
            flips += self.push_spans(&mut spans, step, i, entry, key, 0..tokens.end);
        }
        check_flips(flips)?;
        let threads = threads_for(&spans);
        Ok(self.sample(step, spans, threads, Some(first_shown)))
    }

    /// Checks a step; each row with its index, its entry and the tokens it writes.
    fn rows_of(&self, step: &StepRows<'_>) -> Result<Vec<StepRow<'_>>, Error> {
        let rows = step.checked(self.entries.len())?;
        Ok(rows
            .into_iter()
            .map(|(i, entry, tokens)| (i, &self.entries[entry], tokens))
            .collect())
    }

    /// The spans of a step's writes that can hold a flip.
    fn write_spans(&self, step: &StepRows<'_>) -> Result<Vec<Span<'_>>, Error> {
        let mut spans = Vec::with_capacity(step.entry.len());
        let mut flips = 0.0;
        for (i, entry, tokens) in self.rows_of(step)? {
            if entry.site != Site::Read {
                flips += self.push_spans(&mut spans, step, i, entry, entry.write_key, tokens);
            }
        }
        check_flips(flips)?;
        Ok(spans)
    }

    /// Appends the shown spans among `tokens` of row `i`; returns their expected flips.
    fn push_spans<'a>(
        &'a self,
        spans: &mut Vec<Span<'a>>,
        step: &StepRows<'_>,
        i: usize,
        entry: &'a Entry,
        key: Key,
        tokens: Range<u64>,
    ) -> f64 {
        let (sampler, rows) = (&self.samplers[entry.sampler], &self.rows[entry.rows]);
        if sampler.never_hits() || rows.is_empty() {
            return 0.0;
        }
        let selector = &self.selectors[entry.selector];
        let mut flips = 0.0;
        for tokens in selector.token_spans(tokens, entry.prompt_len) {
            let cells = (tokens.end - tokens.start) as f64 * f64::from(self.layers);
            flips += cells * rows.len() as f64 * sampler.expected_flips_per_row();
            spans.push(Span {
                index: i as u32,
                row: step.row[i],
                entry,
                key,
                tokens,
                cost: f64::from(self.layers) * cell_cost(sampler, rows),
            });
        }
        flips
    }

    fn sample(
        &self,
        step: &StepRows<'_>,
        spans: Vec<Span<'_>>,
        threads: NonZeroUsize,
        first_shown: Option<Vec<u32>>,
    ) -> StepFaults {
        let shares = share(spans, threads.get());
        let parts = thread::scope(|scope| {
            let mut shares = shares.iter();
            let first = shares.next();
            let others: Vec<_> = shares
                .map(|spans| scope.spawn(|| self.sample_spans(spans)))
                .collect();
            let mut parts: Vec<_> = first
                .map(|spans| self.sample_spans(spans))
                .into_iter()
                .collect();
            for other in others {
                parts.push(other.join().unwrap_or_else(|panic| resume_unwind(panic)));
            }
            parts
        });
        StepFaults::new(self.layers, self.bits, parts, step.entry.len(), first_shown)
    }

    /// The faults of each layer, in order of span, token, row and element.
    fn sample_spans(&self, spans: &[Span<'_>]) -> Vec<LayerFaults> {
        let mut faults = vec![LayerFaults::default(); self.layers as usize];
        let mut scratch = Scratch::default();
        for span in spans {
            let entry = span.entry;
            let sampler = &self.samplers[entry.sampler];
            let rows = &self.rows[entry.rows];
            let layers = self.selectors[entry.selector].layer_spans(0..self.layers);
            let place = |layer| Place {
                key: span.key,
                request: entry.request,
                layer,
            };
            let owner = Owner {
                index: span.index,
                row: span.row,
                op: entry.op,
                target: entry.target,
            };
            // Fill the lanes of the generator with tokens if there are many, otherwise with layers.
            let few_tokens = span.tokens.end - span.tokens.start < LANES as u64 / 2;
            let geometry = sampler.geometry();
            for layers in layers {
                if few_tokens && sampler.level() == Level::Token {
                    for token in span.tokens.clone() {
                        let (place, token) = (place(layers.start), token as u32);
                        sampler.visit_layers(
                            &place,
                            token,
                            layers.clone(),
                            rows,
                            &mut scratch,
                            |layer, hits| {
                                faults[layer as usize].push(owner, token, geometry, hits);
                            },
                        );
                    }
                    continue;
                }
                for layer in layers {
                    let faults = &mut faults[layer as usize];
                    sampler.visit_tokens(
                        &place(layer),
                        span.tokens.clone(),
                        rows,
                        &mut scratch,
                        |token, hits| {
                            faults.push(owner, token, geometry, hits);
                        },
                    );
                }
            }
        }
        faults
    }
}

/// The read event that a forward belongs to (sampling.md, section 7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ReadEvent {
    /// Step of the event, which is in its key.
    pub(crate) step: u32,
    /// 0 for the prefill, i for the i-th decode forward.
    pub(crate) number: u32,
    /// Tokens below this were shown by an earlier forward of the event.
    pub(crate) first_shown: u32,
}

impl ReadEvent {
    /// The event of a forward that writes `tokens`; `None` if it writes nothing or has queries of several events.
    ///
    /// # Errors
    /// [`Error::Range`] for a step beyond 32 bits.
    pub(crate) fn of(tokens: &Range<u64>, prompt_len: u32) -> Result<Option<Self>, Error> {
        let prompt = u64::from(prompt_len);
        let prefill = tokens.end <= prompt;
        if tokens.is_empty() || !prefill && tokens.end - tokens.start > 1 {
            return Ok(None);
        }
        let step = tokens.end.max(prompt);
        let step = u32::try_from(step).map_err(|_| Error::Range {
            name: "step",
            start: step,
            end: step + 1,
            limit: MAX_TOKENS,
        })?;
        Ok(Some(Self {
            step,
            number: step - prompt_len,
            first_shown: if prefill { tokens.start as u32 } else { 0 },
        }))
    }
}

pub(crate) fn check_length(name: &'static str, len: usize, expected: usize) -> Result<(), Error> {
    if len != expected {
        return Err(Error::Length {
            name,
            len,
            expected,
        });
    }
    Ok(())
}

pub(crate) fn check_index(name: &'static str, value: u64, limit: u64) -> Result<(), Error> {
    if value >= limit {
        return Err(Error::Index { name, value, limit });
    }
    Ok(())
}
