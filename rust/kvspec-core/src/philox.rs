//! Philox4x32-10 and the layout of its keys and counters (sampling.md, section 2).
//!
//! Every draw of a campaign is a pure function of a key and a counter. Who owns which counter word is
//! decided here and nowhere else:
//!
//! | word | holds |
//! |---|---|
//! | 0 | token |
//! | 1 | layer << 16 \| kv << 15 \| head |
//! | 2 | request |
//! | 3 | domain << 24 \| block |

#![expect(
    clippy::inline_always,
    reason = "has to inherit the instruction set of its caller"
)]

/// A Philox key.
pub type Key = [u32; 2];
/// A counter, or the four words drawn from it.
pub type Block = [u32; 4];

/// Blocks that [`philox_lanes`] computes side by side.
pub const LANES: usize = 16;

const MULTIPLIERS: [u64; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: Key = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: usize = 10;

/// What a block of draws is for. Part of the counter, so streams of different purpose never meet.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Domain {
    /// Count and positions of one row.
    Row = 0,
    /// Whether a page is hit.
    Page = 1,
    /// One draw per unit of a row.
    Dense = 2,
    /// Which alternative of a hit unit, beside `Dense`.
    Pick = 3,
    /// Count and positions of the rows of one token.
    Token = 4,
    /// The key of a read event.
    Read = 5,
    /// The keys of the faults of scales.
    Scales = 6,
}

/// Counter word 1 of a row, or of a whole token with head 0.
#[inline]
pub(crate) fn word1(layer: u32, kv: u32, head: u32) -> u32 {
    layer << 16 | kv << 15 | head
}

/// Counter word 3.
#[inline]
pub(crate) fn word3(domain: Domain, block: u32) -> u32 {
    (domain as u32) << 24 | block
}

/// One block of Philox4x32-10.
#[inline]
#[must_use]
pub fn philox(counter: Block, key: Key) -> Block {
    let [mut a, mut b, mut c, mut d] = counter;
    let [mut k0, mut k1] = key;
    for _ in 0..ROUNDS {
        let p = MULTIPLIERS[0] * u64::from(a);
        let q = MULTIPLIERS[1] * u64::from(c);
        (a, b, c, d) = (
            (q >> 32) as u32 ^ b ^ k0,
            q as u32,
            (p >> 32) as u32 ^ d ^ k1,
            p as u32,
        );
        k0 = k0.wrapping_add(WEYL[0]);
        k1 = k1.wrapping_add(WEYL[1]);
    }
    [a, b, c, d]
}

/// [`LANES`] blocks, word by word: `words[w][lane]`.
#[derive(Clone, Debug)]
pub struct Lanes {
    /// Word `w` of every lane.
    pub words: [[u32; LANES]; 4],
}

impl Lanes {
    pub(crate) const fn new() -> Self {
        Self {
            words: [[0; LANES]; 4],
        }
    }

    /// The four words of one lane.
    #[inline]
    #[must_use]
    pub fn block(&self, lane: usize) -> Block {
        let [a, b, c, d] = &self.words;
        [a[lane], b[lane], c[lane], d[lane]]
    }
}

/// [`LANES`] blocks whose counter word `WORD` is `counter[WORD] + lane * stride`, modulo 2^32.
#[inline(always)]
#[must_use]
pub fn philox_lanes<const WORD: usize>(counter: Block, stride: u32, key: Key) -> Lanes {
    // Words live in 64-bit lanes because the 32 x 32 -> 64 multiplication of SSE and AVX reads them so.
    // Their upper halves hold rubbish between rounds and are masked off before each multiplication.
    let mut x = [[0_u64; LANES]; 4];
    for (word, lanes) in x.iter_mut().enumerate() {
        for (lane, value) in lanes.iter_mut().enumerate() {
            let step = if word == WORD {
                stride.wrapping_mul(lane as u32)
            } else {
                0
            };
            *value = u64::from(counter[word].wrapping_add(step));
        }
    }
    let [mut a, mut b, mut c, mut d] = x;
    let [mut k0, mut k1] = key;
    for _ in 0..ROUNDS {
        for lane in 0..LANES {
            let p = MULTIPLIERS[0] * (a[lane] & 0xFFFF_FFFF);
            let q = MULTIPLIERS[1] * (c[lane] & 0xFFFF_FFFF);
            a[lane] = (q >> 32) ^ b[lane] ^ u64::from(k0);
            b[lane] = q;
            c[lane] = (p >> 32) ^ d[lane] ^ u64::from(k1);
            d[lane] = p;
        }
        k0 = k0.wrapping_add(WEYL[0]);
        k1 = k1.wrapping_add(WEYL[1]);
    }
    let narrow = |lanes: [u64; LANES]| lanes.map(|value| value as u32);
    Lanes {
        words: [narrow(a), narrow(b), narrow(c), narrow(d)],
    }
}

/// Blocks whose counter word `WORD` grows by `stride` from lane to lane, with the widest instructions of the machine.
pub(crate) fn philox_fill<const WORD: usize>(
    blocks: &mut [Lanes],
    counter: Block,
    stride: u32,
    key: Key,
) {
    pulp::Arch::new().dispatch(Fill::<WORD> {
        blocks,
        counter,
        stride,
        key,
    });
}

/// A type of its own: a closure is called through a shim that no instruction set is inlined into.
struct Fill<'a, const WORD: usize> {
    blocks: &'a mut [Lanes],
    counter: Block,
    stride: u32,
    key: Key,
}

impl<const WORD: usize> pulp::WithSimd for Fill<'_, WORD> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(mut self, _: S) {
        for lanes in self.blocks {
            *lanes = philox_lanes::<WORD>(self.counter, self.stride, self.key);
            let step = self.stride.wrapping_mul(LANES as u32);
            self.counter[WORD] = self.counter[WORD].wrapping_add(step);
        }
    }
}

/// The 64-bit draw `index` of a stream, given the block `index / 2` that holds it.
#[inline]
pub(crate) fn draw(block: &Block, index: u32) -> u64 {
    let [a, b, c, d] = block.map(u64::from);
    if index & 1 == 0 {
        a << 32 | b
    } else {
        c << 32 | d
    }
}

/// `floor(draw * bound / 2^64)`, uniform in `0..bound` up to 2^-64 per value.
#[inline]
pub(crate) fn bounded(draw: u64, bound: u32) -> u32 {
    ((u128::from(draw) * u128::from(bound)) >> 64) as u32
}

/// The write key and the read master of one fault entry in one trial.
///
/// `experiment` is the 64-bit id of the cell of the plan; equal ids share their random numbers.
#[must_use]
pub fn derive_keys(seed: u64, experiment: u64, trial: u32, fault: u32) -> (Key, Key) {
    let halves = |value: u64| [value as u32, (value >> 32) as u32];
    let [low, high] = halves(experiment);
    let [a, b, c, d] = philox([trial, fault, low, high], halves(seed));
    ([a, b], [c, d])
}

/// The write key and the read master of the faults of scales, from the write key of [`derive_keys`]: streams of
/// their own, so that faults of values and of scales are independent even where all four numbers are the same.
#[must_use]
pub fn scale_keys(write: Key) -> (Key, Key) {
    let [a, b, c, d] = philox([0, 0, 0, word3(Domain::Scales, 0)], write);
    ([a, b], [c, d])
}

/// The key of one read event, a request at a step, from the read master of [`derive_keys`].
#[must_use]
pub fn read_key(master: Key, request: u32, step: u32) -> Key {
    let [a, b, _, _] = philox([step, 0, request, word3(Domain::Read, 0)], master);
    [a, b]
}
