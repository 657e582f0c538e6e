//! The golden cases of sampling.md: one file, read by every implementation.

use std::collections::BTreeMap;
use std::error::Error;
use std::num::NonZeroUsize;

use kvspec_core::{
    Block, FaultMap, FaultModel, Geometry, Grid, Key, Layout, Op, Page, Per, Sampler, Selector,
    StepRows, Target, TrialTable, Trials, derive_keys, philox, philox_lanes, read_key, scale_keys,
    thresholds,
};
use serde::Deserialize;
use serde::de::{Deserializer, Error as _};

type Result<T = ()> = std::result::Result<T, Box<dyn Error>>;

/// A 64-bit number as hexadecimal text.
#[derive(Clone, Copy)]
struct Hex(u64);

impl Hex {
    fn word(self) -> u32 {
        u32::try_from(self.0).expect("a 32-bit word")
    }
}

impl<'de> Deserialize<'de> for Hex {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        u64::from_str_radix(text.trim_start_matches("0x"), 16)
            .map(Self)
            .map_err(D::Error::custom)
    }
}

#[derive(Deserialize)]
struct Vectors {
    version: u32,
    philox4x32_10: Vec<KnownAnswer>,
    keys: Vec<Keys>,
    read_steps: Vec<ReadStep>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct KnownAnswer {
    counter: [Hex; 4],
    key: [Hex; 2],
    out: [Hex; 4],
}

#[derive(Deserialize)]
struct Keys {
    seed: Hex,
    experiment: Hex,
    trial: u32,
    fault: u32,
    #[serde(default)]
    target: String,
    write_key: [Hex; 2],
    read_master: [Hex; 2],
    request: u32,
    read_key_of_step: BTreeMap<String, [Hex; 2]>,
}

#[derive(Deserialize)]
struct ReadStep {
    prompt_len: u32,
    position: u32,
    step: u32,
}

#[derive(Deserialize)]
struct LayerShape {
    dim: u32,
    bits: u32,
    planes: u32,
    heads: u32,
    first_plane: u32,
}

#[derive(Deserialize)]
struct Model {
    rate: f64,
    per: String,
    mask: u32,
    burst_len: u32,
    page_tokens: u32,
    page_rate: f64,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    layer_shape: LayerShape,
    model: Model,
    op: String,
    #[serde(default)]
    target: String,
    seed: Hex,
    experiment: Hex,
    trial: u32,
    fault: u32,
    step: Option<u32>,
    key: [Hex; 2],
    request: u32,
    layer: u32,
    first_token: u32,
    tokens: u32,
    level: String,
    thresholds_head: Vec<Hex>,
    thresholds_len: usize,
    /// kv, head, token - `first_token`, element, bit
    flips: Vec<(u8, u16, u32, u16, u8)>,
}

impl Case {
    fn sampler(&self) -> Result<Sampler> {
        let (shape, model) = (&self.layer_shape, &self.model);
        let geometry = Geometry {
            head_size: shape.dim,
            bits: shape.bits,
            heads: shape.heads,
            planes: shape.planes,
            first_plane: shape.first_plane,
        };
        let page = (model.page_tokens > 0).then_some(Page {
            tokens: model.page_tokens,
            rate: model.page_rate,
        });
        let model = FaultModel {
            rate: model.rate,
            per: Per::parse(&model.per)?,
            mask: model.mask,
            burst_len: model.burst_len,
            page,
        };
        Ok(Sampler::new(&model, &geometry)?)
    }

    fn key(&self) -> Key {
        self.key.map(Hex::word)
    }

    fn grid(&self) -> Grid {
        let start = u64::from(self.first_token);
        Grid {
            request: self.request,
            layers: self.layer..self.layer + 1,
            tokens: start..start + u64::from(self.tokens),
            prompt_len: 0,
        }
    }

    fn map(&self) -> Result<FaultMap> {
        let sampler = self.sampler()?;
        Ok(sampler.enumerate(self.key(), &self.grid(), &Selector::default())?)
    }
}

/// The cases of sampling.md, and behind them those of sampling-scales.md.
fn vectors() -> Result<Vectors> {
    let read = |name: &str, cases: usize| -> Result<Vectors> {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/vectors/");
        let text = std::fs::read_to_string(format!("{folder}{name}.json"))?;
        let vectors: Vectors = serde_json::from_str(&text)?;
        assert_eq!(vectors.version, 2);
        assert_eq!(vectors.cases.len(), cases);
        Ok(vectors)
    };
    let mut vectors = read("sampling", 56)?;
    let scales = read("sampling_scales", 12)?;
    vectors.keys.extend(scales.keys);
    vectors.cases.extend(scales.cases);
    Ok(vectors)
}

/// Write key and read master.
fn keys_of(seed: Hex, experiment: Hex, trial: u32, fault: u32, target: &str) -> Result<(Key, Key)> {
    let keys = derive_keys(seed.0, experiment.0, trial, fault);
    let target = if target.is_empty() { "values" } else { target };
    Ok(match Target::parse(target)? {
        Target::Values => keys,
        Target::Scales => scale_keys(keys.0),
    })
}

#[test]
fn philox_gives_the_published_answers() -> Result {
    for answer in vectors()?.philox4x32_10 {
        let counter: Block = answer.counter.map(Hex::word);
        let key = answer.key.map(Hex::word);
        assert_eq!(philox(counter, key), answer.out.map(Hex::word));
        for stride in [0, 1, 1 << 16] {
            let lanes = [
                philox_lanes::<0>(counter, stride, key),
                philox_lanes::<1>(counter, stride, key),
                philox_lanes::<3>(counter, stride, key),
            ];
            for (word, lanes) in [0, 1, 3].into_iter().zip(lanes) {
                let mut at = counter;
                for lane in 0..kvspec_core::LANES {
                    assert_eq!(lanes.block(lane), philox(at, key));
                    at[word] = at[word].wrapping_add(stride);
                }
            }
        }
    }
    Ok(())
}

#[test]
fn keys_are_derived() -> Result {
    let vectors = vectors()?;
    for keys in &vectors.keys {
        let Keys { trial, fault, .. } = *keys;
        let (write, master) = keys_of(keys.seed, keys.experiment, trial, fault, &keys.target)?;
        assert_eq!(write, keys.write_key.map(Hex::word));
        assert_eq!(master, keys.read_master.map(Hex::word));
        for (step, key) in &keys.read_key_of_step {
            let derived = read_key(master, keys.request, step.parse()?);
            assert_eq!(derived, key.map(Hex::word));
        }
    }
    for case in &vectors.cases {
        let Case { trial, fault, .. } = *case;
        let (write, master) = keys_of(case.seed, case.experiment, trial, fault, &case.target)?;
        let key = match case.step {
            Some(step) => read_key(master, case.request, step),
            None => write,
        };
        assert_eq!(key, case.key(), "{}", case.name);
    }
    Ok(())
}

/// The rule is one line that engines apply to their own positions; the file pins it.
#[test]
fn a_prompt_is_one_read_event() -> Result {
    for event in vectors()?.read_steps {
        assert_eq!(event.step, (event.position + 1).max(event.prompt_len));
    }
    Ok(())
}

#[test]
fn levels_and_thresholds() -> Result {
    for case in vectors()?.cases {
        let sampler = case.sampler()?;
        assert_eq!(sampler.level().name(), case.level, "{}", case.name);
        let table = sampler.thresholds();
        assert_eq!(table.len(), case.thresholds_len, "{}", case.name);
        for (entry, expected) in table.iter().zip(&case.thresholds_head) {
            assert_eq!(*entry, expected.0, "{}", case.name);
        }
    }
    assert_eq!(thresholds(1, 0.5)?, [1 << 63]);
    assert_eq!(thresholds(3, 1.0)?, [0; 3]);
    assert!(thresholds(1 << 30, 0.0)?.is_empty());
    Ok(())
}

#[test]
fn enumerate_gives_every_flip_in_order() -> Result {
    for case in vectors()?.cases {
        let map = case.map()?;
        let c = map.columns();
        let flips: Vec<_> = (0..map.len())
            .map(|i| {
                assert_eq!(u32::from(c.layer[i]), case.layer);
                assert_eq!(c.request[i], case.request);
                (
                    c.kv[i],
                    c.head[i],
                    c.token[i] - case.first_token,
                    c.elem[i],
                    c.bit[i],
                )
            })
            .collect();
        assert_eq!(flips, case.flips, "{}", case.name);
        assert_eq!(FaultMap::new(c.clone())?, map);
        let count = case
            .sampler()?
            .count(case.key(), &case.grid(), &Selector::default())?;
        assert_eq!(count, case.flips.len() as u64, "{}", case.name);
    }
    Ok(())
}

/// A step of several rows: the case's tokens at once, and again one by one, on one and on three threads.
#[test]
fn write_step_gives_every_flip_merged() -> Result {
    for case in vectors()?.cases {
        let mut expected: BTreeMap<(u8, u16, u32, u16), u32> = BTreeMap::new();
        for &(kv, head, token, elem, bit) in &case.flips {
            *expected.entry((kv, head, token, elem)).or_default() |= 1 << bit;
        }
        let trials = Trials {
            sampler: vec![0],
            selector: vec![0],
            write_key: vec![case.key()],
            request: vec![case.request],
            prompt_len: vec![0],
            ..Trials::default()
        };
        let layers = case.layer + 3;
        let samplers = vec![case.sampler()?];
        let table = TrialTable::new(layers, samplers, vec![Selector::default()], &trials)?;

        let (mut row, mut start, mut count) = (vec![7], vec![case.first_token], vec![case.tokens]);
        for i in 0..case.tokens {
            row.push(8);
            start.push(case.first_token + i);
            count.push(1);
        }
        let entry = vec![0; row.len()];
        let step = StepRows {
            entry: &entry,
            row: &row,
            start: &start,
            count: &count,
        };
        let mut previous = None;
        for threads in [1, 3].map(NonZeroUsize::new) {
            let faults = table.write_step_on(&step, threads.ok_or("threads")?)?;
            let columns = faults.columns(case.layer)?;
            for batch_row in [7, 8] {
                let merged: BTreeMap<_, _> = (0..columns.row.len())
                    .filter(|&i| columns.row[i] == batch_row)
                    .map(|i| {
                        let token = columns.token[i] - case.first_token;
                        (
                            (columns.kv[i], columns.head[i], token, columns.elem[i]),
                            columns.mask[i],
                        )
                    })
                    .collect();
                assert_eq!(merged, expected, "{} row {batch_row}", case.name);
            }
            assert_eq!(columns.row.len(), 2 * expected.len(), "{}", case.name);
            assert_eq!(faults.layer_len(case.layer)?, columns.row.len());
            if let Some(previous) = previous.replace(columns.clone()) {
                assert_eq!(columns, previous, "{}", case.name);
            }
        }
    }
    Ok(())
}

/// Every op touches its sites and nothing else.
#[test]
fn apply_touches_the_sites_alone() -> Result {
    for case in vectors()?.cases {
        if case.first_token.checked_add(case.tokens).is_none() {
            continue;
        }
        let shape = [
            case.request as usize + 1,
            1,
            2,
            case.layer_shape.heads as usize,
            (case.first_token + case.tokens) as usize,
            case.layer_shape.dim as usize,
        ];
        let mut layout = Layout::contiguous(shape).ok_or("size")?;
        // one request and one layer share the cache of this test
        layout.strides[0] = 0;
        layout.shape[1] = case.layer as usize + 1;
        layout.strides[1] = 0;
        let words = shape[2..].iter().product();
        let (op, background) = match case.op.as_str() {
            "flip" => (Op::Flip, 0x5A5A_5A5A_u32),
            "set0" => (Op::Set0, u32::MAX),
            "set1" => (Op::Set1, 0),
            other => return Err(other.into()),
        };
        let mut cache = vec![background; words];
        case.map()?.apply(&mut cache, &layout, op)?;
        let mut expected = vec![background; words];
        for &(kv, head, token, elem, bit) in &case.flips {
            let at = [
                kv.into(),
                head.into(),
                (token + case.first_token) as usize,
                elem.into(),
            ];
            let at: usize = at
                .iter()
                .zip(&layout.strides[2..])
                .map(|(x, s)| x * s.cast_unsigned())
                .sum();
            expected[at] ^= 1 << bit;
        }
        assert!(cache == expected, "{}", case.name);
    }
    Ok(())
}
