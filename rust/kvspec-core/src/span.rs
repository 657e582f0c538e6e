//! How the work of a step is divided among threads. No fault depends on it.

use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::LazyLock;
use std::thread;

use crate::fault::{Level, Sampler};
use crate::philox::Key;
use crate::select::Rows;
use crate::step::Entry;

/// Estimated work, in nanoseconds, below which a second thread costs more than it saves.
const PARALLEL_NS: f64 = 300_000.0;

/// Asking the system reads files, which is too slow for every step.
static THREADS: LazyLock<NonZeroUsize> =
    LazyLock::new(|| thread::available_parallelism().unwrap_or(NonZeroUsize::MIN));

/// Consecutive tokens of one entry of a step.
#[derive(Clone, Debug)]
pub(crate) struct Span<'a> {
    /// Index into the step's columns.
    pub(crate) index: u32,
    pub(crate) row: u32,
    pub(crate) entry: &'a Entry,
    /// Of the write, or of the read event.
    pub(crate) key: Key,
    pub(crate) tokens: Range<u64>,
    /// Estimated work per token in nanoseconds.
    pub(crate) cost: f64,
}

impl Span<'_> {
    fn work(&self) -> f64 {
        (self.tokens.end - self.tokens.start) as f64 * self.cost
    }
}

/// Threads that are worth their start.
pub(crate) fn threads_for(spans: &[Span<'_>]) -> NonZeroUsize {
    let work: f64 = spans.iter().map(Span::work).sum();
    if work < PARALLEL_NS {
        NonZeroUsize::MIN
    } else {
        *THREADS
    }
}

/// Cuts spans into at most `parts` shares of about equal work, keeping their order.
pub(crate) fn share(spans: Vec<Span<'_>>, parts: usize) -> Vec<Vec<Span<'_>>> {
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
pub(crate) fn cell_cost(sampler: &Sampler, rows: &Rows) -> f64 {
    let rows = rows.len() as f64;
    let flips = rows * sampler.expected_flips_per_row();
    match sampler.level() {
        Level::Token => 4.0 + 40.0 * flips,
        Level::Head => 10.0 * rows + 40.0 * flips,
        Level::Dense => 2.0 * rows * f64::from(sampler.eligible_bits_per_row()),
    }
}
