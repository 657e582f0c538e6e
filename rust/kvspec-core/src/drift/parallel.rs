//! Dividing a batch among threads.

use std::sync::{LazyLock, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::symbol::Symbol;
use super::vector::LANES;

/// Symbols of one part: few enough to stay in the second-level cache and to tell early how long the whole will take,
/// enough to fill lanes with pairs of like size.
const PART_SYMBOLS: usize = 1 << 15;

/// Rows of one part at most.
const PART_ROWS: usize = 1024;

/// Work that is worth one more thread: several times what it takes to start it.
const WORTH_A_THREAD: Duration = Duration::from_micros(170);

/// Rows by which the size of all is estimated.
const SAMPLE_ROWS: usize = 64;

/// Symbols that are read in a nanosecond at best, where they come from memory.
const SYMBOLS_PER_NS: u64 = 16;

/// More threads than any machine gains from: each takes memory.
const MOST_THREADS: usize = 64;

/// Asking the system costs as much as scoring a thousand short rows, so it is asked once.
static AVAILABLE: LazyLock<usize> =
    LazyLock::new(|| thread::available_parallelism().map_or(1, usize::from));

/// How a batch is divided.
#[derive(Debug, Clone, Copy)]
pub(super) struct Division {
    /// Rows of one part.
    pub(super) rows: usize,
    symbols: usize,
    threads: usize,
}

impl Division {
    /// Divides `rows` pairs among at most `threads` threads, or as many as the machine offers if that is 0.
    pub(super) fn new<'a, T: Symbol>(
        rows: usize,
        pair: &impl Fn(usize) -> (&'a [T], &'a [T]),
        threads: usize,
    ) -> Self {
        let sample = rows.min(SAMPLE_ROWS);
        let length = |index| {
            let (golden, faulty) = pair(index * rows / sample);
            golden.len().saturating_add(faulty.len())
        };
        let sampled = (0..sample).map(length).fold(0, usize::saturating_add);
        let fitting = (PART_SYMBOLS * sample / sampled.max(1)).clamp(1, PART_ROWS);
        let threads = if threads > 0 { threads } else { *AVAILABLE };
        Self {
            // Full vectors, if there are several.
            rows: if fitting > LANES {
                fitting - fitting % LANES
            } else {
                fitting
            },
            symbols: sampled.saturating_mul(rows) / sample.max(1),
            threads: threads.min(MOST_THREADS),
        }
    }

    /// Other threads to start for work of this length.
    fn others(self, foreseen: Duration, parts: usize) -> usize {
        let worth = foreseen.as_nanos() / WORTH_A_THREAD.as_nanos();
        let most = (self.threads - 1).min(parts.saturating_sub(1));
        usize::try_from(worth).map_or(most, |worth| worth.min(most))
    }

    /// Hands the parts out, one at a time. Each is written to memory of its own, so the order does not matter.
    ///
    /// The first thread works alone until it can tell from the parts done that the others are worth more threads.
    pub(super) fn share<P: Send, S: Default>(
        self,
        parts: &mut [P],
        work: impl Fn(&mut P, &mut S) + Sync,
    ) {
        let count = parts.len();
        let mut queue = parts.iter_mut();
        let mut scratch = S::default();
        let mut foreseen = Duration::from_nanos(self.symbols as u64 / SYMBOLS_PER_NS);
        let start = Instant::now();
        let others = loop {
            let others = self.others(foreseen, queue.len());
            if others > 0 {
                break others;
            }
            let Some(part) = queue.next() else { return };
            work(part, &mut scratch);
            let (left, done) = (queue.len(), count - queue.len());
            // Asking for the time costs as much as a short part.
            if done.is_power_of_two() {
                foreseen = start.elapsed().mul_f64(left as f64 / done as f64);
            }
        };
        let queue = Mutex::new(queue);
        let run = |scratch: &mut S| {
            loop {
                let part = queue.lock().unwrap_or_else(PoisonError::into_inner).next();
                match part {
                    Some(part) => work(part, scratch),
                    None => break,
                }
            }
        };
        thread::scope(|scope| {
            for _ in 0..others {
                // Where the system has no thread to give, those that run do the work.
                let spawned = thread::Builder::new().spawn_scoped(scope, || run(&mut S::default()));
                if spawned.is_err() {
                    break;
                }
            }
            run(&mut scratch);
        });
    }
}
