//! Edit distance: which kernel takes which pair.

use pulp::{Arch, NullaryFnOnce};

use super::prefix::{common_prefix, common_suffix};
use super::symbol::Symbol;
use super::vector::LANES;
use super::{frontier, lanes, wave};

/// A pair whose ends differ, waiting for its distance.
pub(super) struct Job<'a, T> {
    /// The shorter sequence without the common ends; not empty.
    pub(super) short: &'a [T],
    /// The longer sequence without the common ends.
    pub(super) long: &'a [T],
    /// Row of the result.
    pub(super) row: usize,
    /// The result, once known.
    pub(super) distance: u32,
}

impl<T> Job<'_, T> {
    fn words(&self) -> usize {
        self.short.len().div_ceil(64)
    }

    /// Cells of the bit-parallel matrix, in units of 64 rows.
    pub(super) fn cost(&self) -> usize {
        self.words() * self.long.len()
    }
}

/// Takes the common prefix and suffix away: neither can hold an edit of a cheapest alignment. `prefix` is known
/// already. Returns the shorter part first.
#[inline(always)]
pub(super) fn trim<'a, T: Symbol>(a: &'a [T], b: &'a [T], prefix: usize) -> (&'a [T], &'a [T]) {
    let (a, b) = (&a[prefix..], &b[prefix..]);
    let suffix = common_suffix(a, b);
    let (a, b) = (&a[..a.len() - suffix], &b[..b.len() - suffix]);
    if a.len() <= b.len() { (a, b) } else { (b, a) }
}

/// Buffers that live as long as a batch.
#[derive(Default)]
pub(super) struct Scratch<T> {
    lanes: lanes::Scratch<T>,
    frontier: frontier::Scratch,
}

/// Fills in `distance` of every job: the edit distance where it is at most `limit`, `limit + 1` otherwise.
pub(super) fn solve<T: Symbol>(
    arch: Arch,
    jobs: &mut [Job<'_, T>],
    limit: usize,
    scratch: &mut Scratch<T>,
) {
    let over = u32::try_from(limit.saturating_add(1)).unwrap_or(u32::MAX);
    let mut keys = Vec::with_capacity(jobs.len());
    let mut planes = 0;
    for (index, job) in jobs.iter_mut().enumerate() {
        if job.long.len() - job.short.len() > limit {
            job.distance = over;
            continue;
        }
        if let Some(distance) = near(arch, job, limit, scratch) {
            job.distance = distance.min(over);
        } else if job.words() > lanes::MAX_WORDS {
            job.distance = far(arch, job, limit).min(over);
        } else {
            keys.push(
                ((job.words() as u64) << 60) | ((job.long.len() as u64) << 28) | index as u64,
            );
            planes |= arch.dispatch(Union(job.short)) | arch.dispatch(Union(job.long));
        }
    }
    // Lanes of one vector run as long as the longest text in them, so pairs of like size share a vector.
    keys.sort_unstable();
    let planes = (u64::BITS - planes.leading_zeros()).max(1) as usize;
    for group in keys.chunks(LANES) {
        let member = |key: u64| (key & 0xfff_ffff) as usize;
        let mut group = group.to_vec();
        group.sort_unstable_by_key(|key| key << 4);
        let mut pairs: [lanes::Pair<'_, T>; LANES] = [(&[], &[]); LANES];
        for (pair, &key) in pairs.iter_mut().zip(&group) {
            let job = &jobs[member(key)];
            *pair = (job.short, job.long);
        }
        let distances = lanes::distances(arch, &pairs[..group.len()], planes, &mut scratch.lanes);
        for (&key, distance) in group.iter().zip(distances) {
            jobs[member(key)].distance = distance.min(over);
        }
    }
}

/// The distance of a pair that is long and nearly equal, if the search for it stays cheaper than a bit-parallel one.
fn near<T: Symbol>(
    arch: Arch,
    job: &Job<'_, T>,
    limit: usize,
    scratch: &mut Scratch<T>,
) -> Option<u32> {
    // One diagonal costs about as much as four 64-row cells.
    let budget = job.cost() / 4;
    if budget < SMALLEST_BUDGET {
        return None;
    }
    arch.dispatch(Near {
        job,
        limit,
        budget,
        scratch: &mut scratch.frontier,
    })
}

/// Below this the bit-parallel kernel is done before the first look at the progress.
const SMALLEST_BUDGET: usize = 32;

struct Near<'a, 'b, T> {
    job: &'a Job<'b, T>,
    limit: usize,
    budget: usize,
    scratch: &'a mut frontier::Scratch,
}

impl<T: Symbol> NullaryFnOnce for Near<'_, '_, T> {
    type Output = Option<u32>;

    #[inline(always)]
    fn call(self) -> Self::Output {
        frontier::distance(
            self.job.short,
            self.job.long,
            self.limit,
            self.budget,
            self.scratch,
        )
    }
}

/// The distance of a pair too long for the lanes.
fn far<T: Symbol>(arch: Arch, job: &Job<'_, T>, most: usize) -> u32 {
    let renamed = wave::Renamed::new(arch, job.short, job.long);
    let mut limit = most.min(renamed.guess());
    loop {
        let found = renamed.within(limit);
        if found <= limit || limit >= most {
            return u32::try_from(found).unwrap_or(u32::MAX);
        }
        // `found` is the cost of a real path, so the next band surely holds the cheapest one.
        limit = found.min(most);
    }
}

/// The bits that any of the symbols has.
struct Union<'a, T>(&'a [T]);

impl<T: Symbol> NullaryFnOnce for Union<'_, T> {
    type Output = u64;

    #[inline(always)]
    fn call(self) -> Self::Output {
        self.0.iter().fold(0, |bits, symbol| bits | symbol.bits())
    }
}

/// The least number of insertions, deletions and substitutions that turn `a` into `b`.
#[must_use]
pub fn edit_distance<T: Symbol>(a: &[T], b: &[T]) -> u32 {
    edit_distance_within(a, b, u32::MAX - 1)
}

/// The edit distance where it is at most `limit`, `limit + 1` otherwise.
#[must_use]
pub fn edit_distance_within<T: Symbol>(a: &[T], b: &[T], limit: u32) -> u32 {
    let (short, long) = trim(a, b, common_prefix(a, b));
    if short.is_empty() {
        return (long.len() as u32).min(limit.saturating_add(1));
    }
    let mut jobs = [Job {
        short,
        long,
        row: 0,
        distance: 0,
    }];
    solve(
        Arch::new(),
        &mut jobs,
        limit as usize,
        &mut Scratch::default(),
    );
    jobs[0].distance
}
