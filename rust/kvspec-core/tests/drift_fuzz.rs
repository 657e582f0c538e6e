//! Random bytes for every entry of `drift`, for as long as `KVSPEC_FUZZ_SECONDS` says (2 by default). The core has no
//! unsafe code, so what can go wrong is a panic; tests are built with overflow checks. Results that must agree are
//! compared on the way.

use std::time::{Duration, Instant};

use kvspec_core::drift::{
    DetailOptions, Options, Ragged, Text, common_prefix, common_suffix, detail_texts,
    detail_tokens, edit_distance, edit_distance_within, first_divergence,
    first_divergence_histogram, indel_distance, kl_full, kl_topk, lcs_length, mismatches,
    periodic_tail, position_counts, positional, score_texts, score_tokens, survival,
    topk_agreement,
};

/// Bytes that look random: xorshift, so that a seed names a case.
struct Bytes(u64);

impl Bytes {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    fn below(&mut self, bound: u64) -> usize {
        (self.next() % bound) as usize
    }

    /// Mostly short, at times long enough for every kernel.
    fn length(&mut self) -> usize {
        let longest = [1, 9, 70, 140, 600, 1500][self.below(6)];
        self.below(longest)
    }

    fn symbols(&mut self) -> Vec<u32> {
        let alphabet = [1, 2, 30, 256, 70_000, 1 << 32][self.below(6)];
        (0..self.length())
            .map(|_| self.below(alphabet) as u32)
            .collect()
    }

    /// A sequence of its own, or another one with parts cut out, moved and overwritten.
    fn near(&mut self, other: &[u32]) -> Vec<u32> {
        let mut out = match self.below(4) {
            0 => return self.symbols(),
            1 => [other, &self.symbols()].concat(),
            _ => other.to_vec(),
        };
        for _ in 0..self.below(5) {
            if !out.is_empty() {
                let at = self.below(out.len() as u64);
                match self.below(3) {
                    0 => drop(out.remove(at)),
                    1 => out.rotate_left(at),
                    _ => out[at] = self.next() as u32,
                }
            }
        }
        out
    }

    /// Offsets that may or may not be valid.
    fn offsets(&mut self, rows: &[Vec<u32>]) -> Vec<i64> {
        let mut offsets = vec![0];
        for row in rows {
            offsets.push(offsets[offsets.len() - 1] + i64::try_from(row.len()).expect("short"));
        }
        if self.below(4) == 0 {
            let at = self.below(offsets.len() as u64);
            offsets[at] = [self.next().cast_signed(), i64::MIN, i64::MAX, -1][self.below(4)];
        }
        if self.below(16) == 0 {
            offsets.truncate(self.below(2));
        }
        offsets
    }

    fn text(&mut self) -> String {
        let highest = [0x60, 0x80, 0x300, 0x1_0000, 0x11_0000][self.below(5)];
        (0..self.length())
            .filter_map(|_| char::from_u32(self.below(highest) as u32))
            .collect()
    }

    fn logprobs(&mut self) -> Vec<f32> {
        let special = [0.0, f32::NEG_INFINITY, f32::INFINITY, f32::NAN, f32::MAX];
        (0..self.below(20))
            .map(|_| match self.below(8) {
                0 => special[self.below(5)],
                _ => f32::from_bits(self.next() as u32),
            })
            .collect()
    }
}

fn pairs(bytes: &mut Bytes) {
    let a = bytes.symbols();
    let b = bytes.near(&a);
    let narrow = |symbols: &[u32]| symbols.iter().map(|&s| s as u8).collect::<Vec<u8>>();
    let distance = edit_distance(&a, &b);
    assert_eq!(distance, edit_distance(&b, &a));
    let limit = bytes.below(1 << 33) as u32 >> bytes.below(32);
    let want = distance.min(limit.saturating_add(1));
    assert_eq!(edit_distance_within(&a, &b, limit), want, "limit {limit}");
    let indel = indel_distance(&a, &b);
    assert!(distance <= indel && indel <= 2 * distance);
    assert_eq!(lcs_length(&a, &b), (a.len() + b.len() - indel as usize) / 2);
    assert!(edit_distance(&narrow(&a), &narrow(&b)) <= distance);
    assert!(lcs_length(&narrow(&a), &narrow(&b)) >= lcs_length(&a, &b));
    assert!(common_prefix(&a, &b).max(common_suffix(&a, &b)) <= a.len().min(b.len()));
    assert!(mismatches(&a, &b) <= positional(&a, &b));
    assert_eq!(first_divergence(&a, &b).is_none(), a == b);
    let period = [0, 1, 16, usize::MAX][bytes.below(4)].min(64);
    assert!(periodic_tail(&a, period).length <= a.len());
}

fn batches(bytes: &mut Bytes) {
    let golden: Vec<Vec<u32>> = (0..bytes.below(4)).map(|_| bytes.symbols()).collect();
    let faulty: Vec<Vec<u32>> = (0..bytes.below(30))
        .map(|row| match golden.get(row % 4) {
            Some(golden) => bytes.near(golden),
            None => bytes.symbols(),
        })
        .collect();
    let (golden_offsets, offsets) = (bytes.offsets(&golden), bytes.offsets(&faulty));
    let (golden_values, values) = (golden.concat(), faulty.concat());
    let index: Vec<u32> = (0..faulty.len() + usize::from(bytes.below(16) == 0))
        .map(|_| bytes.below(golden.len() as u64 + 1) as u32 % (golden.len().max(1) as u32 + 1))
        .collect();
    let rows = (
        Ragged::new(&golden_values, &golden_offsets),
        Ragged::new(&values, &offsets),
    );
    let (Ok(golden), Ok(faulty)) = rows else {
        return;
    };
    let options = Options {
        edit_distance: bytes.below(8) > 0,
        limit: bytes.next() as u32 >> bytes.below(32),
        threads: 1,
    };
    let one = score_tokens(golden, faulty, &index, options);
    let threads = [0, 3, usize::MAX][bytes.below(3)];
    let many = score_tokens(golden, faulty, &index, Options { threads, ..options });
    assert_eq!(one, many);
    let detailed = DetailOptions {
        indel_distance: bytes.below(2) == 0,
        limit: options.limit,
        threads,
    };
    let details = |threads| {
        detail_tokens(
            golden,
            faulty,
            &index,
            DetailOptions {
                threads,
                ..detailed
            },
        )
    };
    assert_eq!(details(1), details(threads));
    assert_eq!(one.is_ok(), details(1).is_ok());
    let counts = position_counts(golden, faulty, &index);
    assert_eq!(one.is_ok(), counts.is_ok());
    let positions = [0, 5, 2000, usize::MAX][bytes.below(4)];
    if let (Ok(columns), Ok(details)) = (one, details(1)) {
        let histogram = first_divergence_histogram(&columns.first_divergence, positions);
        let curve = survival(&columns.first_divergence, &details.length, positions);
        assert_eq!(histogram.is_ok(), curve.is_ok());
    }
}

fn texts(bytes: &mut Bytes) {
    let golden: Vec<String> = (0..=bytes.below(2)).map(|_| bytes.text()).collect();
    let faulty: Vec<String> = (0..bytes.below(12)).map(|_| bytes.text()).collect();
    let beyond = u64::from(bytes.below(16) == 0);
    let index: Vec<u32> = (0..faulty.len())
        .map(|_| bytes.below(golden.len() as u64 + beyond) as u32)
        .collect();
    let by_byte = bytes.below(8) == 0;
    let text = |text| {
        if by_byte {
            Text::by_byte(text)
        } else {
            Text::from(text)
        }
    };
    let golden: Vec<Text<'_>> = golden.iter().map(|golden| text(golden)).collect();
    let faulty: Vec<Text<'_>> = faulty.iter().map(|faulty| text(faulty)).collect();
    let scored = score_texts(&golden, &faulty, &index, Options::default());
    let details = detail_texts(&golden, &faulty, &index, DetailOptions::default());
    assert_eq!(scored.is_ok(), details.is_ok());
}

fn curves(bytes: &mut Bytes) {
    let first: Vec<i64> = (0..bytes.below(9))
        .map(|_| [-1, 3, i64::MIN, i64::MAX, bytes.next().cast_signed()][bytes.below(5)])
        .collect();
    let lengths: Vec<u32> = (0..bytes.below(9))
        .map(|_| [0, 4, u32::MAX][bytes.below(3)])
        .collect();
    let positions = [0, 1, 6, usize::MAX][bytes.below(4)];
    let curve = survival(&first, &lengths, positions);
    assert!(curve.is_err() || first.len() == lengths.len());
    let (p, q) = (bytes.logprobs(), bytes.logprobs());
    let (p_ids, q_ids) = (bytes.symbols(), bytes.symbols());
    assert!(kl_full(&p, &q).is_nan() || kl_full(&p, &q) >= 0.0);
    let bound = kl_topk((&p_ids, &p), (&q_ids, &q));
    assert!(bound.is_nan() || bound >= 0.0);
    assert!(topk_agreement(&p_ids, &q_ids) >= 0.0);
}

#[test]
#[expect(clippy::print_stdout, reason = "a failing test shows its seed")]
fn nothing_panics() {
    let seconds = std::env::var("KVSPEC_FUZZ_SECONDS").map_or(2, |text| {
        text.parse().expect("KVSPEC_FUZZ_SECONDS is a number")
    });
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut seed = 0_u64;
    while Instant::now() < end || seed < 100 {
        seed += 1;
        println!("seed {seed}");
        let mut bytes = Bytes(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        pairs(&mut bytes);
        batches(&mut bytes);
        texts(&mut bytes);
        curves(&mut bytes);
    }
    assert!(seed >= 100);
}
