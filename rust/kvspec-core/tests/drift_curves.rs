//! Repetition, curves over positions and distances of distributions, worked out by hand.

use kvspec_core::drift::{
    Error, Ragged, Tail, first_divergence_histogram, kl_full, kl_topk, periodic_tail,
    position_counts, survival, topk_agreement,
};

#[test]
fn periodic_tails() {
    let tail = |row: &[u32]| periodic_tail(row, 4);
    assert_eq!(
        tail(&[]),
        Tail {
            length: 0,
            period: 0
        }
    );
    assert_eq!(
        tail(&[1, 2, 3]),
        Tail {
            length: 1,
            period: 1
        }
    );
    assert_eq!(
        tail(&[5, 1, 2, 1, 2, 1, 2]),
        Tail {
            length: 6,
            period: 2
        }
    );
    assert_eq!(
        tail(&[7, 7, 7, 7, 7]),
        Tail {
            length: 5,
            period: 1
        }
    );
    assert!(tail(&[7; 16]).is_collapse(4, 16) && !tail(&[7; 15]).is_collapse(4, 16));
    assert!(!tail(&[]).is_collapse(0, 0));
}

#[test]
fn divergence_curves() {
    let first = [0, -1, 3, 2];
    assert_eq!(first_divergence_histogram(&first, 3), Ok(vec![1, 0, 1]));
    let positions = usize::MAX;
    assert_eq!(
        first_divergence_histogram(&first, positions),
        Err(Error::TooManyPositions { positions })
    );
    assert_eq!(
        survival(&first, &[4, 4, 4, 2], 5),
        Ok(vec![1.0, 0.75, 0.75, 0.5, 0.25, 0.25])
    );
    assert_eq!(
        survival(&first, &[4], 5),
        Err(Error::ShapeMismatch {
            expected: 4,
            given: 1
        })
    );
    assert_eq!(survival(&[], &[], 1), Ok(vec![1.0, 1.0]));
    // The second trial ends identical after two positions, so the third is alone when it diverges.
    assert_eq!(
        survival(&[1, -1, 4], &[5, 2, 5], 5).map(|curve| curve[4..].to_vec()),
        Ok(vec![1.0 - 1.0 / 3.0, 0.0])
    );
    let golden = Ragged::new(&[1_u32, 2, 3], &[0, 3]).expect("valid");
    let trials = Ragged::new(&[1_u32, 9, 1, 2, 9, 9], &[0, 2, 6, 6]).expect("valid");
    let counts = position_counts(golden, trials, &[0, 0, 0]).expect("valid");
    assert_eq!(
        (counts.compared, counts.differing),
        (vec![2, 2, 1], vec![0, 1, 1])
    );
}

#[test]
fn distributions() {
    let half = 0.5_f32.ln();
    assert!((kl_full(&[half, half], &[0.25_f32.ln(), 0.75_f32.ln()]) - 0.143_841_04).abs() < 1e-6);
    assert!(kl_full(&[half, half], &[0.0, f32::NEG_INFINITY]).is_infinite());
    assert!(kl_topk((&[3], &[half]), (&[3], &[half])).abs() < 1e-9);
    assert!(
        kl_topk((&[3], &[0.0]), (&[4], &[0.0])).abs() < 1e-9,
        "nothing is known of either token on the other side"
    );
    assert!((topk_agreement(&[1, 2, 3, 4], &[4, 3, 9]) - 0.5).abs() < 1e-12);
    assert!((topk_agreement(&[], &[]) - 1.0).abs() < 1e-12);
}
