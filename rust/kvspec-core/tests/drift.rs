//! Golden diffing against definitions written down as plainly as possible.

use kvspec_core::drift::{
    Options, Ragged, common_prefix, common_suffix, edit_distance, edit_distance_within,
    first_divergence, indel_distance, lcs_length, mismatches, positional, score_texts,
    score_tokens,
};
use proptest::prelude::*;

/// Wagner and Fischer, one row at a time.
fn naive_edit_distance<T: PartialEq>(a: &[T], b: &[T]) -> u32 {
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

fn naive_lcs<T: PartialEq>(a: &[T], b: &[T]) -> usize {
    let mut row = vec![0; b.len() + 1];
    for x in a {
        let mut diagonal = 0;
        for (j, y) in b.iter().enumerate() {
            let here = if x == y {
                diagonal + 1
            } else {
                row[j].max(row[j + 1])
            };
            diagonal = row[j + 1];
            row[j + 1] = here;
        }
    }
    row[b.len()]
}

/// A golden sequence and a faulty one that keeps, edits or replaces it.
fn pair(longest: usize, alphabet: u32) -> impl Strategy<Value = (Vec<u32>, Vec<u32>)> {
    let symbol = 0..alphabet;
    let edits = prop::collection::vec(
        (any::<prop::sample::Index>(), 0_u8..3, symbol.clone()),
        0..12,
    );
    let golden = prop::collection::vec(symbol.clone(), 0..longest);
    let other = prop::collection::vec(symbol, 0..longest);
    (golden, other, edits, 0_u8..4).prop_map(|(golden, other, edits, kind)| {
        let mut faulty = match kind {
            0 => other,
            1 => golden
                .iter()
                .take(golden.len() / 2)
                .chain(&other)
                .copied()
                .collect(),
            _ => golden.clone(),
        };
        for (index, edit, symbol) in edits {
            if faulty.is_empty() {
                break;
            }
            let at = index.index(faulty.len());
            match edit {
                0 => faulty[at] = symbol,
                1 => faulty.insert(at, symbol),
                _ => drop(faulty.remove(at)),
            }
        }
        (golden, faulty)
    })
}

fn check(golden: &[u32], faulty: &[u32]) -> Result<(), TestCaseError> {
    let want = naive_edit_distance(golden, faulty);
    prop_assert_eq!(edit_distance(golden, faulty), want);
    prop_assert_eq!(edit_distance(faulty, golden), want);
    for limit in [0, 1, 5, 40, want.saturating_sub(1), want, want + 1] {
        prop_assert_eq!(
            edit_distance_within(golden, faulty, limit),
            want.min(limit + 1)
        );
    }
    prop_assert_eq!(lcs_length(golden, faulty), naive_lcs(golden, faulty));
    Ok(())
}

proptest! {
    #[test]
    fn short_pairs_match_the_definition((golden, faulty) in pair(150, 6)) {
        check(&golden, &faulty)?;
    }

    #[test]
    fn wide_alphabets_match_the_definition((golden, faulty) in pair(300, u32::MAX)) {
        check(&golden, &faulty)?;
    }

    #[test]
    fn bytes_match_the_definition((golden, faulty) in pair(700, 256)) {
        let bytes = |symbols: &[u32]| symbols.iter().map(|&symbol| symbol as u8).collect::<Vec<_>>();
        let (golden, faulty) = (bytes(&golden), bytes(&faulty));
        prop_assert_eq!(edit_distance(&golden, &faulty), naive_edit_distance(&golden, &faulty));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn long_pairs_match_the_definition((golden, faulty) in pair(2600, 20)) {
        check(&golden, &faulty)?;
    }
}
