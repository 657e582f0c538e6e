//! Speed of sampling, application and injection: `cargo run --release --example bench_sampling`.
//!
//! Best of several repetitions, one row per rate. `enumerate`, `count` and `apply` cover 4000 tokens of one
//! request; `step` and `inject` one decode step of 256 rows, sampled on all cores and on one.

#![allow(clippy::print_stdout)]

use std::hint::black_box;
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use kvspec_core::{
    CacheTables, Error, FaultModel, Format, Geometry, Grid, LayerCache, Layout, Op, Per, Sampler,
    Selector, StepRows, TrialTable, Trials,
};

const TOKENS: u32 = 4000;
const ROWS: u32 = 256;
const BLOCK: usize = 16;

struct Shape {
    name: &'static str,
    layers: u32,
    heads: u32,
    head_size: u32,
}

const SHAPES: [Shape; 2] = [
    Shape {
        name: "smol",
        layers: 30,
        heads: 3,
        head_size: 64,
    },
    Shape {
        name: "llama8b",
        layers: 32,
        heads: 8,
        head_size: 128,
    },
];

fn best<T>(mut work: impl FnMut() -> T) -> Duration {
    let mut best = Duration::MAX;
    let begin = Instant::now();
    for repetition in 0..200 {
        let start = Instant::now();
        black_box(work());
        best = best.min(start.elapsed());
        if repetition >= 2 && begin.elapsed() > Duration::from_millis(1500) {
            break;
        }
    }
    best
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn main() -> Result<(), Error> {
    for shape in SHAPES {
        println!(
            "{}: {} x 2 x {} x {}",
            shape.name, shape.layers, shape.heads, shape.head_size
        );
        println!(
            "rate      level      flips | enumerate ms   Mflips/s | count ms | apply ms   Mflips/s | step ms  1 thread | inject ms   Melem/s"
        );
        for rate in [1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0] {
            measure(&shape, rate)?;
        }
    }
    Ok(())
}

fn measure(shape: &Shape, rate: f64) -> Result<(), Error> {
    let geometry = Geometry {
        head_size: shape.head_size,
        bits: 16,
        heads: shape.heads,
        planes: 2,
        first_plane: 0,
    };
    let model = FaultModel {
        rate,
        per: Per::Bit,
        mask: 0xFFFF,
        burst_len: 1,
        page: None,
    };
    let sampler = Sampler::new(&model, &geometry)?;
    let selector = Selector::default();
    // a slice at high rates, so that the columns fit into memory
    let tokens = if rate > 5e-3 { TOKENS / 40 } else { TOKENS };
    let grid = Grid {
        request: 1,
        layers: 0..shape.layers,
        tokens: 0..tokens.into(),
        prompt_len: 0,
    };
    let key = [0x1234_5678, 0x9ABC_DEF0];
    let map = sampler.enumerate(key, &grid, &selector)?;
    let flips = map.len() as f64 / 1e6;
    let enumerate = best(|| sampler.enumerate(key, &grid, &selector));
    let count = best(|| sampler.count(key, &grid, &selector));

    let extents = [2, shape.layers, 2, shape.heads, tokens, shape.head_size];
    let extents = extents.map(|x| x as usize);
    let mut layout = Layout::contiguous(extents).ok_or(Error::Layout { name: "cache" })?;
    layout.strides[0] = 0;
    let mut cache = vec![0_u16; extents[1..].iter().product()];
    let apply = best(|| map.apply(&mut cache, &layout, Op::Flip));
    drop((map, cache));

    let (step, alone, inject, elements) = step(shape, sampler)?;
    println!(
        "{rate:<9} {:<6} {:>9.3} M | {:>10.3} {:>10.1} | {:>8.3} | {:>8.3} {:>10.1} | {:>7.3} {:>9.3} | {:>9.3} {:>9.1}",
        level(rate, &geometry),
        flips,
        ms(enumerate),
        flips / enumerate.as_secs_f64(),
        ms(count),
        ms(apply),
        flips / apply.as_secs_f64(),
        ms(step),
        ms(alone),
        ms(inject),
        elements / 1e6 / inject.as_secs_f64(),
    );
    Ok(())
}

fn level(rate: f64, geometry: &Geometry) -> &'static str {
    let model = FaultModel {
        rate,
        per: Per::Bit,
        mask: 0xFFFF,
        burst_len: 1,
        page: None,
    };
    Sampler::new(&model, geometry).map_or("", |sampler| sampler.level().name())
}

/// Times of a decode step on all cores and on one, of its injection, and its number of elements.
fn step(shape: &Shape, sampler: Sampler) -> Result<(Duration, Duration, Duration, f64), Error> {
    let entries = ROWS as usize;
    let trials = Trials {
        sampler: vec![0; entries],
        selector: vec![0; entries],
        write_key: (0..ROWS).map(|i| [i, 77]).collect(),
        request: (0..ROWS).collect(),
        prompt_len: vec![10; entries],
        ..Trials::default()
    };
    let table = TrialTable::new(
        shape.layers,
        vec![sampler],
        vec![Selector::default()],
        &trials,
    )?;
    let rows: Vec<u32> = (0..ROWS).collect();
    let step = StepRows {
        entry: &rows,
        row: &rows,
        start: &vec![37; entries],
        count: &vec![1; entries],
    };
    let all = best(|| table.write_step(&step));
    let alone = best(|| table.write_step_on(&step, NonZeroUsize::MIN));

    let mut faults = table.write_step(&step)?;
    let block = 2 * BLOCK * (shape.heads * shape.head_size) as usize;
    let offsets: Vec<i64> = (0..).take(block).collect();
    let blocks: Vec<i32> = (0..).take(3 * entries).collect();
    let tables = CacheTables {
        block_table: &blocks,
        blocks_per_row: 3,
        offsets: &offsets,
        offsets_shape: [2, BLOCK, shape.heads as usize, shape.head_size as usize],
        block_stride: block,
    };
    let mut words = vec![0x3F80_0000; block * blocks.len()];
    let elements = faults.len() as f64;
    let inject = best(|| {
        (0..shape.layers).try_for_each(|layer| {
            faults.inject(
                layer,
                &mut LayerCache::plain(&mut words),
                &tables,
                Format::Bf16,
            )
        })
    });
    Ok((all, alone, inject, elements))
}
