//! Applying borrowed columns of a fault map to a cache, at memory speed.

use std::hint::black_box;

use crate::error::Error;
use crate::map::{Layout, Op, Word};
use crate::sites::{SiteError, Sites, extremes};

/// Words addressed at once. Their offsets stay in the first-level cache.
const CHUNK: usize = 256;

/// Applies `op` to every site of `cache`. A flip applied twice restores the cache.
///
/// Every column is checked before the first write: lengths, order, no site twice, bounds, the largest address.
///
/// # Errors
/// [`Error::Length`] and [`Error::Order`] for columns that are no map, [`Error::Index`] for a coordinate outside
/// `layout.shape` or a bit outside the word, [`Error::Layout`] or [`Error::Address`] if the layout reaches outside
/// the cache.
pub fn scatter<W: Word>(
    cache: &mut [W],
    sites: &Sites<'_>,
    layout: &Layout,
    op: Op,
) -> Result<(), Error> {
    if let Err(SiteError::Length {
        column: name,
        len,
        expected,
    }) = sites.check_lengths()
    {
        return Err(Error::Length {
            name,
            len,
            expected,
        });
    }
    let mut before = None;
    for (start, part) in parts(sites) {
        if let Some((index, _)) = part.disorder(before) {
            let index = start + index;
            return Err(Error::Order { index });
        }
        check_bounds::<W>(&part, layout)?;
        before = Some(part.key(part.len() - 1));
    }
    write_all(cache, sites, layout, op)
}

/// [`scatter`] for columns whose lengths and order are known to be right.
pub(crate) fn apply_ordered<W: Word>(
    cache: &mut [W],
    sites: &Sites<'_>,
    layout: &Layout,
    op: Op,
) -> Result<(), Error> {
    for (_, part) in parts(sites) {
        check_bounds::<W>(&part, layout)?;
    }
    write_all(cache, sites, layout, op)
}

/// The rows in parts that stay in the second-level cache while they are checked, each with its first row.
fn parts<'a>(sites: &Sites<'a>) -> impl Iterator<Item = (usize, Sites<'a>)> {
    const ROWS: usize = 1 << 13;
    let sites = *sites;
    (0..sites.len())
        .step_by(ROWS)
        .map(move |start| (start, sites.rows(start..(start + ROWS).min(sites.len()))))
}

/// Applies `op` to sites that are known to be inside the layout.
fn write_all<W: Word>(
    cache: &mut [W],
    sites: &Sites<'_>,
    layout: &Layout,
    op: Op,
) -> Result<(), Error> {
    if sites.is_empty() {
        return Ok(());
    }
    let strides = layout.checked_strides(cache.len())?;
    match op {
        Op::Flip => write(cache, sites, layout.base, &strides, |word, bit| word ^ bit),
        Op::Set0 => write(cache, sites, layout.base, &strides, |word, bit| word & !bit),
        Op::Set1 => write(cache, sites, layout.base, &strides, |word, bit| word | bit),
    }
    Ok(())
}

fn write<W: Word>(
    cache: &mut [W],
    sites: &Sites<'_>,
    base: usize,
    strides: &[usize; 6],
    change: impl Fn(W, W) -> W,
) {
    let mut offsets = [0; CHUNK];
    for start in (0..sites.len()).step_by(CHUNK) {
        let part = sites.rows(start..(start + CHUNK).min(sites.len()));
        let offsets = &mut offsets[..part.len()];
        address(offsets, &part, base, strides);
        // Loads first: they do not wait for each other, while a store keeps its place in the store queue until
        // its line has arrived. By the time of the writes the lines are here.
        black_box(
            offsets
                .iter()
                .fold(W::bit(0), |all, &offset| all | cache[offset]),
        );
        for (&offset, &bit) in offsets.iter().zip(part.bit) {
            cache[offset] = change(cache[offset], W::bit(bit));
        }
    }
}

/// The offset of each site. Bounds are proved; arithmetic wraps, since strides may be negative.
fn address(offsets: &mut [usize], sites: &Sites<'_>, base: usize, strides: &[usize; 6]) {
    let inner = |origin: usize, token: u32, elem: u16| {
        origin
            .wrapping_add((token as usize).wrapping_mul(strides[4]))
            .wrapping_add((elem as usize).wrapping_mul(strides[5]))
    };
    let outer = |i: usize| {
        let place = [
            sites.request[i] as usize,
            sites.layer[i] as usize,
            sites.kv[i] as usize,
            sites.head[i] as usize,
        ];
        place.iter().zip(strides).fold(base, |sum, (&x, &stride)| {
            sum.wrapping_add(x.wrapping_mul(stride))
        })
    };
    let place = |i: usize| (sites.key(i).0, sites.key(i).1);
    let rows = offsets.iter_mut().zip(sites.token.iter().zip(sites.elem));
    // In ascending order, equal ends mean that all between are equal.
    if place(0) == place(sites.len() - 1) {
        let origin = outer(0);
        rows.for_each(|(offset, (&token, &elem))| *offset = inner(origin, token, elem));
    } else {
        rows.enumerate()
            .for_each(|(i, (offset, (&token, &elem)))| *offset = inner(outer(i), token, elem));
    }
}

fn check_bounds<W: Word>(sites: &Sites<'_>, layout: &Layout) -> Result<(), Error> {
    fn largest<T: Copy + Into<u64> + Ord>(column: &[T]) -> u64 {
        extremes(column).map_or(0, |(_, most)| most.into())
    }
    let shape = layout.shape.map(|extent| extent as u64);
    let tops = [
        ("request", largest(sites.request), shape[0]),
        ("layer", largest(sites.layer), shape[1]),
        ("kv", largest(sites.kv), shape[2]),
        ("head", largest(sites.head), shape[3]),
        ("token", largest(sites.token), shape[4]),
        ("elem", largest(sites.elem), shape[5]),
        ("bit", largest(sites.bit), u64::from(W::BITS)),
    ];
    match tops.into_iter().find(|&(_, value, limit)| value >= limit) {
        Some((name, value, limit)) => Err(Error::Index { name, value, limit }),
        None => Ok(()),
    }
}
