//! Listed faults against sampled ones: a table of a map's flips must do what the sampler's own table does.

use kvspec_core::{
    CacheTables, Columns, Error, EventTable, FaultModel, Format, Geometry, Grid, LayerCache, Op,
    Per, Sampler, Selector, Site, Sites, StepRows, TrialTable, Trials, read_key,
};
use proptest::prelude::*;

const LAYERS: u32 = 3;
const GEOMETRY: Geometry = Geometry {
    head_size: 8,
    bits: 16,
    heads: 2,
    planes: 2,
    first_plane: 0,
};
const TOKENS: u32 = 40;
const PROMPT: u32 = 25;
const BLOCK: usize = 8;

fn sampler(rate: f64, burst_len: u32) -> Sampler {
    let model = FaultModel {
        rate,
        per: Per::Bit,
        mask: 0xFFFF,
        burst_len,
        page: None,
    };
    Sampler::new(&model, &GEOMETRY).expect("legal")
}

fn flips(sampler: &Sampler, key: [u32; 2], request: u32, tokens: u32) -> Columns {
    let grid = Grid {
        request,
        layers: 0..LAYERS,
        tokens: 0..u64::from(tokens),
        prompt_len: PROMPT,
    };
    let map = sampler.enumerate(key, &grid, &Selector::default());
    map.expect("legal").into_columns()
}

fn append(all: &mut Columns, more: &Columns) {
    all.request.extend(&more.request);
    all.layer.extend(&more.layer);
    all.kv.extend(&more.kv);
    all.head.extend(&more.head);
    all.token.extend(&more.token);
    all.elem.extend(&more.elem);
    all.bit.extend(&more.bit);
}

fn one(bit: u8) -> Columns {
    Columns {
        request: vec![0],
        layer: vec![1],
        kv: vec![1],
        head: vec![0],
        token: vec![9],
        elem: vec![2],
        bit: vec![bit],
    }
}

/// All faults of a trial, those of writes at step 0.
fn trial(sampler: &Sampler, keys: [[u32; 2]; 2], request: u32) -> (Columns, Vec<u32>) {
    let mut all = flips(sampler, keys[0], request, TOKENS);
    let mut steps = vec![0; all.bit.len()];
    for step in PROMPT..=TOKENS {
        append(
            &mut all,
            &flips(sampler, read_key(keys[1], request, step), request, step),
        );
        steps.resize(all.bit.len(), step);
    }
    (all, steps)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// However the tokens are cut into steps, both tables name the same bits, write the same words and show the
    /// same reads, which leave nothing behind.
    #[test]
    fn a_map_does_what_its_generator_does(
        rate in prop::sample::select(vec![0.0, 1e-4, 1e-2, 0.05]),
        burst_len in 1..4_u32,
        cuts in prop::collection::vec(1..15_u32, 3..12),
        seed in any::<u32>(),
    ) {
        let sampler = sampler(rate, burst_len);
        let keys = [[[seed, 1], [seed, 3]], [[seed, 2], [seed, 4]]];
        let trials = Trials {
            sampler: vec![0, 0],
            selector: vec![0, 0],
            write_key: vec![keys[0][0], keys[1][0]],
            request: vec![7, 8],
            prompt_len: vec![PROMPT, PROMPT],
            site: vec![Site::Both],
            read_master: vec![keys[0][1], keys[1][1]],
            ..Trials::default()
        };
        let drawn = TrialTable::new(LAYERS, vec![sampler.clone()], vec![Selector::default()], &trials).expect("legal");
        let (mut all, mut steps) = trial(&sampler, keys[0], 7);
        let first = all.bit.len() as u64;
        let (more, later) = trial(&sampler, keys[1], 8);
        append(&mut all, &more);
        steps.extend(later);
        let rows = all.bit.len();
        let ops = vec![Op::Flip; rows];
        let sites = Sites { step: Some(&steps), ..all.sites() };
        let starts = [0, first, rows as u64];
        let listed = EventTable::new(LAYERS, 16, &starts, &[PROMPT; 2], &sites, &ops, &[]).expect("legal");

        let (blocks, size) = (TOKENS as usize / BLOCK, 2 * BLOCK * 2 * 8);
        let offsets: Vec<i64> = (0..256).rev().collect();
        let block_table: Vec<i32> = (0..10).rev().collect();
        let tables = CacheTables {
            block_table: &block_table,
            blocks_per_row: blocks,
            offsets: &offsets,
            offsets_shape: [2, BLOCK, 2, 8],
            block_stride: size,
        };
        let mut caches = [vec![0x3FC0_0000_u32; size * 2 * blocks], vec![0x3FC0_0000_u32; size * 2 * blocks]];
        let mut at = 0;
        let (mut landed, mut shown) = (0, Vec::new());
        for count in cuts {
            let count = count.min(TOKENS - at);
            // the rows of the batch are not in the order of the entries
            let step = StepRows { entry: &[1, 0], row: &[0, 1], start: &[at, at], count: &[count, count] };
            let mut writes = [drawn.write_step(&step).expect("legal"), listed.write_step(&step).expect("legal")];
            let mut reads = [drawn.read_step(&step).expect("legal"), listed.read_step(&step).expect("legal")];
            for layer in 0..LAYERS {
                for faults in [&writes, &reads] {
                    prop_assert_eq!(faults[0].columns(layer).expect("there"), faults[1].columns(layer).expect("there"));
                }
                for ((writes, reads), cache) in writes.iter_mut().zip(&mut reads).zip(&mut caches) {
                    writes.inject(layer, &mut LayerCache::plain(cache), &tables, Format::Bf16).expect("covered");
                    let stored = cache.clone();
                    reads.inject(layer, &mut LayerCache::plain(cache), &tables, Format::Bf16).expect("covered");
                    prop_assert_eq!(reads.layer_len(layer).expect("there") > 0, &stored != cache);
                    reads.restore(&mut LayerCache::plain(cache), Format::Bf16).expect("the same cache");
                    prop_assert_eq!(&stored, cache);
                }
            }
            for faults in [&writes, &reads] {
                prop_assert_eq!(faults[0].landed(), faults[1].landed());
                prop_assert_eq!(faults[1].exposed(), faults[1].restored());
                landed += faults[1].landed().iter().sum::<u64>();
            }
            prop_assert_eq!(reads[0].exposed(), reads[1].exposed());
            at += count;
            if count == 1 || count > 0 && at <= PROMPT {
                shown.push((at.max(PROMPT), at));
            }
        }
        prop_assert_eq!(&caches[0], &caches[1]);
        // A write lands with its token; a read in each event that some forward shows, as far as its tokens are there.
        let there = |(&token, &step): (&u32, &u32)| match step {
            0 => token < at,
            _ => shown.iter().any(|&(event, seen)| event == step && token < seen),
        };
        prop_assert_eq!(landed as usize, all.token.iter().zip(&steps).filter(|&pair| there(pair)).count());
    }
}

/// Bits of one element with different ops: each is set as listed and counts once, whether it changed or not.
#[test]
fn ops_are_per_bit() {
    let mut all = one(15);
    for bit in [7, 0, 14, 1] {
        append(&mut all, &one(bit));
    }
    let ops = [Op::Set1, Op::Set0, Op::Flip, Op::Set1, Op::Set0];
    let table =
        EventTable::new(LAYERS, 16, &[0, 0, 5], &[5, 5], &all.sites(), &ops, &[]).expect("legal");
    assert_eq!(table.len(), 2);
    let step = StepRows {
        entry: &[0, 1],
        row: &[0, 0],
        start: &[9, 9],
        count: &[1, 1],
    };
    let mut faults = table.write_step(&step).expect("legal");
    let offsets: Vec<i64> = (0..512).collect();
    let tables = CacheTables {
        block_table: &[0],
        blocks_per_row: 1,
        offsets: &offsets,
        offsets_shape: [2, 16, 2, 8],
        block_stride: 512,
    };
    let mut words = vec![0x3F80_0000_u32; 512];
    faults
        .inject(1, &mut LayerCache::plain(&mut words), &tables, Format::Bf16)
        .expect("covered");
    assert_eq!(faults.landed(), [0, 5]);
    // 3F80: bit 15 set, 7 cleared, 0 flipped, 14 set, 1 clear as it was
    assert_eq!(words[((16 + 9) * 2) * 8 + 2], 0xFF01_0000);
    assert_eq!(words.iter().filter(|&&word| word != 0x3F80_0000).count(), 1);
    assert!(matches!(
        faults.inject(
            1,
            &mut LayerCache::plain(&mut words),
            &tables,
            Format::parse("fp16").expect("known")
        ),
        Ok(())
    ));
}

#[test]
fn tables_that_are_none_are_refused() {
    let good = one(15);
    let make = |columns: &Columns, starts: &[u64], ops: &[Op]| {
        let prompts = vec![5; starts.len().saturating_sub(1)];
        EventTable::new(LAYERS, 16, starts, &prompts, &columns.sites(), ops, &[]).map(|_| ())
    };
    assert_eq!(make(&good, &[0, 1], &[Op::Flip]), Ok(()));
    for starts in [&[][..], &[1][..], &[0][..], &[0, 2][..], &[0, 2, 1][..]] {
        assert!(make(&good, starts, &[Op::Flip]).is_err(), "{starts:?}");
    }
    assert!(make(&good, &[0, 1], &[]).is_err());
    for broken in [
        Columns {
            layer: vec![3],
            ..good.clone()
        },
        Columns {
            kv: vec![2],
            ..good.clone()
        },
        Columns {
            bit: vec![16],
            ..good.clone()
        },
        Columns {
            head: vec![],
            ..good.clone()
        },
    ] {
        assert!(make(&broken, &[0, 1], &[Op::Flip]).is_err(), "{broken:?}");
    }
    let mut twice = good.clone();
    append(&mut twice, &good);
    for ops in [
        [Op::Flip, Op::Flip],
        [Op::Flip, Op::Set1],
        [Op::Set0, Op::Set1],
    ] {
        assert_eq!(make(&twice, &[0, 2], &ops), Err(Error::Order { index: 0 }));
    }
    // the same site in two entries is two faults
    assert_eq!(make(&twice, &[0, 1, 2], &[Op::Flip; 2]), Ok(()));
    // nor is the same site in two events
    let events = Sites {
        step: Some(&[6, 7]),
        ..twice.sites()
    };
    let table = EventTable::new(LAYERS, 16, &[0, 2], &[5], &events, &[Op::Flip; 2], &[]);
    assert_eq!(table.map(|table| table.len()), Ok(1));
    let same = Sites {
        step: Some(&[6, 6]),
        ..twice.sites()
    };
    let table = EventTable::new(LAYERS, 16, &[0, 2], &[5], &same, &[Op::Flip; 2], &[]);
    assert_eq!(table.map(|_| ()), Err(Error::Order { index: 0 }));
    let prompts = EventTable::new(LAYERS, 16, &[0, 1], &[], &good.sites(), &[Op::Flip], &[]);
    assert!(prompts.is_err());

    let table =
        EventTable::new(LAYERS, 16, &[0, 1], &[5], &good.sites(), &[Op::Flip], &[]).expect("legal");
    let step = |entry: u32, start: u32| {
        table.write_step(&StepRows {
            entry: &[entry],
            row: &[0],
            start: &[start],
            count: &[100],
        })
    };
    assert_eq!(step(0, 9).expect("legal").len(), 1);
    assert_eq!(step(0, 10).expect("legal").len(), 0);
    assert!(step(1, 9).is_err());
}
