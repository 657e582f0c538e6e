//! Edges of the arguments, each limit from both sides, and the count of landed flips.

use std::num::NonZeroUsize;
use std::ops::Range;

use kvspec_core::{
    CacheTables, Error, FaultModel, Format, Geometry, Grid, LayerCache, Page, Per, Sampler,
    Selector, StepRows, TrialTable, Trials, thresholds,
};

const GOOD: Geometry = Geometry {
    head_size: 64,
    bits: 16,
    heads: 3,
    planes: 2,
    first_plane: 0,
};

const MODEL: FaultModel = FaultModel {
    rate: 0.1,
    per: Per::Bit,
    mask: 0xFFFF,
    burst_len: 1,
    page: None,
};

#[test]
fn edges_of_rates() {
    let model = |rate| FaultModel {
        rate,
        per: Per::Bit,
        mask: 0xFF,
        burst_len: 1,
        page: None,
    };
    let geometry = Geometry {
        head_size: 4,
        bits: 8,
        heads: 1,
        planes: 1,
        first_plane: 0,
    };
    assert_eq!(
        Sampler::new(&model(-0.0), &geometry),
        Sampler::new(&model(0.0), &geometry)
    );
    assert_eq!(thresholds(9, f64::MIN_POSITIVE / 4.0), Ok(vec![]));
    assert_eq!(thresholds(0, 0.5), Ok(vec![]));
    for rate in [
        f64::NAN,
        f64::INFINITY,
        -f64::MIN_POSITIVE,
        1.0 + f64::EPSILON,
    ] {
        let error = Sampler::new(&model(rate), &geometry);
        assert!(matches!(
            error,
            Err(Error::Probability { name: "rate", .. })
        ));
        let page = Some(Page { tokens: 4, rate });
        let paged = FaultModel { page, ..model(0.5) };
        let error = Sampler::new(&paged, &geometry);
        assert!(matches!(
            error,
            Err(Error::Probability {
                name: "page_rate",
                ..
            })
        ));
    }
}

#[test]
fn models_and_geometries_have_limits() {
    let geometries = [
        Geometry { bits: 0, ..GOOD },
        Geometry { bits: 33, ..GOOD },
        Geometry {
            head_size: 0,
            ..GOOD
        },
        Geometry {
            head_size: 2049,
            ..GOOD
        },
        Geometry { heads: 0, ..GOOD },
        Geometry {
            heads: 32768,
            ..GOOD
        },
        Geometry { planes: 0, ..GOOD },
        Geometry { planes: 3, ..GOOD },
        Geometry {
            first_plane: 1,
            ..GOOD
        },
        Geometry {
            planes: u32::MAX,
            first_plane: u32::MAX,
            ..GOOD
        },
    ];
    for geometry in geometries {
        assert!(Sampler::new(&MODEL, &geometry).is_err(), "{geometry:?}");
    }
    let page = |tokens| Some(Page { tokens, rate: 0.5 });
    let models = [
        FaultModel { mask: 0, ..MODEL },
        FaultModel {
            mask: 0x1_0000,
            ..MODEL
        },
        FaultModel {
            burst_len: 0,
            ..MODEL
        },
        FaultModel {
            page: page(0),
            ..MODEL
        },
    ];
    for model in models {
        assert!(Sampler::new(&model, &GOOD).is_err(), "{model:?}");
    }
}

#[test]
fn grids_end_at_their_limits() {
    let largest = Geometry {
        head_size: 2048,
        heads: 32767,
        ..GOOD
    };
    let sampler = Sampler::new(
        &FaultModel {
            rate: 1e-9,
            ..MODEL
        },
        &largest,
    )
    .expect("legal");
    let grid = Grid {
        request: u32::MAX,
        layers: 65535..65536,
        tokens: (1 << 32) - 3..1 << 32,
        prompt_len: 0,
    };
    assert!(
        sampler
            .enumerate([1, 2], &grid, &Selector::default())
            .is_ok()
    );
    let beyond = [
        Grid {
            layers: 65536..65537,
            ..grid.clone()
        },
        Grid {
            tokens: 0..(1 << 32) + 1,
            ..grid.clone()
        },
        Grid {
            tokens: Range { start: 5, end: 4 },
            ..grid.clone()
        },
    ];
    for grid in beyond {
        assert!(
            sampler
                .enumerate([1, 2], &grid, &Selector::default())
                .is_err()
        );
        assert!(sampler.count([1, 2], &grid, &Selector::default()).is_err());
    }
    let everything = Grid {
        layers: 0..1,
        tokens: 0..1 << 32,
        ..grid
    };
    let certain = Sampler::new(&FaultModel { rate: 1.0, ..MODEL }, &GOOD).expect("legal");
    let error = certain.enumerate([1, 2], &everything, &Selector::default());
    assert!(matches!(error, Err(Error::TooManyFlips { .. })));
}

/// Two entries of one row, a rate of 1: every bit lands, and twice is nothing.
#[test]
fn inject_counts_what_landed() {
    let geometry = Geometry {
        head_size: 3,
        bits: 16,
        heads: 2,
        planes: 2,
        first_plane: 0,
    };
    let model = |mask| FaultModel {
        rate: 1.0,
        per: Per::Bit,
        mask,
        burst_len: 1,
        page: None,
    };
    let samplers =
        [0xFFFF, 0x8000].map(|mask| Sampler::new(&model(mask), &geometry).expect("legal"));
    let trials = Trials {
        sampler: vec![0, 1],
        selector: vec![0, 0],
        write_key: vec![[1, 2], [3, 4]],
        request: vec![0, 0],
        prompt_len: vec![1, 1],
        ..Trials::default()
    };
    let table =
        TrialTable::new(2, samplers.to_vec(), vec![Selector::default()], &trials).expect("legal");
    let step = StepRows {
        entry: &[1, 0],
        row: &[0, 0],
        start: &[2, 2],
        count: &[2, 2],
    };
    for threads in (1..=5).filter_map(NonZeroUsize::new) {
        let mut faults = table.write_step_on(&step, threads).expect("legal");
        // tokens 2 and 3 lie in block 1 of the row, which is block 4 of the cache
        let offsets: Vec<i64> = (0..24).rev().collect();
        let tables = CacheTables {
            block_table: &[0, 4],
            blocks_per_row: 2,
            offsets: &offsets,
            offsets_shape: [2, 2, 2, 3],
            block_stride: 24,
        };
        let mut words = vec![0x3F80_0000_u32; 120];
        faults
            .inject(1, &mut LayerCache::plain(&mut words), &tables, Format::Bf16)
            .expect("covered");
        assert_eq!(faults.landed(), [24, 24 * 16]);
        for (i, &word) in words.iter().enumerate() {
            // the sign is flipped by both entries
            let expected = if i < 96 { 0x3F80_0000 } else { 0x407F_0000 };
            assert_eq!(word, expected, "word {i}");
        }
        assert!(matches!(
            faults.inject(
                1,
                &mut LayerCache::plain(&mut words[..119]),
                &tables,
                Format::Bf16
            ),
            Err(Error::Address { .. })
        ));
        assert!(matches!(
            faults.inject(2, &mut LayerCache::plain(&mut words), &tables, Format::Bf16),
            Err(Error::Index { .. })
        ));
    }
}
