//! Faults of reads, forward by forward: what is shown, what counts, and that nothing of it stays in the cache.

use kvspec_core::{
    CacheTables, Error, FaultMap, FaultModel, Format, Geometry, Grid, Indices, Key, LayerCache, Op,
    Per, Phase, Sampler, Selector, Site, StepFaults, StepRows, TrialTable, Trials, read_key,
};
use proptest::prelude::*;

const LAYERS: u32 = 2;
const REQUEST: u32 = 9;
const BLOCK_TOKENS: usize = 4;
const GEOMETRY: Geometry = Geometry {
    head_size: 3,
    bits: 16,
    heads: 2,
    planes: 2,
    first_plane: 0,
};
/// `[2, BLOCK_TOKENS, 2, 3]` words of a block.
const BLOCK: usize = 2 * BLOCK_TOKENS * 2 * 3;
/// Blocks of the request, in the order of its tokens; a neighbour owns the others.
const BLOCKS: [i32; 12] = [3, 9, 1, 20, 5, 17, 2, 11, 8, 14, 6, 10];
const WORDS: usize = 24 * BLOCK;

fn sampler(rate: f64, per: Per, burst_len: u32) -> Sampler {
    let model = FaultModel {
        rate,
        per,
        mask: 0x7FFF,
        burst_len,
        page: None,
    };
    Sampler::new(&model, &GEOMETRY).expect("legal")
}

fn table(sampler: &Sampler, selector: &Selector, site: Site, op: Op, prompt: u32) -> TrialTable {
    let trials = Trials {
        sampler: vec![0],
        selector: vec![0],
        write_key: vec![[1, 2]],
        request: vec![REQUEST],
        prompt_len: vec![prompt],
        site: vec![site],
        op: vec![op],
        target: Vec::new(),
        read_master: vec![MASTER],
    };
    TrialTable::new(
        LAYERS,
        vec![sampler.clone()],
        vec![selector.clone()],
        &trials,
    )
    .expect("legal")
}

const MASTER: Key = [3, 4];

fn read(table: &TrialTable, start: u32, count: u32) -> StepFaults {
    table
        .read_step(&StepRows {
            entry: &[0],
            row: &[0],
            start: &[start],
            count: &[count],
        })
        .expect("legal")
}

/// Distinct bf16 values, so that a word at the wrong address shows.
fn cache() -> Vec<u32> {
    (0..WORDS as u32).map(|i| (0x3F00 + i) << 16).collect()
}

/// What the flips of one event do to the cache of a layer that holds `seen` tokens, by plain arithmetic.
fn expose(words: &mut [u32], flips: &FaultMap, seen: u32, op: Op) {
    let c = flips.columns();
    for i in (0..flips.len()).filter(|&i| c.token[i] < seen) {
        let (token, plane) = (c.token[i] as usize, c.kv[i] as usize);
        let slot = plane * BLOCK_TOKENS + token % BLOCK_TOKENS;
        let inside = (slot * 2 + c.head[i] as usize) * 3 + c.elem[i] as usize;
        let block = BLOCKS[token / BLOCK_TOKENS].unsigned_abs() as usize;
        let word = &mut words[block * BLOCK + inside];
        *word = op.apply(*word, 1 << (16 + c.bit[i]));
    }
}

fn steps() -> impl Strategy<Value = Indices> {
    let window = (0..9_u64, 0..9_u64).prop_map(|(a, b)| {
        let window = a.min(b)..a.max(b);
        Indices::new("steps", vec![window], 9).expect("in order")
    });
    prop_oneof![Just(Indices::all()), window]
}

proptest! {
    /// However the prompt is cut, each event shows its own flips to the tokens that are there, they count once,
    /// and afterwards the cache is what it was.
    #[test]
    fn reads_show_their_events_and_leave_nothing(
        rate in prop_oneof![0.0..0.02, Just(1.0), 0.0..=1.0],
        per in prop_oneof![Just(Per::Bit), Just(Per::Element), Just(Per::Row)],
        burst_len in 1..9_u32,
        op in prop_oneof![Just(Op::Flip), Just(Op::Set0), Just(Op::Set1)],
        prompt in 1..30_u32, chunk in 1..30_u32, decodes in 0..10_u32,
        phase in prop_oneof![Just(Phase::All), Just(Phase::Prompt), Just(Phase::Decode)],
        steps in steps(),
    ) {
        let sampler = sampler(rate, per, burst_len);
        let selector = Selector { phase, steps: steps.clone(), ..Selector::default() };
        let table = table(&sampler, &selector, Site::Read, op, prompt);
        let offsets: Vec<i64> = (0..).take(BLOCK).collect();
        let tables = CacheTables {
            block_table: &BLOCKS, blocks_per_row: BLOCKS.len(), offsets: &offsets,
            offsets_shape: [2, BLOCK_TOKENS, 2, 3], block_stride: BLOCK,
        };
        let chunks = (0..prompt).step_by(chunk as usize).map(|start| (start, chunk.min(prompt - start)));
        let forwards = chunks.chain((0..decodes).map(|i| (prompt + i, 1)));
        let (mut landed, mut changed) = (0, 0);
        for (start, count) in forwards {
            let seen = start + count;
            let step = seen.max(prompt);
            let mut faults = read(&table, start, count);
            for layer in 0..LAYERS {
                let mut words = cache();
                let mut expected = words.clone();
                if steps.contains(u64::from(step - prompt)) {
                    let grid = Grid {
                        request: REQUEST, layers: layer..layer + 1, tokens: 0..u64::from(step), prompt_len: prompt,
                    };
                    let key = read_key(MASTER, REQUEST, step);
                    let flips = sampler.enumerate(key, &grid, &selector).expect("legal");
                    expose(&mut expected, &flips, seen, op);
                }
                faults.inject(layer, &mut LayerCache::plain(&mut words), &tables, Format::Bf16).expect("covered");
                prop_assert!(words == expected, "forward {}..{}, layer {}", start, seen, layer);
                faults.restore(&mut LayerCache::plain(&mut words), Format::Bf16).expect("the same cache");
                prop_assert!(words == cache());
            }
            prop_assert_eq!(faults.exposed(), faults.restored());
            prop_assert!(faults.changed()[0] <= faults.exposed()[0]);
            landed += faults.landed()[0];
            changed += faults.changed()[0];
        }
        let events = (prompt..=prompt + decodes).filter(|&step| steps.contains(u64::from(step - prompt)));
        let planned: u64 = events.map(|step| {
            let grid = Grid {
                request: REQUEST, layers: 0..LAYERS, tokens: 0..u64::from(step), prompt_len: prompt,
            };
            sampler.count(read_key(MASTER, REQUEST, step), &grid, &selector).expect("legal")
        }).sum();
        prop_assert_eq!(landed, planned);
        prop_assert!(changed == landed || op != Op::Flip && changed < landed);
    }
}

/// A whole event of all sites, with one word and both of its planes.
#[test]
fn a_site_decides_what_a_step_does() {
    let all = sampler(1.0, Per::Bit, 1);
    for (site, writes, reads) in [
        (Site::Write, true, false),
        (Site::Read, false, true),
        (Site::Both, true, true),
    ] {
        let table = table(&all, &Selector::default(), site, Op::Flip, 4);
        let step = StepRows {
            entry: &[0],
            row: &[0],
            start: &[4],
            count: &[1],
        };
        let written = table.write_step(&step).expect("legal");
        assert_eq!(!written.is_empty(), writes, "{site:?}");
        assert_eq!(!read(&table, 4, 1).is_empty(), reads, "{site:?}");
    }
}

/// The recompute of a preempted request brings several events in one forward: it is not served.
#[test]
fn a_forward_of_several_events_shows_nothing() {
    let table = table(
        &sampler(1.0, Per::Bit, 1),
        &Selector::default(),
        Site::Read,
        Op::Flip,
        4,
    );
    for (start, count, served) in [
        (0, 4, true),
        (0, 5, false),
        (3, 2, false),
        (4, 1, true),
        (4, 2, false),
        (0, 0, false),
    ] {
        assert_eq!(
            !read(&table, start, count).is_empty(),
            served,
            "{start} {count}"
        );
    }
}

#[test]
fn faults_of_reads_must_be_taken_back_before_the_next() {
    let table = table(
        &sampler(1.0, Per::Bit, 1),
        &Selector::default(),
        Site::Read,
        Op::Set1,
        4,
    );
    let offsets: Vec<i64> = (0..).take(BLOCK).collect();
    let tables = CacheTables {
        block_table: &BLOCKS,
        blocks_per_row: BLOCKS.len(),
        offsets: &offsets,
        offsets_shape: [2, BLOCK_TOKENS, 2, 3],
        block_stride: BLOCK,
    };
    let mut faults = read(&table, 0, 4);
    let mut words = cache();
    faults
        .restore(&mut LayerCache::plain(&mut words), Format::Bf16)
        .expect("nothing to do");
    faults
        .inject(0, &mut LayerCache::plain(&mut words), &tables, Format::Bf16)
        .expect("covered");
    assert_eq!(
        faults.inject(1, &mut LayerCache::plain(&mut words), &tables, Format::Bf16),
        Err(Error::NotRestored { layer: 0 })
    );
    assert!(matches!(
        faults.restore(&mut LayerCache::plain(&mut words[..BLOCK]), Format::Bf16),
        Err(Error::Address { .. })
    ));
    // What attention would see, and a word that something else has changed meanwhile.
    assert!(words != cache());
    words[3 * BLOCK] ^= 1 << 16;
    faults
        .restore(&mut LayerCache::plain(&mut words), Format::Bf16)
        .expect("the cache");
    assert!(words == cache());
    assert_ne!(faults.exposed(), faults.restored());
}
