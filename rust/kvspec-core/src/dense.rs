//! Rows at level dense: one draw per unit, as sets of bits.

#![expect(
    clippy::inline_always,
    reason = "has to inherit the instruction set of its caller"
)]

use pulp::{Arch, Simd, WithSimd};

use crate::fault::Sampler;
use crate::philox::{Domain, LANES, Lanes, bounded, draw};
use crate::sample::{Hit, Stream};

/// Buffers of one row.
#[derive(Debug, Default)]
pub(crate) struct Dense {
    /// Hit units, where a unit has several bits.
    units: Vec<u64>,
    /// Flipped eligible bits, with a spare word at the end.
    bits: Vec<u64>,
}

impl Sampler {
    /// One draw per unit; leaves the flipped eligible bits of the row in `dense`.
    pub(crate) fn draw_dense(&self, stream: &Stream, dense: &mut Dense) {
        let Dense { units, bits } = dense;
        bits.clear();
        bits.resize(self.per_row.div_ceil(64) as usize + 1, 0);
        if self.sub == 1 {
            self.draw_units(stream, bits);
        } else {
            units.clear();
            units.resize(self.units.div_ceil(64) as usize, 0);
            self.draw_units(stream, units);
            for (first, &word) in (0..).step_by(64).zip(&*units) {
                for unit in set_bits(word).map(|i| first + i) {
                    let pick = draw(&stream.block(Domain::Pick, unit / 2), unit);
                    let bit = unit * self.sub + bounded(pick, self.sub);
                    bits[(bit / 64) as usize] |= 1 << (bit % 64);
                }
            }
        }
        smear(bits, self.burst_len);
    }

    /// Sets the bits of the units hit; no bits beyond them.
    fn draw_units(&self, stream: &Stream, bits: &mut [u64]) {
        let Some(&threshold) = self.table.first() else {
            return;
        };
        let words = &mut bits[..self.units.div_ceil(64) as usize];
        if threshold == 0 {
            // every draw reaches it
            words.fill(u64::MAX);
        } else {
            Arch::new().dispatch(Reaching {
                stream,
                threshold,
                words,
            });
        }
        let (last, live) = ((self.units / 64) as usize, self.units % 64);
        if live > 0 {
            bits[last] &= (1 << live) - 1;
        }
    }

    /// How many units of the row are hit. Sums in lanes, which is faster than counting the bits of a set.
    pub(crate) fn count_units(&self, stream: &Stream) -> u64 {
        match self.table.first() {
            None => 0,
            // every draw reaches it
            Some(0) => self.units.into(),
            Some(&threshold) => Arch::new().dispatch(Counting {
                stream,
                threshold,
                units: self.units,
            }),
        }
    }

    /// Reads the hits of `row` out of `dense`; bits beyond the row are left alone, which clips bursts.
    pub(crate) fn gather(&self, row: u32, dense: &Dense, hits: &mut Vec<Hit>) {
        let bits = &dense.bits;
        let every = (1_u64 << self.per_element) - 1;
        for elem in 0..self.geometry.head_size {
            let first = elem * self.per_element;
            let word = (first / 64) as usize;
            let wide = u128::from(bits[word + 1]) << 64 | u128::from(bits[word]);
            let numbers = (wide >> (first % 64)) as u64 & every;
            if numbers != 0 {
                hits.push(Hit {
                    row,
                    elem: elem as u16,
                    mask: self.eligible.scatter(numbers as u32),
                });
            }
        }
    }
}

/// Sets bit `u` of the words if draw `u` reaches the threshold. A type of its own: a closure is called through a shim
/// that no instruction set is inlined into.
struct Reaching<'a> {
    stream: &'a Stream,
    threshold: u64,
    words: &'a mut [u64],
}

impl WithSimd for Reaching<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        for (word, first) in self.words.iter_mut().zip((0..).step_by(32)) {
            let low = self.stream.lanes(Domain::Dense, first);
            let high = self.stream.lanes(Domain::Dense, first + LANES as u32);
            *word = u64::from(reaching(&high, self.threshold)) << 32
                | u64::from(reaching(&low, self.threshold));
        }
    }
}

/// The draws of so many units that reach the threshold.
struct Counting<'a> {
    stream: &'a Stream,
    threshold: u64,
    units: u32,
}

impl WithSimd for Counting<'_> {
    type Output = u64;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> u64 {
        let reaches = |draw: u64| u64::from(draw >= self.threshold);
        let whole = self.units / (2 * LANES as u32) * LANES as u32;
        let mut hits = [0; LANES];
        for first in (0..whole).step_by(LANES) {
            let [a, b, c, d] = &self.stream.lanes(Domain::Dense, first).words;
            for lane in 0..LANES {
                let even = u64::from(a[lane]) << 32 | u64::from(b[lane]);
                let odd = u64::from(c[lane]) << 32 | u64::from(d[lane]);
                hits[lane] += reaches(even) + reaches(odd);
            }
        }
        let rest = self.stream.lanes(Domain::Dense, whole);
        let rest = (2 * whole..self.units).map(|unit| {
            let block = rest.block((unit / 2 - whole) as usize);
            reaches(draw(&block, unit))
        });
        hits.iter().sum::<u64>() + rest.sum::<u64>()
    }
}

/// Bit `d` is set if draw `d` of the lanes, counted from their first block, reaches the threshold.
#[inline(always)]
fn reaching(lanes: &Lanes, threshold: u64) -> u32 {
    let [a, b, c, d] = &lanes.words;
    let (high, low) = ((threshold >> 32) as u32, threshold as u32);
    let reaches = |hi: u32, lo: u32| u32::from(hi > high || (hi == high && lo >= low));
    let mut bits = 0;
    for lane in 0..LANES {
        bits |= reaches(a[lane], b[lane]) << (2 * lane);
        bits |= reaches(c[lane], d[lane]) << (2 * lane + 1);
    }
    bits
}

/// The numbers of the set bits, ascending.
fn set_bits(mut word: u64) -> impl Iterator<Item = u32> {
    std::iter::from_fn(move || {
        let bit = (word != 0).then(|| word.trailing_zeros());
        word &= word.wrapping_sub(1);
        bit
    })
}

/// Sets every bit that lies less than `len` above a set bit.
fn smear(bits: &mut [u64], len: u32) {
    let mut covered = 1;
    while covered < len {
        let by = covered.min(len - covered);
        let (words, shift) = ((by / 64) as usize, by % 64);
        for i in (words..bits.len()).rev() {
            let below = if i > words { bits[i - words - 1] } else { 0 };
            let wide = u128::from(bits[i - words]) << 64 | u128::from(below);
            bits[i] |= (wide >> (64 - shift)) as u64;
        }
        covered += by;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::{FaultModel, Geometry, Per};
    use crate::sample::{Place, row_stream};

    /// Each draw is the threshold once, which random thresholds never are.
    #[test]
    fn a_count_is_that_of_the_set_at_every_length_and_threshold() {
        let place = Place {
            key: [1, 2],
            request: 9,
            layer: 3,
        };
        let stream = row_stream(&place, 5, 1, 2);
        let model = FaultModel {
            rate: 0.9,
            per: Per::Bit,
            mask: 1,
            burst_len: 1,
            page: None,
        };
        for units in [36, 63, 64, 65, 96, 97, 127, 128, 129] {
            let geometry = Geometry {
                head_size: units,
                bits: 1,
                heads: 3,
                planes: 2,
                first_plane: 0,
            };
            let mut sampler = Sampler::new(&model, &geometry).expect("legal");
            let draws: Vec<u64> = (0..units)
                .map(|unit| draw(&stream.block(Domain::Dense, unit / 2), unit))
                .collect();
            for &threshold in &draws {
                sampler.table = vec![threshold];
                let reaching = draws.iter().filter(|&&draw| draw >= threshold).count() as u64;
                assert_eq!(sampler.count_units(&stream), reaching, "{units}");
                let mut set = vec![0; units.div_ceil(64) as usize];
                sampler.draw_units(&stream, &mut set);
                let set: u64 = set.iter().map(|word| u64::from(word.count_ones())).sum();
                assert_eq!(set, reaching, "{units}");
            }
        }
    }
}
