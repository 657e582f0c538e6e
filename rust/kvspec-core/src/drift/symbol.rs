//! What a sequence is made of.

/// A symbol that the bit-parallel kernels can compare: a byte of ASCII text, a code point or a token id.
pub trait Symbol: Copy + Eq + Default + Send + Sync + 'static {
    /// Width of the type in bits, a power of two.
    const BITS: usize;

    /// The symbol as a number.
    fn bits(self) -> u64;

    /// How many symbols are equal before the first difference.
    fn equal_first(a: &[Self; 8], b: &[Self; 8]) -> usize;

    /// How many symbols are equal behind the last difference.
    fn equal_last(a: &[Self; 8], b: &[Self; 8]) -> usize;

    /// Transposes a square of symbols.
    fn transpose(rows: [[Self; 8]; 8]) -> [[Self; 8]; 8];

    /// Renames symbols so that `pattern` uses `0..count` in order of first appearance and every symbol of `text` that
    /// `pattern` lacks becomes `count`. Returns the two renamed sequences and `count`.
    fn rename(pattern: &[Self], text: &[Self]) -> (Vec<u32>, Vec<u32>, u32);
}

impl Symbol for u8 {
    const BITS: usize = 8;

    #[inline(always)]
    fn bits(self) -> u64 {
        u64::from(self)
    }

    #[inline(always)]
    fn equal_first(a: &[Self; 8], b: &[Self; 8]) -> usize {
        (u64::from_le_bytes(*a) ^ u64::from_le_bytes(*b)).trailing_zeros() as usize / 8
    }

    #[inline(always)]
    fn equal_last(a: &[Self; 8], b: &[Self; 8]) -> usize {
        (u64::from_le_bytes(*a) ^ u64::from_le_bytes(*b)).leading_zeros() as usize / 8
    }

    #[inline(always)]
    fn transpose(rows: [[Self; 8]; 8]) -> [[Self; 8]; 8] {
        // A row is one number; swapping ever smaller blocks between rows needs no single-byte moves.
        let mut rows = rows.map(u64::from_le_bytes);
        for (half, mask) in [
            (4, 0xffff_ffff),
            (2, 0xffff_0000_ffff),
            (1, 0x00ff_00ff_00ff_00ff),
        ] {
            for k in 0..4 {
                let upper = (2 * (k & !(half - 1))) | (k & (half - 1));
                let swap = ((rows[upper] >> (8 * half)) ^ rows[upper + half]) & mask;
                rows[upper] ^= swap << (8 * half);
                rows[upper + half] ^= swap;
            }
        }
        rows.map(u64::to_le_bytes)
    }

    fn rename(pattern: &[Self], text: &[Self]) -> (Vec<u32>, Vec<u32>, u32) {
        let mut names = [u32::MAX; 256];
        let mut count = 0;
        let short = pattern
            .iter()
            .map(|&symbol| {
                let name = &mut names[usize::from(symbol)];
                if *name == u32::MAX {
                    *name = count;
                    count += 1;
                }
                *name
            })
            .collect();
        for name in &mut names {
            *name = (*name).min(count);
        }
        let long = text
            .iter()
            .map(|&symbol| names[usize::from(symbol)])
            .collect();
        (short, long, count)
    }
}

impl Symbol for u32 {
    const BITS: usize = 32;

    #[inline(always)]
    fn bits(self) -> u64 {
        u64::from(self)
    }

    #[inline(always)]
    fn equal_first(a: &[Self; 8], b: &[Self; 8]) -> usize {
        let pairs = differences(a, b);
        let first = pairs.iter().position(|&pair| pair != 0);
        first.map_or(8, |i| 2 * i + pairs[i].trailing_zeros() as usize / 32)
    }

    #[inline(always)]
    fn equal_last(a: &[Self; 8], b: &[Self; 8]) -> usize {
        let pairs = differences(a, b);
        let last = pairs.iter().rposition(|&pair| pair != 0);
        last.map_or(8, |i| 6 - 2 * i + pairs[i].leading_zeros() as usize / 32)
    }

    #[inline(always)]
    fn transpose(rows: [[Self; 8]; 8]) -> [[Self; 8]; 8] {
        std::array::from_fn(|i| std::array::from_fn(|j| rows[j][i]))
    }

    fn rename(pattern: &[Self], text: &[Self]) -> (Vec<u32>, Vec<u32>, u32) {
        // Open addressing at half load or less. The order of probing never reaches the result, so hostile token ids
        // can slow this down but not change it.
        let slots = (pattern.len() * 2).next_power_of_two().max(16);
        let shift = 64 - slots.trailing_zeros();
        let start =
            |symbol: u32| (u64::from(symbol).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> shift) as usize;
        let mut table = vec![(0_u32, u32::MAX); slots];
        let mut count = 0;
        let mut find = |table: &mut [(u32, u32)], symbol: u32, insert: bool| {
            let mut slot = start(symbol);
            loop {
                let (key, name) = table[slot];
                if name == u32::MAX {
                    if insert {
                        table[slot] = (symbol, count);
                        count += 1;
                        return count - 1;
                    }
                    return u32::MAX;
                }
                if key == symbol {
                    return name;
                }
                slot = (slot + 1) & (slots - 1);
            }
        };
        let short: Vec<u32> = pattern
            .iter()
            .map(|&symbol| find(&mut table, symbol, true))
            .collect();
        let mut long: Vec<u32> = text
            .iter()
            .map(|&symbol| find(&mut table, symbol, false))
            .collect();
        for name in &mut long {
            *name = (*name).min(count);
        }
        (short, long, count)
    }
}

/// Differences of eight symbols, two to a number.
#[inline(always)]
fn differences(a: &[u32; 8], b: &[u32; 8]) -> [u64; 4] {
    let pair = |x: &[u32; 8], i: usize| u64::from(x[2 * i]) | (u64::from(x[2 * i + 1]) << 32);
    std::array::from_fn(|i| pair(a, i) ^ pair(b, i))
}
