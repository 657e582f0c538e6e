//! What one step of the engine writes: the flips of all its rows and layers.
//!
//! All trials of a campaign run in one batch. A [`TrialTable`] knows the sampler, selector and key of each
//! fault entry of each trial; a step names the entries that are in the batch and the tokens they write.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::panic::resume_unwind;
use std::sync::LazyLock;
use std::thread;

use crate::enumerate::{MAX_LAYERS, MAX_TOKENS, check_flips};
use crate::error::Error;
use crate::fault::{Level, Sampler};
use crate::inject::{LayerFaults, StepFaults};
use crate::philox::{Key, LANES};
use crate::sample::{Place, Scratch};
use crate::select::{Rows, Selector, check_range};

/// Estimated work, in nanoseconds, below which a second thread costs more than it saves.
const PARALLEL_NS: f64 = 300_000.0;

/// Asking the system reads files, which is too slow for every step.
static THREADS: LazyLock<NonZeroUsize> =
    LazyLock::new(|| thread::available_parallelism().unwrap_or(NonZeroUsize::MIN));

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
    /// Tokens of the prompt, where a selector asks for a phase.
    pub prompt_len: Vec<u32>,
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

/// The fault entries of all trials of a campaign.
#[derive(Clone, Debug)]
pub struct TrialTable {
    layers: u32,
    samplers: Vec<Sampler>,
    selectors: Vec<Selector>,
    /// Shown rows of each (sampler, selector) in use.
    rows: Vec<Rows>,
    entries: Vec<Entry>,
}

#[derive(Clone, Debug)]
struct Entry {
    sampler: usize,
    selector: usize,
    rows: usize,
    key: Key,
    request: u32,
    prompt_len: u32,
}

/// Consecutive tokens of one entry of a step.
#[derive(Clone, Debug)]
struct Span<'a> {
    /// Index into the step's columns.
    index: u32,
    row: u32,
    entry: &'a Entry,
    tokens: Range<u64>,
    /// Estimated work per token in nanoseconds.
    cost: f64,
}

impl TrialTable {
    /// A table for a model of `layers` layers of one geometry.
    ///
    /// # Errors
    /// [`Error::Length`] for columns of unequal length, [`Error::Index`] for a sampler or selector that is not
    /// there or too many layers, [`Error::Width`] if the samplers differ in bits per element.
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
        for pair in samplers.windows(2) {
            let [expected, bits] = [&pair[0], &pair[1]].map(|sampler| sampler.geometry().bits);
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
                key: trials.write_key[i],
                request: trials.request[i],
                prompt_len: trials.prompt_len[i],
            });
        }
        Ok(Self {
            layers,
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

    /// Samples a step, on all cores if that is worth it.
    ///
    /// # Errors
    /// [`Error::Length`] for columns of unequal length, [`Error::Index`] for an entry that is not there,
    /// [`Error::Range`] for tokens beyond 2^32, [`Error::TooManyFlips`] if they would not fit into memory.
    pub fn write_step(&self, step: &StepRows<'_>) -> Result<StepFaults, Error> {
        let spans = self.spans(step)?;
        let work: f64 = spans.iter().map(Span::work).sum();
        let threads = if work < PARALLEL_NS {
            NonZeroUsize::MIN
        } else {
            *THREADS
        };
        Ok(self.sample(step, spans, threads))
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
        let spans = self.spans(step)?;
        Ok(self.sample(step, spans, threads))
    }

    /// Checks a step and resolves it into the spans that can hold a flip.
    fn spans(&self, step: &StepRows<'_>) -> Result<Vec<Span<'_>>, Error> {
        let expected = step.entry.len();
        check_length("row", step.row.len(), expected)?;
        check_length("start", step.start.len(), expected)?;
        check_length("count", step.count.len(), expected)?;
        let mut spans = Vec::with_capacity(expected);
        let mut flips = 0.0;
        for (i, &entry) in step.entry.iter().enumerate() {
            check_index("entry", entry.into(), self.entries.len() as u64)?;
            let start = u64::from(step.start[i]);
            let tokens = start..start + u64::from(step.count[i]);
            check_range("tokens", &tokens, MAX_TOKENS)?;
            let entry = &self.entries[entry as usize];
            let (sampler, rows) = (&self.samplers[entry.sampler], &self.rows[entry.rows]);
            if sampler.never_hits() || rows.is_empty() {
                continue;
            }
            let selector = &self.selectors[entry.selector];
            for tokens in selector.token_spans(tokens, entry.prompt_len) {
                let cells = (tokens.end - tokens.start) as f64 * f64::from(self.layers);
                flips += cells * rows.len() as f64 * sampler.expected_flips_per_row();
                spans.push(Span {
                    index: i as u32,
                    row: step.row[i],
                    entry,
                    tokens,
                    cost: f64::from(self.layers) * cell_cost(sampler, rows),
                });
            }
        }
        check_flips(flips)?;
        Ok(spans)
    }

    fn sample(
        &self,
        step: &StepRows<'_>,
        spans: Vec<Span<'_>>,
        threads: NonZeroUsize,
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
        let bits = self.samplers.first().map(|sampler| sampler.geometry().bits);
        StepFaults::new(self.layers, bits, parts, step.entry.len())
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
                key: entry.key,
                request: entry.request,
                layer,
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
                                faults[layer as usize]
                                    .push(span.index, span.row, token, geometry, hits);
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
                            faults.push(span.index, span.row, token, geometry, hits);
                        },
                    );
                }
            }
        }
        faults
    }
}

impl Span<'_> {
    fn work(&self) -> f64 {
        (self.tokens.end - self.tokens.start) as f64 * self.cost
    }
}

/// Cuts spans into at most `parts` shares of about equal work, keeping their order.
fn share(spans: Vec<Span<'_>>, parts: usize) -> Vec<Vec<Span<'_>>> {
    let fair = spans.iter().map(Span::work).sum::<f64>() / parts as f64;
    let mut shares = vec![Vec::new()];
    let mut room = fair;
    for mut span in spans {
        while shares.len() < parts && span.work() > room {
            #[expect(clippy::cast_sign_loss, reason = "work is never negative")]
            let fitting = span.tokens.start + (room / span.cost) as u64;
            let (head, rest) = (span.tokens.start..fitting, fitting..span.tokens.end);
            if !head.is_empty() {
                let tokens = head;
                push_last(
                    &mut shares,
                    Span {
                        tokens,
                        ..span.clone()
                    },
                );
            }
            span.tokens = rest;
            shares.push(Vec::new());
            room = fair;
        }
        room -= span.work();
        push_last(&mut shares, span);
    }
    shares
}

fn push_last<T>(shares: &mut [Vec<T>], value: T) {
    if let Some(last) = shares.last_mut() {
        last.push(value);
    }
}

/// A rough price, in nanoseconds, of one (token, layer): only ever used to share out work.
fn cell_cost(sampler: &Sampler, rows: &Rows) -> f64 {
    let rows = rows.len() as f64;
    let flips = rows * sampler.expected_flips_per_row();
    match sampler.level() {
        Level::Token => 4.0 + 40.0 * flips,
        Level::Head => 10.0 * rows + 40.0 * flips,
        Level::Dense => 2.0 * rows * f64::from(sampler.eligible_bits_per_row()),
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
