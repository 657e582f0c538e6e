//! The vector instructions of the column step, one implementation for each machine.
//!
//! Written with plain arrays and left to the compiler, the step loses a factor of two to three: it splits vectors whose
//! lanes are also read one by one. `pulp` hands out each instruction as a safe method of a token that proves the machine
//! has it, so there is no `unsafe` here, and the portable implementation computes the same bits.

use pulp::Arch;

use super::vector::{LANES, Vector};

/// Eight 64-bit lanes of some machine.
pub(super) trait Lanes: Copy {
    type Word: Copy;

    fn load(self, lanes: Vector) -> Self::Word;
    fn store(self, word: Self::Word) -> Vector;
    fn and(self, a: Self::Word, b: Self::Word) -> Self::Word;
    fn or(self, a: Self::Word, b: Self::Word) -> Self::Word;
    fn xor(self, a: Self::Word, b: Self::Word) -> Self::Word;
    fn add(self, a: Self::Word, b: Self::Word) -> Self::Word;
    /// The top bit of every lane, moved to the bottom.
    fn top(self, a: Self::Word) -> Self::Word;
    /// All ones in the lanes whose top bit is set, zero in the others.
    fn spread(self, a: Self::Word) -> Self::Word;
    fn shl(self, a: Self::Word, by: usize) -> Self::Word;
    /// 32-bit numbers, one a lane.
    fn widen(self, words: [u32; LANES]) -> Self::Word;
    /// Lane `l` is byte `l` of a number.
    fn widen_bytes(self, bytes: u64) -> Self::Word;
    /// The low byte of every lane, lane 0 lowest.
    fn to_bytes(self, a: Self::Word) -> u64;
    /// Bit `i` is set where `block[i]` is `symbol`.
    fn equal_bytes(self, block: &[u8; 64], symbol: u8) -> u64;
    /// Bit `i` is set where `block[i]` is `symbol`.
    fn equal_words(self, block: &[u32; 16], symbol: u32) -> u64;

    #[inline(always)]
    fn not(self, a: Self::Word) -> Self::Word {
        self.xor(a, self.load(Vector::ONES))
    }

    #[inline(always)]
    fn double(self, a: Self::Word) -> Self::Word {
        self.add(a, a)
    }
}

/// Work that runs on any machine's lanes.
pub(super) trait LaneWork {
    type Output;

    fn run<L: Lanes>(self, lanes: L) -> Self::Output;
}

/// Runs `work` with the best instructions that `arch` has.
pub(super) fn dispatch<W: LaneWork>(arch: Arch, work: W) -> W::Output {
    match arch {
        #[cfg(target_arch = "x86_64")]
        Arch::V4(token) => pulp::Simd::vectorize(token, With { token, work }),
        #[cfg(target_arch = "x86_64")]
        Arch::V3(token) => pulp::Simd::vectorize(token, With { token, work }),
        _ => work.run(Portable),
    }
}

struct With<L, W> {
    token: L,
    work: W,
}

impl<L: Lanes, W: LaneWork> pulp::NullaryFnOnce for With<L, W> {
    type Output = W::Output;

    #[inline(always)]
    fn call(self) -> W::Output {
        self.work.run(self.token)
    }
}

/// Plain arrays.
#[derive(Clone, Copy)]
struct Portable;

impl Lanes for Portable {
    type Word = Vector;

    #[inline(always)]
    fn load(self, lanes: Vector) -> Vector {
        lanes
    }

    #[inline(always)]
    fn store(self, word: Vector) -> Vector {
        word
    }

    #[inline(always)]
    fn and(self, a: Vector, b: Vector) -> Vector {
        a & b
    }

    #[inline(always)]
    fn or(self, a: Vector, b: Vector) -> Vector {
        a | b
    }

    #[inline(always)]
    fn xor(self, a: Vector, b: Vector) -> Vector {
        a ^ b
    }

    #[inline(always)]
    fn add(self, a: Vector, b: Vector) -> Vector {
        a + b
    }

    #[inline(always)]
    fn top(self, a: Vector) -> Vector {
        a.shr(63)
    }

    #[inline(always)]
    fn spread(self, a: Vector) -> Vector {
        Vector(a.0.map(|lane| (lane as i64 >> 63) as u64))
    }

    #[inline(always)]
    fn shl(self, a: Vector, by: usize) -> Vector {
        a.shl(by as u32)
    }

    #[inline(always)]
    fn widen(self, words: [u32; LANES]) -> Vector {
        Vector(words.map(u64::from))
    }

    #[inline(always)]
    fn widen_bytes(self, bytes: u64) -> Vector {
        Vector(bytes.to_le_bytes().map(u64::from))
    }

    #[inline(always)]
    fn to_bytes(self, a: Vector) -> u64 {
        u64::from_le_bytes(a.0.map(|lane| lane as u8))
    }

    #[inline(always)]
    fn equal_bytes(self, block: &[u8; 64], symbol: u8) -> u64 {
        let bit = |bits, other: &u8| (bits << 1) | u64::from(*other == symbol);
        block.iter().rev().fold(0, bit)
    }

    #[inline(always)]
    fn equal_words(self, block: &[u32; 16], symbol: u32) -> u64 {
        let bit = |bits, other: &u32| (bits << 1) | u64::from(*other == symbol);
        block.iter().rev().fold(0, bit)
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{__m128i, __m256i, __m512i};

    use pulp::bytemuck::cast;
    use pulp::x86::{V3, V4};

    use super::{LANES, Lanes, Vector};

    impl Lanes for V4 {
        type Word = __m512i;

        #[inline(always)]
        fn load(self, lanes: Vector) -> __m512i {
            cast(lanes.0)
        }

        #[inline(always)]
        fn store(self, word: __m512i) -> Vector {
            Vector(cast(word))
        }

        #[inline(always)]
        fn and(self, a: __m512i, b: __m512i) -> __m512i {
            self.avx512f._mm512_and_si512(a, b)
        }

        #[inline(always)]
        fn or(self, a: __m512i, b: __m512i) -> __m512i {
            self.avx512f._mm512_or_si512(a, b)
        }

        #[inline(always)]
        fn xor(self, a: __m512i, b: __m512i) -> __m512i {
            self.avx512f._mm512_xor_si512(a, b)
        }

        #[inline(always)]
        fn add(self, a: __m512i, b: __m512i) -> __m512i {
            self.avx512f._mm512_add_epi64(a, b)
        }

        #[inline(always)]
        fn top(self, a: __m512i) -> __m512i {
            self.avx512f._mm512_srli_epi64::<63>(a)
        }

        #[inline(always)]
        fn spread(self, a: __m512i) -> __m512i {
            self.avx512f._mm512_srai_epi64::<63>(a)
        }

        #[inline(always)]
        fn shl(self, a: __m512i, by: usize) -> __m512i {
            self.avx512f._mm512_sll_epi64(a, cast([by as u64, 0]))
        }

        #[inline(always)]
        fn widen(self, words: [u32; LANES]) -> __m512i {
            self.avx512f._mm512_cvtepu32_epi64(cast(words))
        }

        #[inline(always)]
        fn widen_bytes(self, bytes: u64) -> __m512i {
            self.avx512f._mm512_cvtepu8_epi64(cast([bytes, 0]))
        }

        #[inline(always)]
        fn to_bytes(self, a: __m512i) -> u64 {
            let [low, _]: [u64; 2] = cast(self.avx512f._mm512_cvtepi64_epi8(a));
            low
        }

        #[inline(always)]
        fn equal_bytes(self, block: &[u8; 64], symbol: u8) -> u64 {
            let symbol = self.avx512f._mm512_set1_epi8(symbol as i8);
            self.avx512bw._mm512_cmpeq_epi8_mask(cast(*block), symbol)
        }

        #[inline(always)]
        fn equal_words(self, block: &[u32; 16], symbol: u32) -> u64 {
            let symbol = self.avx512f._mm512_set1_epi32(symbol as i32);
            let equal = self.avx512f._mm512_cmpeq_epi32_mask(cast(*block), symbol);
            u64::from(equal)
        }
    }

    impl Lanes for V3 {
        type Word = [__m256i; 2];

        #[inline(always)]
        fn load(self, lanes: Vector) -> [__m256i; 2] {
            cast(lanes.0)
        }

        #[inline(always)]
        fn store(self, word: [__m256i; 2]) -> Vector {
            Vector(cast(word))
        }

        #[inline(always)]
        fn and(self, [a, b]: [__m256i; 2], [c, d]: [__m256i; 2]) -> [__m256i; 2] {
            [
                self.avx2._mm256_and_si256(a, c),
                self.avx2._mm256_and_si256(b, d),
            ]
        }

        #[inline(always)]
        fn or(self, [a, b]: [__m256i; 2], [c, d]: [__m256i; 2]) -> [__m256i; 2] {
            [
                self.avx2._mm256_or_si256(a, c),
                self.avx2._mm256_or_si256(b, d),
            ]
        }

        #[inline(always)]
        fn xor(self, [a, b]: [__m256i; 2], [c, d]: [__m256i; 2]) -> [__m256i; 2] {
            [
                self.avx2._mm256_xor_si256(a, c),
                self.avx2._mm256_xor_si256(b, d),
            ]
        }

        #[inline(always)]
        fn add(self, [a, b]: [__m256i; 2], [c, d]: [__m256i; 2]) -> [__m256i; 2] {
            [
                self.avx2._mm256_add_epi64(a, c),
                self.avx2._mm256_add_epi64(b, d),
            ]
        }

        #[inline(always)]
        fn top(self, [a, b]: [__m256i; 2]) -> [__m256i; 2] {
            [
                self.avx2._mm256_srli_epi64::<63>(a),
                self.avx2._mm256_srli_epi64::<63>(b),
            ]
        }

        #[inline(always)]
        fn spread(self, [a, b]: [__m256i; 2]) -> [__m256i; 2] {
            let zero = cast([0_u64; 4]);
            [
                self.avx2._mm256_cmpgt_epi64(zero, a),
                self.avx2._mm256_cmpgt_epi64(zero, b),
            ]
        }

        #[inline(always)]
        fn shl(self, [a, b]: [__m256i; 2], by: usize) -> [__m256i; 2] {
            let by = cast([by as u64, 0]);
            [
                self.avx2._mm256_sll_epi64(a, by),
                self.avx2._mm256_sll_epi64(b, by),
            ]
        }

        #[inline(always)]
        fn widen(self, words: [u32; LANES]) -> [__m256i; 2] {
            let [low, high]: [__m128i; 2] = cast(words);
            [
                self.avx2._mm256_cvtepu32_epi64(low),
                self.avx2._mm256_cvtepu32_epi64(high),
            ]
        }

        #[inline(always)]
        fn widen_bytes(self, bytes: u64) -> [__m256i; 2] {
            [
                self.avx2._mm256_cvtepu8_epi64(cast([bytes, 0])),
                self.avx2._mm256_cvtepu8_epi64(cast([bytes >> 32, 0])),
            ]
        }

        #[inline(always)]
        fn to_bytes(self, word: [__m256i; 2]) -> u64 {
            // Each shuffle brings the low bytes of its four lanes to where they belong in the number; 0x80 clears.
            let place = |first: u8| {
                let mut order = [0x80_u8; 32];
                for lane in 0..4 {
                    order[16 * (lane / 2) + usize::from(first) + lane] = 8 * (lane % 2) as u8;
                }
                cast::<[u8; 32], __m256i>(order)
            };
            let low = self.avx2._mm256_shuffle_epi8(word[0], place(0));
            let high = self.avx2._mm256_shuffle_epi8(word[1], place(4));
            let [a, _, b, _]: [u64; 4] = cast(self.avx2._mm256_or_si256(low, high));
            a | b
        }

        #[inline(always)]
        fn equal_bytes(self, block: &[u8; 64], symbol: u8) -> u64 {
            let [low, high]: [__m256i; 2] = cast(*block);
            let symbol = self.avx._mm256_set1_epi8(symbol as i8);
            let bits = |half| {
                let equal = self.avx2._mm256_cmpeq_epi8(half, symbol);
                u64::from(self.avx2._mm256_movemask_epi8(equal) as u32)
            };
            bits(low) | (bits(high) << 32)
        }

        #[inline(always)]
        fn equal_words(self, block: &[u32; 16], symbol: u32) -> u64 {
            let [low, high]: [__m256i; 2] = cast(*block);
            let symbol = self.avx._mm256_set1_epi32(symbol as i32);
            let bits = |half| {
                let equal = self.avx2._mm256_cmpeq_epi32(half, symbol);
                let equal = self.avx._mm256_castsi256_ps(equal);
                u64::from(self.avx._mm256_movemask_ps(equal) as u32)
            };
            bits(low) | (bits(high) << 8)
        }
    }
}
