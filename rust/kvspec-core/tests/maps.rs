//! Validation of foreign maps and application of borrowed columns, against slow and plain versions.

use kvspec_core::{Columns, Error, Layout, Op, SiteBounds, SiteCheck, SiteError, Sites, scatter};
use proptest::prelude::*;

const SHAPE: [usize; 6] = [2, 3, 2, 3, 300, 4];
const BITS: u8 = 16;

type Site = (u32, u16, u8, u16, u32, u16, u8);

fn site() -> impl Strategy<Value = Site> {
    (
        0..2_u32,
        0..3_u16,
        0..2_u8,
        0..3_u16,
        0..300_u32,
        0..4_u16,
        0..BITS,
    )
}

fn columns(sites: &[Site]) -> Columns {
    Columns {
        request: sites.iter().map(|s| s.0).collect(),
        layer: sites.iter().map(|s| s.1).collect(),
        kv: sites.iter().map(|s| s.2).collect(),
        head: sites.iter().map(|s| s.3).collect(),
        token: sites.iter().map(|s| s.4).collect(),
        elem: sites.iter().map(|s| s.5).collect(),
        bit: sites.iter().map(|s| s.6).collect(),
    }
}

fn bounds(step: bool) -> SiteBounds {
    SiteBounds {
        request: 0..2,
        step: step.then_some(0..1000),
        layer: 0..3,
        kv: 0..2,
        head: 0..3,
        token: 0..300,
        elem: 0..4,
        bit: 0..u64::from(BITS),
    }
}

/// Pushes all rows in pieces of the given size.
fn check(sites: &Sites<'_>, piece: usize) -> Result<u64, SiteError> {
    let mut check = SiteCheck::new(bounds(sites.step.is_some()));
    for start in (0..sites.len()).step_by(piece) {
        let rows = start..(start + piece).min(sites.len());
        check.push(&Sites {
            request: &sites.request[rows.clone()],
            step: sites.step.map(|step| &step[rows.clone()]),
            layer: &sites.layer[rows.clone()],
            kv: &sites.kv[rows.clone()],
            head: &sites.head[rows.clone()],
            token: &sites.token[rows.clone()],
            elem: &sites.elem[rows.clone()],
            bit: &sites.bit[rows],
        })?;
    }
    Ok(check.rows())
}

proptest! {
    /// Sorted, distinct sites pass; one swap or repetition anywhere is found at its row.
    #[test]
    fn order_is_checked_at_every_row(
        mut sites in prop::collection::vec(site(), 2..1200),
        at in any::<prop::sample::Index>(),
        piece in 1..700_usize,
        twice in any::<bool>(),
    ) {
        sites.sort_unstable();
        sites.dedup();
        prop_assume!(sites.len() > 1);
        let good = columns(&sites);
        prop_assert_eq!(check(&good.sites(), piece), Ok(sites.len() as u64));
        let row = 1 + at.index(sites.len() - 1);
        if twice {
            sites[row] = sites[row - 1];
        } else {
            sites.swap(row, row - 1);
        }
        let bad = columns(&sites);
        let row = row as u64;
        let expected = if twice { SiteError::Duplicate { row } } else { SiteError::Order { row } };
        prop_assert_eq!(check(&bad.sites(), piece), Err(expected));
    }

    /// One value too large, in any column and row, is found there.
    #[test]
    fn bounds_are_checked_at_every_row(
        mut sites in prop::collection::vec(site(), 1..600),
        at in any::<prop::sample::Index>(),
        column in 0..7_usize,
    ) {
        sites.sort_unstable();
        sites.dedup();
        let row = at.index(sites.len());
        let mut bad = columns(&sites);
        let (name, end) = match column {
            0 => { bad.request[row] = 2; ("request", 2) }
            1 => { bad.layer[row] = 3; ("layer", 3) }
            2 => { bad.kv[row] = 2; ("kv", 2) }
            3 => { bad.head[row] = 3; ("head", 3) }
            4 => { bad.token[row] = 300; ("token", 300) }
            5 => { bad.elem[row] = 4; ("elem", 4) }
            _ => { bad.bit[row] = BITS; ("bit", u64::from(BITS)) }
        };
        let expected = SiteError::Bounds { column: name, row: row as u64, value: end, start: 0, end };
        prop_assert_eq!(check(&bad.sites(), usize::MAX), Err(expected));
    }

    /// Every op on a layout with its axes backwards equals the plain loop.
    #[test]
    fn scatter_equals_the_plain_loop(
        mut sites in prop::collection::vec(site(), 0..1500),
        backwards in prop::array::uniform6(any::<bool>()),
        op in prop::sample::select(vec![Op::Flip, Op::Set0, Op::Set1]),
    ) {
        sites.sort_unstable();
        sites.dedup();
        let mut layout = Layout::contiguous(SHAPE).expect("small");
        for (axis, _) in backwards.iter().enumerate().filter(|(_, back)| **back) {
            layout.base += layout.strides[axis].unsigned_abs() * (SHAPE[axis] - 1);
            layout.strides[axis] = -layout.strides[axis];
        }
        let words: Vec<u16> = (0..SHAPE.iter().product::<usize>()).map(|i| (i * 40503) as u16).collect();
        let mut expected = words.clone();
        for s in &sites {
            let at = [s.0 as usize, s.1 as usize, s.2 as usize, s.3 as usize, s.4 as usize, s.5 as usize];
            let offset = at.iter().zip(layout.strides).map(|(&x, stride)| x.cast_signed() * stride).sum::<isize>();
            let word = &mut expected[layout.base.wrapping_add_signed(offset)];
            match op {
                Op::Flip => *word ^= 1 << s.6,
                Op::Set0 => *word &= !(1 << s.6),
                Op::Set1 => *word |= 1 << s.6,
            }
        }
        let mut got = words;
        scatter(&mut got, &columns(&sites).sites(), &layout, op).expect("inside");
        prop_assert!(got == expected);
    }
}

#[test]
fn reads_have_a_step_and_see_only_tokens_below_it() {
    let site = columns(&[(0, 0, 0, 0, 7, 0, 0)]);
    let with = |step: &'static [u32]| Sites {
        step: Some(step),
        ..site.sites()
    };
    assert_eq!(check(&with(&[8]), 9), Ok(1));
    assert_eq!(
        check(&with(&[7]), 9),
        Err(SiteError::Bounds {
            column: "token",
            row: 0,
            value: 7,
            start: 0,
            end: 7
        })
    );
    let mut write = SiteCheck::new(bounds(false));
    assert_eq!(
        write.push(&with(&[8])),
        Err(SiteError::Step { present: true })
    );
    let mut read = SiteCheck::new(bounds(true));
    assert_eq!(
        read.push(&site.sites()),
        Err(SiteError::Step { present: false })
    );
    assert_eq!((read.rows(), write.rows()), (0, 0));
}

#[test]
fn unequal_columns_and_disorder_change_nothing() {
    let good = columns(&[(0, 0, 0, 0, 1, 0, 0), (0, 0, 0, 0, 2, 0, 0)]);
    let layout = Layout::contiguous(SHAPE).expect("small");
    let mut words = vec![0_u8; SHAPE.iter().product()];
    let short = Sites {
        elem: &good.elem[1..],
        ..good.sites()
    };
    assert!(matches!(
        scatter(&mut words, &short, &layout, Op::Set1),
        Err(Error::Length { name: "elem", .. })
    ));
    let back = columns(&[(0, 0, 0, 0, 2, 0, 0), (0, 0, 0, 0, 1, 0, 0)]);
    assert_eq!(
        scatter(&mut words, &back.sites(), &layout, Op::Set1),
        Err(Error::Order { index: 1 })
    );
    assert!(words.iter().all(|&word| word == 0));
}
