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
            solve(arch, &mut jobs, limit, &mut Scratch::default());
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
