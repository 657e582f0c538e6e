//! Edit distances: which edits they count, and which kernel takes which pair.

use std::marker::PhantomData;

use pulp::{Arch, NullaryFnOnce};

use super::prefix::{common_prefix, common_suffix};
use super::simd::Lanes;
use super::symbol::Symbol;
use super::vector::{Column, IndelColumn, LANES, LevenshteinColumn, Vector};
use super::{frontier, lanes, short, wave};

/// The edits that a distance counts, each as one, and the matrix by which the bit-parallel kernels compute it.
pub(super) trait Edits: Copy + Send + Sync + 'static {
    /// Whether replacing a symbol is one edit.
    const SUBSTITUTIONS: bool;

    /// The difference between neighbours in row 0 and in column 0 of the matrix.
    const EDGE: u8;

    /// How the matrix is computed.
    type Column<L: Lanes>: Column<L>;

    /// The distance that the value in the last cell stands for.
    fn distance(rows: usize, cols: usize, value: i64) -> usize;

    /// What enters a column at the top.
    #[inline(always)]
    fn above_first<L: Lanes>(l: L) -> (L::Word, L::Word) {
        let edge = Vector::splat(u64::from(Self::EDGE));
        (l.load(edge), l.load(Vector::ZERO))
    }
}

/// Insertions, deletions and substitutions; the matrix holds the distances of all beginnings.
#[derive(Clone, Copy)]
pub(super) struct Levenshtein;

impl Edits for Levenshtein {
    const SUBSTITUTIONS: bool = true;
    const EDGE: u8 = 1;
    type Column<L: Lanes> = LevenshteinColumn<L>;

    #[inline(always)]
    fn distance(_rows: usize, _cols: usize, value: i64) -> usize {
        value as usize
    }
}

/// Insertions and deletions; the matrix holds the lengths of the longest common subsequences of all beginnings.
#[derive(Clone, Copy)]
pub(super) struct Indel;

impl Edits for Indel {
    const SUBSTITUTIONS: bool = false;
    const EDGE: u8 = 0;
    type Column<L: Lanes> = IndelColumn<L>;

    #[inline(always)]
    fn distance(rows: usize, cols: usize, value: i64) -> usize {
        rows + cols - 2 * value as usize
    }
}

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

/// Buffers that live as long as a thread works on a batch.
#[derive(Default)]
pub(super) struct Scratch<T> {
    short: short::Scratch,
    lanes: lanes::Scratch<T>,
    frontier: frontier::Scratch,
}

/// Words, length of the text and index of a job in one number: pairs of like size are neighbours once sorted.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Key(u64);

impl Key {
    fn new<T>(job: &Job<'_, T>, index: usize) -> Self {
        let words = job.words().min(lanes::MAX_WORDS + 1) as u64;
        Self((words << 60) | ((job.long.len() as u64) << 28) | index as u64)
    }

    fn kernel(self) -> Kernel {
        match (self.0 >> 60) as usize {
            0..=1 => Kernel::Short,
            2..=lanes::MAX_WORDS => Kernel::Lanes,
            _ => Kernel::Wave,
        }
    }

    fn index(self) -> usize {
        (self.0 & 0xfff_ffff) as usize
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kernel {
    Short,
    Lanes,
    Wave,
}

/// Fills in `distance` of every job: the distance where it is at most `limit`, `limit + 1` otherwise.
pub(super) fn solve<E: Edits, T: Symbol>(
    arch: Arch,
    jobs: &mut [Job<'_, T>],
    limit: usize,
    scratch: &mut Scratch<T>,
) {
    let over = u32::try_from(limit.saturating_add(1)).unwrap_or(u32::MAX);
    let mut keys = Vec::with_capacity(jobs.len());
    for (index, job) in jobs.iter_mut().enumerate() {
        let key = Key::new(job, index);
        if job.long.len() - job.short.len() > limit {
            job.distance = over;
        } else if key.kernel() == Kernel::Wave {
            job.distance = long::<E, T>(arch, job, limit, &mut scratch.frontier).min(over);
        } else if key.kernel() == Kernel::Lanes
            && let Some(distance) = near::<E, T>(arch, job, limit, &mut scratch.frontier)
        {
            job.distance = distance;
        } else {
            keys.push(key);
        }
    }
    // Lanes of one vector run as long as the longest text in them, so pairs of like size share a vector.
    keys.sort_unstable();
    for keys in keys.chunk_by(|a, b| a.kernel() == b.kernel()) {
        for keys in keys.chunks(LANES) {
            together::<E, T>(arch, jobs, keys, over, scratch);
        }
    }
}

/// The distances of up to eight pairs, one in each lane.
fn together<E: Edits, T: Symbol>(
    arch: Arch,
    jobs: &mut [Job<'_, T>],
    keys: &[Key],
    over: u32,
    scratch: &mut Scratch<T>,
) {
    let mut order: [usize; LANES] = std::array::from_fn(|lane| lane);
    let order = &mut order[..keys.len()];
    order.sort_unstable_by_key(|&at| keys[at].0 << 4);
    let mut pairs: [lanes::Pair<'_, T>; LANES] = [(&[], &[]); LANES];
    for (pair, &at) in pairs.iter_mut().zip(&*order) {
        let job = &jobs[keys[at].index()];
        *pair = (job.short, job.long);
    }
    let pairs = &pairs[..keys.len()];
    let distances = match keys[0].kernel() {
        Kernel::Short => short::distances::<E, T>(arch, pairs, &mut scratch.short),
        _ => lanes::distances::<E, T>(arch, pairs, &mut scratch.lanes),
    };
    for (&at, distance) in order.iter().zip(distances) {
        jobs[keys[at].index()].distance = distance.min(over);
    }
}

/// The distance of a pair that is nearly equal, if the search for it stays cheaper than a bit-parallel one.
fn near<E: Edits, T: Symbol>(
    arch: Arch,
    job: &Job<'_, T>,
    limit: usize,
    scratch: &mut frontier::Scratch,
) -> Option<u32> {
    // One diagonal costs about as much as one step of 64 rows in a lane.
    let budget = job.words() * job.long.len();
    arch.dispatch(Near {
        job,
        limit,
        budget,
        scratch,
        edits: PhantomData::<E>,
    })
}

struct Near<'a, 'b, E, T> {
    job: &'a Job<'b, T>,
    limit: usize,
    budget: usize,
    scratch: &'a mut frontier::Scratch,
    edits: PhantomData<E>,
}

impl<E: Edits, T: Symbol> NullaryFnOnce for Near<'_, '_, E, T> {
    type Output = Option<u32>;

    #[inline(always)]
    fn call(self) -> Self::Output {
        frontier::distance::<E, T>(
            self.job.short,
            self.job.long,
            self.limit,
            self.budget,
            self.scratch,
        )
    }
}

/// The distance of a pair too long for the lanes.
fn long<E: Edits, T: Symbol>(
    arch: Arch,
    job: &Job<'_, T>,
    most: usize,
    scratch: &mut frontier::Scratch,
) -> u32 {
    if let Some(distance) = near::<E, T>(arch, job, most, scratch) {
        return distance;
    }
    let renamed = wave::Renamed::<E>::new(arch, job.short, job.long);
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

/// The least number of insertions, deletions and substitutions that turn `a` into `b`.
#[must_use]
pub fn edit_distance<T: Symbol>(a: &[T], b: &[T]) -> u32 {
    edit_distance_within(a, b, u32::MAX - 1)
}

/// The edit distance where it is at most `limit`, `limit + 1` otherwise.
#[must_use]
pub fn edit_distance_within<T: Symbol>(a: &[T], b: &[T], limit: u32) -> u32 {
    of_pair::<Levenshtein, T>(a, b, limit)
}

/// The least number of insertions and deletions that turn `a` into `b`.
#[must_use]
pub fn indel_distance<T: Symbol>(a: &[T], b: &[T]) -> u32 {
    of_pair::<Indel, T>(a, b, u32::MAX - 1)
}

/// Length of the longest common subsequence: `(|a| + |b| - indel_distance(a, b)) / 2`.
#[must_use]
pub fn lcs_length<T: Symbol>(a: &[T], b: &[T]) -> usize {
    (a.len() + b.len() - indel_distance(a, b) as usize) / 2
}

fn of_pair<E: Edits, T: Symbol>(a: &[T], b: &[T], limit: u32) -> u32 {
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
    solve::<E, T>(
        Arch::new(),
        &mut jobs,
        limit as usize,
        &mut Scratch::default(),
    );
    jobs[0].distance
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machines() -> Vec<Arch> {
        let mut all = vec![Arch::Scalar];
        #[cfg(target_arch = "x86_64")]
        {
            all.extend(pulp::x86::V3::try_new().map(Arch::V3));
            all.extend(pulp::x86::V4::try_new().map(Arch::V4));
        }
        all
    }

    fn naive<T: PartialEq>(a: &[T], b: &[T]) -> u32 {
        let mut row: Vec<u32> = (0..=b.len() as u32).collect();
        for x in a {
            let mut diagonal = row[0];
            row[0] += 1;
            for (j, y) in b.iter().enumerate() {
                let substituted = diagonal + u32::from(x != y);
                diagonal = row[j + 1];
                row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
            }
        }
        row[b.len()]
    }

    fn naive_indel<T: PartialEq>(a: &[T], b: &[T]) -> u32 {
        let mut row: Vec<u32> = (0..=b.len() as u32).collect();
        for x in a {
            let mut diagonal = row[0];
            row[0] += 1;
            for (j, y) in b.iter().enumerate() {
                let here = if x == y {
                    diagonal
                } else {
                    row[j].min(row[j + 1]) + 1
                };
                diagonal = row[j + 1];
                row[j + 1] = here;
            }
        }
        row[b.len()]
    }

    /// Numbers that look random: xorshift with a fixed start.
    fn numbers() -> impl FnMut(usize) -> usize {
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        move |below| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 33) as usize % below
        }
    }

    /// A sequence, and one that keeps `keep` of it and goes on with other symbols.
    fn pair<T: Symbol>(
        next: &mut impl FnMut(usize) -> usize,
        symbol: &impl Fn(usize) -> T,
        length: usize,
        alphabet: usize,
    ) -> (Vec<T>, Vec<T>) {
        let a: Vec<T> = (0..length).map(|_| symbol(next(alphabet))).collect();
        let keep = next(length + 1);
        let more = next(length + 1);
        let mut b: Vec<T> = a[..keep].to_vec();
        b.extend((0..more).map(|_| symbol(next(alphabet))));
        for _ in 0..next(6) {
            if !b.is_empty() {
                let at = next(b.len());
                b[at] = symbol(next(alphabet));
            }
        }
        (a, b)
    }

    fn check<T: Symbol>(
        symbol: &impl Fn(usize) -> T,
        alphabet: usize,
        lengths: &[usize],
        limit: usize,
    ) {
        check_edits::<Levenshtein, T>(naive, symbol, alphabet, lengths, limit);
        check_edits::<Indel, T>(naive_indel, symbol, alphabet, lengths, limit);
    }

    fn check_edits<E: Edits, T: Symbol>(
        naive: fn(&[T], &[T]) -> u32,
        symbol: &impl Fn(usize) -> T,
        alphabet: usize,
        lengths: &[usize],
        limit: usize,
    ) {
        let mut next = numbers();
        let pairs: Vec<_> = lengths
            .iter()
            .map(|&length| pair(&mut next, symbol, length, alphabet))
            .collect();
        let want: Vec<_> = pairs
            .iter()
            .map(|(a, b)| naive(a, b).min(limit as u32 + 1))
            .collect();
        for arch in machines() {
            let mut jobs = Vec::new();
            for (row, (a, b)) in pairs.iter().enumerate() {
                let (short, long) = trim(a, b, common_prefix(a, b));
                if !short.is_empty() {
                    jobs.push(Job {
                        short,
                        long,
                        row,
                        distance: 0,
                    });
                }
            }
            solve::<E, T>(arch, &mut jobs, limit, &mut Scratch::default());
            for job in &jobs {
                assert_eq!(
                    job.distance, want[job.row],
                    "{arch:?}, row {}, limit {limit}",
                    job.row
                );
            }
        }
    }

    /// Around every boundary between one and eight words, and past them into the long kernel.
    const LENGTHS: [usize; 20] = [
        2, 3, 17, 63, 64, 65, 127, 128, 129, 200, 256, 300, 320, 400, 448, 511, 512, 513, 700, 1100,
    ];

    #[test]
    fn every_machine_computes_the_definition_on_bytes() {
        for alphabet in [2, 20, 128, 256] {
            check(&|n| n as u8, alphabet, &LENGTHS, u32::MAX as usize - 1);
        }
    }

    #[test]
    fn every_machine_computes_the_definition_on_token_ids() {
        for (alphabet, offset) in [
            (2, 0),
            (300, 0),
            (50_000, 0),
            (1000, u32::MAX as usize - 1000),
        ] {
            check(
                &|n| (n + offset) as u32,
                alphabet,
                &LENGTHS,
                u32::MAX as usize - 1,
            );
        }
    }

    #[test]
    fn every_machine_keeps_to_the_limit() {
        for limit in [0, 1, 30, 200, 600] {
            check(&|n| n as u8, 4, &LENGTHS, limit);
        }
    }

    #[test]
    fn long_strips_meet() {
        // Several strips of 512 rows, in every number of planes that the kernel is compiled for.
        for alphabet in [3, 60, 100, 200, 900, 3000, 40_000] {
            check(
                &|n| n as u32,
                alphabet,
                &[2600, 1537],
                u32::MAX as usize - 1,
            );
        }
    }
}
