//! Properties that hold for every model, geometry and selector, also under hostile arguments.

use kvspec_core::{
    CacheTables, Columns, FaultMap, FaultModel, Format, Geometry, Grid, Indices, LayerCache,
    Layout, Op, Page, Per, Phase, Sampler, Selector, StepRows, TrialTable, Trials, Word,
    thresholds,
};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

const LAYERS: u32 = 3;
const TOKENS: u64 = 40;

type Site = (u32, u16, u8, u16, u32, u16, u8);

fn geometry() -> impl Strategy<Value = Geometry> {
    let planes = prop_oneof![Just((2, 0)), Just((1, 0)), Just((1, 1))];
    let sizes = (
        1..=40_u32,
        prop_oneof![Just(8_u32), Just(16), Just(32), Just(5)],
    );
    (sizes, 1..=4_u32, planes).prop_map(|((head_size, bits), heads, (planes, first_plane))| {
        Geometry {
            head_size,
            bits,
            heads,
            planes,
            first_plane,
        }
    })
}

fn sampler() -> impl Strategy<Value = Sampler> {
    let per = prop_oneof![Just(Per::Bit), Just(Per::Element), Just(Per::Row)];
    let rate = prop_oneof![0.0..=1.0, 0.0..0.02, Just(1.0), Just(0.0), Just(-0.0)];
    let burst = prop_oneof![Just(1_u32), 1..20_u32, Just(u32::MAX)];
    let page = proptest::option::of((1..20_u32, 0.0..=1.0));
    (geometry(), per, rate, any::<u32>(), burst, page).prop_map(
        |(geometry, per, rate, mask, burst_len, page)| {
            let mask = mask & (u32::MAX >> (32 - geometry.bits));
            let model = FaultModel {
                rate,
                per,
                mask: mask.max(1),
                burst_len,
                page: page.map(|(tokens, rate)| Page { tokens, rate }),
            };
            Sampler::new(&model, &geometry).expect("a legal model")
        },
    )
}

fn ranges(top: u64) -> impl Strategy<Value = Indices> {
    let range = (0..=top, 0..=top).prop_map(|(a, b)| a.min(b)..a.max(b));
    vec(range, 0..4).prop_map(move |ranges| Indices::new("x", ranges, top).expect("in order"))
}

fn selector() -> impl Strategy<Value = Selector> {
    let phase = prop_oneof![Just(Phase::All), Just(Phase::Prompt), Just(Phase::Decode)];
    let some = |top| prop_oneof![Just(Indices::all()), ranges(top)];
    (
        some(u64::from(LAYERS)),
        some(4),
        any::<[bool; 2]>(),
        phase,
        some(TOKENS),
    )
        .prop_map(|(layers, heads, planes, phase, tokens)| Selector {
            layers,
            heads,
            planes,
            phase,
            tokens,
            steps: Indices::all(),
        })
}

fn grid(tokens: std::ops::Range<u64>) -> Grid {
    Grid {
        request: 9,
        layers: 0..LAYERS,
        tokens,
        prompt_len: 17,
    }
}

fn sites(map: &FaultMap) -> Vec<Site> {
    let c = map.columns();
    (0..map.len())
        .map(|i| {
            (
                c.request[i],
                c.layer[i],
                c.kv[i],
                c.head[i],
                c.token[i],
                c.elem[i],
                c.bit[i],
            )
        })
        .collect()
}

fn shows(selector: &Selector, site: &Site) -> bool {
    let &(_, layer, kv, head, token, ..) = site;
    selector.layers.contains(layer.into())
        && selector.heads.contains(head.into())
        && selector.planes[kv as usize]
        && selector.tokens.contains(token.into())
        && match selector.phase {
            Phase::All => true,
            Phase::Prompt => token < 17,
            Phase::Decode => token >= 17,
        }
}

fn all() -> Selector {
    Selector::default()
}

fn check_apply<W: Word + PartialEq + std::fmt::Debug>(
    map: &FaultMap,
    words: &[W],
    layout: &Layout,
) -> Result<(), TestCaseError> {
    let mut cache = words.to_vec();
    map.apply(&mut cache, layout, Op::Flip)
        .map_err(|e| TestCaseError::fail(e.to_string()))?;
    prop_assert_eq!(cache == words, map.is_empty());
    map.apply(&mut cache, layout, Op::Flip)
        .map_err(|e| TestCaseError::fail(e.to_string()))?;
    prop_assert_eq!(cache, words);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(100) })]

    #[test]
    fn any_cut_into_chunks_gives_the_same_flips(
        sampler in sampler(), key: [u32; 2], cuts in vec(0..=TOKENS, 0..5),
    ) {
        let whole = sites(&sampler.enumerate(key, &grid(0..TOKENS), &all()).unwrap_or_default());
        let mut cuts = cuts;
        cuts.extend([0, TOKENS]);
        cuts.sort_unstable();
        let mut parts = Vec::new();
        for pair in cuts.windows(2) {
            let part = sampler.enumerate(key, &grid(pair[0]..pair[1]), &all());
            parts.extend(sites(&part.unwrap_or_default()));
        }
        parts.sort_unstable();
        prop_assert_eq!(parts, whole);
    }

    #[test]
    fn a_selector_hides_and_never_moves(sampler in sampler(), key: [u32; 2], selector in selector()) {
        let whole = sampler.enumerate(key, &grid(0..TOKENS), &all()).unwrap_or_default();
        let shown = sampler.enumerate(key, &grid(0..TOKENS), &selector).unwrap_or_default();
        let mut expected = sites(&whole);
        expected.retain(|site| shows(&selector, site));
        prop_assert_eq!(sites(&shown), expected);
        let count = sampler.count(key, &grid(0..TOKENS), &selector);
        prop_assert_eq!(count, Ok(shown.len() as u64));
    }

    #[test]
    fn a_step_writes_what_enumerate_lists(
        sampler in sampler(), key: [u32; 2], selector in selector(), chunk in 1..=TOKENS as u32,
    ) {
        let map = sampler.enumerate(key, &grid(0..TOKENS), &selector).unwrap_or_default();
        let trials = Trials {
            sampler: vec![0], selector: vec![0], write_key: vec![key], request: vec![9], prompt_len: vec![17], ..Trials::default()
        };
        let table = TrialTable::new(LAYERS, vec![sampler], vec![selector], &trials).expect("legal");
        let start: Vec<u32> = (0..TOKENS as u32).step_by(chunk as usize).collect();
        let count: Vec<u32> = start.iter().map(|s| chunk.min(TOKENS as u32 - s)).collect();
        let (entry, row) = (vec![0; start.len()], vec![5; start.len()]);
        let step = StepRows { entry: &entry, row: &row, start: &start, count: &count };
        let faults = table.write_step(&step).expect("legal");
        let mut found = Vec::new();
        for layer in 0..LAYERS {
            let c = faults.columns(layer).expect("layer");
            for i in 0..c.row.len() {
                for bit in (0..32).filter(|bit| c.mask[i] >> bit & 1 == 1) {
                    found.push((9, layer as u16, c.kv[i], c.head[i], c.token[i], c.elem[i], bit));
                }
            }
        }
        let merged = faults.len();
        found.sort_unstable();
        prop_assert!(merged <= found.len());
        prop_assert_eq!(found, sites(&map));
    }

    #[test]
    fn sites_are_legal_unique_and_eligible(sampler in sampler(), key: [u32; 2]) {
        let map = sampler.enumerate(key, &grid(0..TOKENS), &all()).unwrap_or_default();
        let g = *sampler.geometry();
        prop_assert!(FaultMap::new(map.columns().clone()).is_ok());
        for (_, layer, kv, head, token, elem, bit) in sites(&map) {
            prop_assert!(u32::from(layer) < LAYERS && u64::from(token) < TOKENS);
            prop_assert!((g.first_plane..g.first_plane + g.planes).contains(&kv.into()));
            prop_assert!(u32::from(head) < g.heads && u32::from(elem) < g.head_size);
            prop_assert!(u32::from(bit) < g.bits);
        }
    }

    #[test]
    fn flips_touch_eligible_bits_only(
        geometry in geometry(), rate in 0.0..=1.0, mask: u32, burst_len in 1..9_u32, key: [u32; 2],
    ) {
        let mask = (mask & (u32::MAX >> (32 - geometry.bits))).max(1);
        for per in [Per::Bit, Per::Element, Per::Row] {
            let model = FaultModel { rate, per, mask, burst_len, page: None };
            let sampler = Sampler::new(&model, &geometry).expect("legal");
            let map = sampler.enumerate(key, &grid(0..4), &all()).unwrap_or_default();
            prop_assert!(map.columns().bit.iter().all(|&bit| mask >> bit & 1 == 1));
        }
    }

    #[test]
    fn a_flip_twice_restores(sampler in sampler(), key: [u32; 2], padding in 0..3_usize) {
        let g = *sampler.geometry();
        let map = sampler.enumerate(key, &grid(0..TOKENS), &all()).unwrap_or_default();
        let shape = [10, LAYERS as usize, 2, g.heads as usize, TOKENS as usize, g.head_size as usize + padding];
        let layout = Layout::contiguous(shape).expect("small");
        let words: usize = shape.iter().product();
        // the same cache read from its end backwards
        let backwards = Layout { base: words - 1, strides: layout.strides.map(|s| -s), shape };
        for layout in [layout, backwards] {
            match g.bits {
                0..=8 => check_apply(&map, &vec![0xA5_u8; words], &layout)?,
                9..=16 => check_apply(&map, &vec![0xA5A5_u16; words], &layout)?,
                _ => check_apply(&map, &vec![0xA5A5_A5A5_u32; words], &layout)?,
            }
        }
    }

    #[test]
    fn hostile_maps_and_layouts_give_errors(
        columns in (vec(any::<u32>(), 0..4), vec(any::<u16>(), 0..4), vec(0..3_u8, 0..4), vec(any::<u16>(), 0..4),
                    vec(any::<u32>(), 0..4), vec(any::<u16>(), 0..4), vec(any::<u8>(), 0..4)),
        base: usize,
        shape: [usize; 6], strides: [isize; 6], small: bool,
    ) {
        let (request, layer, kv, head, token, elem, bit) = columns;
        let ragged = [layer.len(), kv.len(), head.len(), token.len(), elem.len(), bit.len()]
            .iter().any(|&len| len != request.len());
        let map = FaultMap::new(Columns { request, layer, kv, head, token, elem, bit });
        prop_assert!(!(ragged && map.is_ok()));
        let (base, shape) = if small { (base % 9, shape.map(|x| x % 9)) } else { (base, shape) };
        let mut cache = [0_u16; 64];
        if let Ok(map) = map {
            let applied = map.apply(&mut cache, &Layout { base, shape, strides }, Op::Flip);
            prop_assert!(applied.is_ok() || cache == [0; 64]);
        }
    }

    #[test]
    fn hostile_steps_and_caches_give_errors(
        entry: u32, row in 0..5_u32, start in prop_oneof![0..40_u32, any::<u32>()], count in 0..3_u32,
        block_table in vec(-1..6_i32, 0..12), blocks_per_row in 0..4_usize,
        offsets in vec(prop_oneof![0..400_i64, any::<i64>()], 24),
        offsets_shape in prop_oneof![Just([2, 2, 2, 3]), Just([2, 0, 2, 3]), any::<[usize; 4]>()],
        block_stride in prop_oneof![Just(24_usize), any::<usize>()],
        layer in 0..4_u32,
    ) {
        let model = FaultModel { rate: 1.0, per: Per::Bit, mask: 0xFFFF, burst_len: 1, page: None };
        let geometry = Geometry { head_size: 3, bits: 16, heads: 2, planes: 2, first_plane: 0 };
        let sampler = Sampler::new(&model, &geometry).expect("legal");
        let trials = Trials {
            sampler: vec![0], selector: vec![0], write_key: vec![[1, 2]], request: vec![9], prompt_len: vec![17], ..Trials::default()
        };
        let table = TrialTable::new(LAYERS, vec![sampler], vec![all()], &trials).expect("legal");
        for entry in [0, entry] {
            let step = StepRows { entry: &[entry], row: &[row], start: &[start], count: &[count] };
            let Ok(mut faults) = table.write_step(&step) else { continue };
            let mut words = [0_u32; 120];
            let tables = CacheTables {
                block_table: &block_table, blocks_per_row, offsets: &offsets, offsets_shape, block_stride,
            };
            if faults.inject(layer, &mut LayerCache::plain(&mut words), &tables, Format::Bf16).is_err() {
                prop_assert_eq!(words, [0; 120]);
                prop_assert_eq!(faults.landed(), &[0]);
            }
        }
    }

    #[test]
    fn probabilities_outside_the_unit_interval_are_refused(rate: f64) {
        let legal = (0.0..=1.0).contains(&rate);
        prop_assert_eq!(thresholds(77, rate).is_ok(), legal);
    }
}
