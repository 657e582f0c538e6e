//! Golden diffing against definitions written down as plainly as possible.

#![expect(clippy::cast_possible_wrap, reason = "lengths of test rows")]

use kvspec_core::drift::{
    DetailOptions, Error, Options, Ragged, Text, common_prefix, common_suffix, detail_texts,
    detail_tokens, edit_distance, edit_distance_within, first_divergence, indel_distance,
    lcs_length, mismatches, positional, score_texts, score_tokens,
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

fn naive_first_divergence<T: PartialEq>(a: &[T], b: &[T]) -> Option<usize> {
    (0..a.len().max(b.len())).find(|&i| a.get(i) != b.get(i))
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

/// Rows laid end to end.
fn ragged(rows: &[Vec<u32>]) -> (Vec<u32>, Vec<i64>) {
    let mut offsets = vec![0];
    for row in rows {
        offsets.push(offsets[offsets.len() - 1] + row.len() as i64);
    }
    (rows.concat(), offsets)
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
        prop_assert_eq!(lcs_length(&golden, &faulty), naive_lcs(&golden, &faulty));
        prop_assert_eq!(first_divergence(&golden, &faulty), naive_first_divergence(&golden, &faulty));
    }

    #[test]
    fn cheap_metrics_match_the_definition((golden, faulty) in pair(100, 3)) {
        let differing = golden.iter().zip(&faulty).filter(|(a, b)| a != b).count();
        prop_assert_eq!(mismatches(&golden, &faulty), differing);
        prop_assert_eq!(positional(&golden, &faulty), differing + golden.len().abs_diff(faulty.len()));
        prop_assert_eq!(first_divergence(&golden, &faulty), naive_first_divergence(&golden, &faulty));
        let prefix = golden.iter().zip(&faulty).take_while(|(a, b)| a == b).count();
        prop_assert_eq!(common_prefix(&golden, &faulty), prefix);
        let suffix = golden.iter().rev().zip(faulty.iter().rev()).take_while(|(a, b)| a == b).count();
        prop_assert_eq!(common_suffix(&golden, &faulty), suffix);
    }

    #[test]
    fn edit_distance_is_a_metric((a, b) in pair(200, 4), (c, _) in pair(200, 4)) {
        let (ab, bc, ac) = (edit_distance(&a, &b), edit_distance(&b, &c), edit_distance(&a, &c));
        prop_assert_eq!(ab == 0, a == b);
        prop_assert_eq!(edit_distance(&b, &a), ab);
        prop_assert!(ac <= ab + bc);
        prop_assert!(ab as usize >= a.len().abs_diff(b.len()));
        prop_assert!(ab as usize <= a.len().max(b.len()));
        prop_assert!(ab as usize <= positional(&a, &b));
        prop_assert!(ab <= indel_distance(&a, &b) && indel_distance(&a, &b) <= 2 * ab);
    }

    #[test]
    fn indel_distance_is_a_metric((a, b) in pair(120, 3), (c, _) in pair(120, 3)) {
        prop_assert_eq!(indel_distance(&a, &b) == 0, a == b);
        prop_assert_eq!(indel_distance(&a, &b), indel_distance(&b, &a));
        prop_assert!(indel_distance(&a, &c) <= indel_distance(&a, &b) + indel_distance(&b, &c));
    }

    #[test]
    fn batches_equal_single_calls(rows in prop::collection::vec(pair(140, 5), 0..40), threads in 1_usize..4) {
        let (golden, faulty): (Vec<_>, Vec<_>) = rows.iter().cloned().unzip();
        let (golden_values, golden_offsets) = ragged(&golden);
        let (values, offsets) = ragged(&faulty);
        let index: Vec<u32> = (0..rows.len() as u32).collect();
        let left = Ragged::new(&golden_values, &golden_offsets).expect("valid");
        let right = Ragged::new(&values, &offsets).expect("valid");
        let found = score_tokens(left, right, &index, Options { threads, ..Options::default() }).expect("valid");
        let details = detail_tokens(left, right, &index, DetailOptions { threads, ..DetailOptions::default() }).expect("valid");
        for (row, (a, b)) in rows.iter().enumerate() {
            let first = first_divergence(a, b).map_or(-1, |first| first as i64);
            prop_assert_eq!(found.first_divergence[row], first);
            prop_assert_eq!(found.positional[row] as usize, positional(a, b));
            prop_assert_eq!(found.edit_distance[row], naive_edit_distance(a, b));
            prop_assert_eq!(details.indel_distance[row] as usize, a.len() + b.len() - 2 * naive_lcs(a, b));
            prop_assert_eq!(details.common_prefix[row] as usize, common_prefix(a, b));
        }
    }

    #[test]
    fn texts_are_compared_by_code_point(rows in prop::collection::vec((".{0,40}", ".{0,40}"), 0..12)) {
        let golden: Vec<Text<'_>> = rows.iter().map(|(a, _)| a.as_str().into()).collect();
        let texts: Vec<Text<'_>> = rows.iter().map(|(_, b)| b.as_str().into()).collect();
        let index: Vec<u32> = (0..rows.len() as u32).collect();
        let found = score_texts(&golden, &texts, &index, Options::default()).expect("valid");
        let details = detail_texts(&golden, &texts, &index, DetailOptions::default()).expect("valid");
        let golden: Vec<Text<'_>> = rows.iter().map(|(a, _)| Text::by_byte(a)).collect();
        let texts: Vec<Text<'_>> = rows.iter().map(|(_, b)| Text::by_byte(b)).collect();
        let by_byte = score_texts(&golden, &texts, &index, Options::default()).expect("valid");
        for (row, (a, b)) in rows.iter().enumerate() {
            let first = naive_first_divergence(a.as_bytes(), b.as_bytes()).map_or(-1, |first| first as i64);
            prop_assert_eq!(by_byte.first_divergence[row], first);
            let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
            let first = naive_first_divergence(&a, &b).map_or(-1, |first| first as i64);
            prop_assert_eq!(found.first_divergence[row], first);
            prop_assert_eq!(found.edit_distance[row], naive_edit_distance(&a, &b));
            prop_assert_eq!(details.length[row] as usize, b.len());
        }
    }

    #[test]
    fn offsets_never_panic(offsets in prop::collection::vec(any::<i64>(), 0..6), near in any::<bool>()) {
        let offsets: Vec<i64> = offsets.iter().map(|&at| if near { at % 5 } else { at }).collect();
        if let Ok(rows) = Ragged::new(&[1_u32, 2, 3], &offsets) {
            let total: usize = (0..rows.len()).map(|row| rows.row(row).len()).sum();
            prop_assert_eq!(total, rows.total());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn long_pairs_match_the_definition((golden, faulty) in pair(2600, 20)) {
        check(&golden, &faulty)?;
    }
}

#[test]
fn lcs_carries_across_strips() {
    // Longer than one strip of 4096 rows, with a carry that runs through words without a match.
    let a: Vec<u32> = (0..9000).map(|i| i % 7 * (i % 11)).collect();
    let b: Vec<u32> = (0..5000).map(|i| i % 5 * (i % 13)).collect();
    assert_eq!(lcs_length(&a, &b), naive_lcs(&a, &b));
    let distinct: Vec<u32> = (0..9000).collect();
    let every_other: Vec<u32> = (0..18_000)
        .map(|i| if i % 2 == 0 { i / 2 } else { u32::MAX })
        .collect();
    assert_eq!(lcs_length(&distinct, &every_other), 9000);
}

#[test]
fn lcs_carries_through_strips_without_a_match() {
    // The symbols of the first strip do not occur in the second one, so their carries meet no match there.
    let a: Vec<u32> = (0..4096)
        .map(|i| i * i % 37)
        .chain((0..900).map(|i| 100 + i % 31))
        .collect();
    let b: Vec<u32> = (0..5000)
        .map(|i| if i % 3 == 0 { 100 + i % 29 } else { i * 7 % 41 })
        .collect();
    assert_eq!(lcs_length(&a, &b), naive_lcs(&a, &b));
}

#[test]
fn paths_along_the_edge_of_the_band_are_found() {
    // 1500 symbols more at one end and fewer at the other: the cheapest path runs 1500 diagonals off the main one.
    let mut state = 1_u32;
    let mut symbols = |count: usize| -> Vec<u32> {
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state >> 24
        };
        (0..count).map(|_| next()).collect()
    };
    let (middle, more, fewer) = (symbols(4000), symbols(1500), symbols(1500));
    let (a, b) = ([middle.clone(), fewer].concat(), [more, middle].concat());
    let want = naive_edit_distance(&a, &b);
    assert!(want > 2000, "the path leaves the middle");
    for (a, b) in [(&a, &b), (&b, &a)] {
        assert_eq!(edit_distance(a, b), want);
        for limit in [want - 1, want, want + 1, want + 100] {
            assert_eq!(edit_distance_within(a, b, limit), want.min(limit + 1));
        }
    }
}

#[test]
fn wrong_offsets_are_errors() {
    let values = [1_u32, 2, 3];
    let new = |offsets: &[i64]| Ragged::new(&values, offsets).map(|rows| rows.len());
    assert_eq!(new(&[]), Err(Error::NoOffsets));
    assert_eq!(new(&[-1, 2]), Err(Error::OffsetFalls { row: 0 }));
    assert_eq!(new(&[0, 2, 1]), Err(Error::OffsetFalls { row: 1 }));
    assert_eq!(
        new(&[0, 4]),
        Err(Error::OffsetBeyondValues {
            offset: 4,
            values: 3
        })
    );
    assert_eq!(
        new(&[0, i64::MAX]),
        Err(Error::TooLong {
            length: i64::MAX as usize
        })
    );
    assert_eq!(
        new(&[i64::MAX, i64::MIN]),
        Err(Error::OffsetFalls { row: 0 })
    );
    assert_eq!(new(&[1, 1, 3]), Ok(2));
    assert_eq!(new(&[3]), Ok(0));
}

#[test]
fn wrong_golden_indices_are_errors() {
    let rows = Ragged::new(&[1_u32, 2], &[0, 1, 2]).expect("valid");
    let score = |index: &[u32]| {
        score_tokens(rows, rows, index, Options::default()).map(|found| found.positional)
    };
    assert_eq!(
        score(&[0]),
        Err(Error::IndexCount {
            indices: 1,
            trials: 2
        })
    );
    assert_eq!(
        score(&[0, 2]),
        Err(Error::IndexOutOfRange {
            trial: 1,
            index: 2,
            golden: 2
        })
    );
    assert_eq!(score(&[1, 0]), Ok(vec![1, 1]));
}
