//! Faults of scales, and of values beside them, in a quantized cache: codes and scales are the state, words follow.

use kvspec_core::{
    CacheTables, Error, EventTable, FaultModel, Format, Geometry, LayerCache, Op, Per, Sampler,
    Selector, Site, Sites, StepFaults, StepRows, Target, TrialTable, Trials,
};
use proptest::prelude::*;

const LAYERS: u32 = 2;
const DIM: usize = 6;
const HEADS: usize = 2;
const TOKENS: usize = 4;
const BLOCKS: usize = 5;
const ROWS: usize = 2 * TOKENS * HEADS;
const LENGTH: u32 = 11;
const PROMPT: u32 = 8;
const TABLE: [i32; 3] = [4, 1, 2];
const BLOCK_OF: [usize; 3] = [4, 1, 2];

fn geometry(target: Target, format: Format) -> Geometry {
    let (head_size, bits) = match target {
        Target::Values => (DIM as u32, format.bits()),
        Target::Scales => (1, 32),
    };
    Geometry {
        head_size,
        bits,
        heads: HEADS as u32,
        planes: 2,
        first_plane: 0,
    }
}

fn sampler(target: Target, format: Format, rate: f64) -> Sampler {
    let geometry = geometry(target, format);
    let model = FaultModel {
        rate,
        per: Per::Bit,
        mask: u32::MAX >> (32 - geometry.bits),
        burst_len: 1,
        page: None,
    };
    Sampler::new(&model, &geometry).expect("legal")
}

/// One layer's cache of one request.
#[derive(Clone, Debug, PartialEq)]
struct Cache {
    words: Vec<u32>,
    codes: Vec<u8>,
    scales: Vec<u32>,
    offsets: Vec<i64>,
}

impl Cache {
    /// Rows as a cache write leaves them: the value of an element depends on its place and `salt`.
    fn new(format: Format, salt: u32) -> Self {
        // elements of a block run backwards, so that an address is not an index
        let offsets: Vec<i64> = (0..ROWS * DIM)
            .rev()
            .filter_map(|i| i64::try_from(i).ok())
            .collect();
        let mut cache = Self {
            words: vec![0; BLOCKS * ROWS * DIM],
            codes: vec![0; BLOCKS * ROWS * DIM],
            scales: vec![0; BLOCKS * ROWS],
            offsets,
        };
        for row in 0..BLOCKS * ROWS {
            let value =
                |elem: usize| (((row * 31 + elem * 7) as u32 ^ salt) % 97) as f32 / 9.0 - 5.0;
            let mut codes: Vec<u32> = (0..DIM).map(|elem| value(elem).to_bits()).collect();
            cache.scales[row] = format.quantize_codes(&mut codes);
            for (elem, code) in codes.into_iter().enumerate() {
                cache.codes[row * DIM + elem] = code as u8;
            }
        }
        cache.derive(format);
        cache
    }

    fn address(&self, row: usize, elem: usize) -> usize {
        let offset = usize::try_from(self.offsets[row % ROWS * DIM + elem]).expect("not negative");
        row / ROWS * ROWS * DIM + offset
    }

    /// The words that codes and scales stand for, computed from the definition of the formats.
    fn derive(&mut self, format: Format) {
        for row in 0..BLOCKS * ROWS {
            for elem in 0..DIM {
                let (code, scale) = (self.codes[row * DIM + elem], self.scales[row]);
                let value = if format == Format::Int8 {
                    f32::from(code.cast_signed()) * f32::from_bits(scale)
                } else {
                    (f32::from(code) - (scale & 15) as f32) * f32::from_bits(scale & !15)
                };
                let address = self.address(row, elem);
                self.words[address] = if value.is_nan() {
                    0x7FC0_0000
                } else {
                    value.to_bits()
                };
            }
        }
    }

    fn row(token: u32, kv: u8, head: u16) -> usize {
        let block = BLOCK_OF[token as usize / TOKENS];
        block * ROWS + (kv as usize * TOKENS + token as usize % TOKENS) * HEADS + head as usize
    }

    fn with<T>(&mut self, work: impl FnOnce(&mut LayerCache<'_>, &CacheTables<'_>) -> T) -> T {
        let tables = CacheTables {
            block_table: &TABLE,
            blocks_per_row: TABLE.len(),
            offsets: &self.offsets,
            offsets_shape: [2, TOKENS, HEADS, DIM],
            block_stride: ROWS * DIM,
        };
        let mut cache = LayerCache {
            words: &mut self.words,
            codes: &mut self.codes,
            scales: &mut self.scales,
        };
        work(&mut cache, &tables)
    }

    fn inject(&mut self, layer: u32, faults: &mut StepFaults, format: Format) -> Result<(), Error> {
        self.with(|cache, tables| faults.inject(layer, cache, tables, format))
    }

    /// Applies the faults of a step to codes and scales, one after the other, by plain indexing.
    fn apply(&mut self, layer: u32, faults: &StepFaults, op: Op) -> u64 {
        let columns = faults.columns(layer).expect("a layer");
        let mut bits = 0;
        for i in 0..columns.mask.len() {
            let row = Self::row(columns.token[i], columns.kv[i], columns.head[i]);
            let mask = columns.mask[i];
            bits += u64::from(mask.count_ones());
            if columns.target[i] == Target::Scales {
                assert_eq!(columns.elem[i], 0);
                self.scales[row] = op.apply(self.scales[row], mask);
            } else {
                let code = &mut self.codes[row * DIM + columns.elem[i] as usize];
                *code = op.apply(*code, mask as u8);
            }
        }
        bits
    }
}

/// Entry 0 has faults of values, entry 1 of scales, both on the same request.
fn table(format: Format, rate: f64, site: Site, op: Op) -> TrialTable {
    let targets = vec![Target::Values, Target::Scales];
    let samplers = targets.iter().map(|&x| sampler(x, format, rate)).collect();
    let trials = Trials {
        sampler: vec![0, 1],
        selector: vec![0, 0],
        write_key: vec![[1, 2], [3, 4]],
        request: vec![9, 9],
        prompt_len: vec![PROMPT, PROMPT],
        site: vec![site, site],
        op: vec![op, op],
        target: targets,
        read_master: vec![[5, 6], [7, 8]],
    };
    TrialTable::new(LAYERS, samplers, vec![Selector::default()], &trials).expect("legal")
}

/// Both entries in one row of the batch, in the given order.
fn step<T>(order: [u32; 2], start: u32, count: u32, work: impl FnOnce(&StepRows<'_>) -> T) -> T {
    work(&StepRows {
        entry: &order,
        row: &[0, 0],
        start: &[start; 2],
        count: &[count; 2],
    })
}

const FORMATS: [Format; 2] = [Format::Int8, Format::Int4];

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Codes and scales get their own faults, in any order; words are what they stand for; landed is what was drawn.
    #[test]
    fn writes_strike_codes_and_scales_apart(
        salt in any::<u32>(), rate in prop::sample::select(vec![0.01, 0.2, 0.9]), format in prop::sample::select(&FORMATS),
        op in prop::sample::select(vec![Op::Flip, Op::Set0, Op::Set1]),
    ) {
        let table = table(format, rate, Site::Write, op);
        let mut results = Vec::new();
        for order in [[0, 1], [1, 0]] {
            let mut faults = step(order, 0, LENGTH, |rows| table.write_step(rows)).expect("legal");
            let mut layers = Vec::new();
            let mut planned = 0;
            for layer in 0..LAYERS {
                let mut cache = Cache::new(format, salt);
                let mut expected = cache.clone();
                planned += expected.apply(layer, &faults, op);
                expected.derive(format);
                cache.inject(layer, &mut faults, format).expect("covered");
                prop_assert_eq!(&cache, &expected);
                layers.push(cache);
            }
            prop_assert_eq!(faults.landed().iter().sum::<u64>(), planned);
            let changed = faults.changed().iter().sum::<u64>();
            let all = op == Op::Flip;
            prop_assert_eq!(changed == planned, all);
            results.push(layers);
        }
        prop_assert_eq!(&results[0], &results[1]);
    }

    /// Reads leave nothing behind, also on rows whose scale a write has made 0, infinite or NaN.
    #[test]
    fn reads_are_taken_back_bit_for_bit(
        salt in any::<u32>(), rate in prop::sample::select(vec![0.01, 0.3]), format in prop::sample::select(&FORMATS),
        op in prop::sample::select(vec![Op::Flip, Op::Set0, Op::Set1]),
    ) {
        let table = table(format, rate, Site::Both, op);
        let mut writes = step([0, 1], 0, LENGTH, |rows| table.write_step(rows)).expect("legal");
        let mut reads = step([0, 1], LENGTH - 1, 1, |rows| table.read_step(rows)).expect("legal");
        for layer in 0..LAYERS {
            let mut cache = Cache::new(format, salt);
            cache.inject(layer, &mut writes, format).expect("covered");
            let before = cache.clone();
            let mut expected = cache.clone();
            expected.apply(layer, &reads, op);
            expected.derive(format);
            cache.inject(layer, &mut reads, format).expect("covered");
            prop_assert_eq!(&cache, &expected);
            cache.with(|cache, _| reads.restore(cache, format)).expect("the same cache");
            prop_assert_eq!(&cache, &before);
        }
        prop_assert!(reads.exposed().iter().all(|&bits| bits > 0));
        prop_assert_eq!(reads.exposed(), reads.restored());
    }
}

#[test]
fn a_scale_changes_every_value_of_its_row_and_no_other() {
    let format = Format::Int8;
    let mut cache = Cache::new(format, 3);
    let before = cache.clone();
    let listed = events(&[(2, 1, 1, 0, 30, Target::Scales)]).expect("legal");
    let mut faults = write(&listed);
    cache.inject(1, &mut faults, format).expect("covered");
    let row = Cache::row(2, 1, 1);
    assert_eq!(cache.scales[row], before.scales[row] ^ 1 << 30);
    assert_eq!(cache.codes, before.codes);
    let changed: Vec<usize> = (0..cache.words.len())
        .filter(|&i| cache.words[i] != before.words[i])
        .collect();
    let mut words: Vec<usize> = (0..DIM).map(|elem| cache.address(row, elem)).collect();
    words.retain(|&i| before.words[i] & 0x7FFF_FFFF != 0); // 0 times anything finite is 0
    words.sort_unstable();
    assert_eq!(changed, words);
    assert_eq!((faults.landed(), faults.changed()), (&[1][..], &[1][..]));
}

type Event = (u32, u8, u16, u16, u8, Target);

/// Layer 1 of request 0, flips at writes: (token, kv, head, elem, bit, target).
fn events(list: &[Event]) -> Result<EventTable, Error> {
    let column = |pick: fn(&Event) -> u16| -> Vec<u16> { list.iter().map(pick).collect() };
    let (request, layer) = (vec![0; list.len()], vec![1; list.len()]);
    let token: Vec<u32> = list.iter().map(|e| e.0).collect();
    let kv: Vec<u8> = list.iter().map(|e| e.1).collect();
    let bit: Vec<u8> = list.iter().map(|e| e.4).collect();
    let targets: Vec<Target> = list.iter().map(|e| e.5).collect();
    let sites = Sites {
        request: &request,
        step: None,
        layer: &layer,
        kv: &kv,
        head: &column(|e| e.2),
        token: &token,
        elem: &column(|e| e.3),
        bit: &bit,
    };
    let ops = vec![Op::Flip; list.len()];
    EventTable::new(
        LAYERS,
        8,
        &[0, list.len() as u64],
        &[PROMPT],
        &sites,
        &ops,
        &targets,
    )
}

fn write(table: &EventTable) -> StepFaults {
    let rows = StepRows {
        entry: &[0],
        row: &[0],
        start: &[0],
        count: &[LENGTH],
    };
    table.write_step(&rows).expect("legal")
}

#[test]
fn listed_faults_of_one_row_are_of_its_codes_and_of_its_scale() {
    let both = [
        (2, 1, 1, 0, 3, Target::Values),
        (2, 1, 1, 0, 3, Target::Scales), // the same numbers, another site
        (2, 1, 1, 0, 31, Target::Scales),
        (2, 1, 1, 5, 0, Target::Values),
    ];
    let mut cache = Cache::new(Format::Int8, 5);
    let mut expected = cache.clone();
    let mut faults = write(&events(&both).expect("legal"));
    assert_eq!(expected.apply(1, &faults, Op::Flip), 4);
    expected.derive(Format::Int8);
    cache.inject(1, &mut faults, Format::Int8).expect("covered");
    assert_eq!(cache, expected);
    assert_eq!(faults.landed(), [4]);
}

#[test]
fn what_no_scale_has_is_refused() {
    let of = |elem, bit, target| events(&[(2, 1, 1, elem, bit, target)]).map(|_| ());
    assert_eq!(of(0, 31, Target::Scales), Ok(()));
    assert!(matches!(
        of(0, 32, Target::Scales),
        Err(Error::Index {
            name: "bit",
            value: 32,
            limit: 32
        })
    ));
    assert!(matches!(
        of(1, 0, Target::Scales),
        Err(Error::Index {
            name: "element of a scale",
            ..
        })
    ));
    assert!(matches!(
        of(0, 8, Target::Values),
        Err(Error::Index {
            name: "bit",
            limit: 8,
            ..
        })
    ));
    let twice = [(2, 1, 1, 0, 7, Target::Scales); 2];
    assert!(matches!(events(&twice), Err(Error::Order { .. })));
    assert!(Target::from_code(2).is_err());
    assert!(Target::parse("scale").is_err());
}

#[test]
fn samplers_of_scales_are_one_element_of_32_bits() {
    let build = |sampler: Sampler, target| {
        let trials = Trials {
            target: vec![target],
            ..Trials::default()
        };
        TrialTable::new(1, vec![sampler], Vec::new(), &trials).map(|_| ())
    };
    let wide = Geometry {
        head_size: 2,
        ..geometry(Target::Scales, Format::Int8)
    };
    let model = FaultModel {
        rate: 0.1,
        per: Per::Bit,
        mask: 1,
        burst_len: 1,
        page: None,
    };
    let wide = Sampler::new(&model, &wide).expect("legal");
    let values = sampler(Target::Values, Format::Int8, 0.1);
    assert_eq!(
        build(sampler(Target::Scales, Format::Int8, 0.1), Target::Scales),
        Ok(())
    );
    assert_eq!(
        build(wide, Target::Scales),
        Err(Error::ScaleRow { head_size: 2 })
    );
    assert_eq!(
        build(values, Target::Scales),
        Err(Error::Width {
            bits: 8,
            expected: 32
        })
    );
}

#[test]
fn a_cache_that_cannot_take_the_faults_is_left_alone() {
    let faults = write(&events(&[(2, 1, 1, 0, 30, Target::Scales)]).expect("legal"));
    let mut cache = Cache::new(Format::Int8, 1);
    let before = cache.clone();
    let row = Cache::row(2, 1, 1);
    let try_with = |cache: &mut Cache, cut: fn(&mut LayerCache<'_>, usize)| {
        let mut faults = faults.clone();
        cache.with(|cache, tables| {
            let (words, codes, scales) = (&mut *cache.words, &mut *cache.codes, &mut *cache.scales);
            let mut part = LayerCache {
                words,
                codes,
                scales,
            };
            cut(&mut part, Cache::row(2, 1, 1));
            faults.inject(1, &mut part, tables, Format::Int8)
        })
    };
    assert!(matches!(
        try_with(&mut cache, |cache, row| cache.scales =
            &mut std::mem::take(&mut cache.scales)[..row]),
        Err(Error::Index {
            name: "scale of a row",
            ..
        })
    ));
    assert!(matches!(
        try_with(&mut cache, |cache, row| cache.codes =
            &mut std::mem::take(&mut cache.codes)[..=row * DIM]),
        Err(Error::Index {
            name: "code of a row",
            ..
        })
    ));
    assert!(matches!(
        try_with(&mut cache, |cache, _| cache.words =
            &mut std::mem::take(&mut cache.words)[..1]),
        Err(Error::Address { .. })
    ));
    assert_eq!(
        try_with(&mut cache, |cache, _| cache.codes = &mut []),
        Err(Error::NoScales {
            format: "int8_per_token_head"
        })
    );
    assert!(row > 0);
    assert_eq!(cache, before);
    // of a format without scales
    let mut only_scales = Trials {
        target: vec![Target::Scales],
        ..Trials::default()
    };
    (only_scales.sampler, only_scales.selector) = (vec![0], vec![0]);
    (
        only_scales.write_key,
        only_scales.request,
        only_scales.prompt_len,
    ) = (vec![[1, 2]], vec![0], vec![PROMPT]);
    let samplers = vec![sampler(Target::Scales, Format::Int8, 0.5)];
    let table =
        TrialTable::new(LAYERS, samplers, vec![Selector::default()], &only_scales).expect("legal");
    let rows = StepRows {
        entry: &[0],
        row: &[0],
        start: &[0],
        count: &[LENGTH],
    };
    let mut faults = table.write_step(&rows).expect("legal");
    let refused = cache.with(|cache, tables| {
        let mut plain = LayerCache::plain(cache.words);
        faults.inject(1, &mut plain, tables, Format::Bf16)
    });
    assert_eq!(refused, Err(Error::Unscaled { format: "bf16" }));
    assert_eq!(cache, before);
}
