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
    if let Some((index, _)) = sites.disorder(None) {
        return Err(Error::Order { index });
    }
    apply_ordered(cache, sites, layout, op)
}

/// [`scatter`] for columns whose lengths and order are known to be right.
pub(crate) fn apply_ordered<W: Word>(
    cache: &mut [W],
    sites: &Sites<'_>,
    layout: &Layout,
    op: Op,
) -> Result<(), Error> {
    if sites.is_empty() {
        return Ok(());
    }
    check_bounds::<W>(sites, layout)?;
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
        let end = (start + CHUNK).min(sites.len());
        let offsets = &mut offsets[..end - start];
        address(offsets, sites, start, base, strides);
        // Loads first: they do not wait for each other, while a store keeps its place in the store queue until
        // its line has arrived. By the time of the writes the lines are here.
        black_box(
            offsets
                .iter()
                .fold(W::bit(0), |all, &offset| all | cache[offset]),
        );
        for (&offset, &bit) in offsets.iter().zip(&sites.bit[start..end]) {
            cache[offset] = change(cache[offset], W::bit(bit));
        }
    }
}

/// Offsets of the rows from `start` on. Bounds are proved; arithmetic wraps, since strides may be negative.
fn address(
    offsets: &mut [usize],
    sites: &Sites<'_>,
    start: usize,
    base: usize,
    strides: &[usize; 6],
) {
    let end = start + offsets.len();
    let mut first = start;
    while first < end {
        let place = |i: usize| (sites.key(i).0, sites.key(i).1);
        let here = place(first);
        // In ascending order, equal ends mean that all between are equal; a change is looked for by bisection.
        let last = if place(end - 1) == here {
            end
        } else {
            let (mut same, mut other) = (first, end - 1);
            while other - same > 1 {
                let middle = usize::midpoint(same, other);
                if place(middle) == here {
                    same = middle;
                } else {
                    other = middle;
                }
            }
            other
        };
        let origin = [
            sites.request[first] as usize,
            sites.layer[first] as usize,
            sites.kv[first] as usize,
            sites.head[first] as usize,
        ]
        .iter()
        .zip(strides)
        .fold(base, |sum, (&x, &stride)| {
            sum.wrapping_add(x.wrapping_mul(stride))
        });
        let places = sites.token[first..last]
            .iter()
            .zip(&sites.elem[first..last]);
        for (offset, (&token, &elem)) in offsets[first - start..last - start].iter_mut().zip(places)
        {
            *offset = origin
                .wrapping_add((token as usize).wrapping_mul(strides[4]))
                .wrapping_add((elem as usize).wrapping_mul(strides[5]));
        }
        first = last;
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
