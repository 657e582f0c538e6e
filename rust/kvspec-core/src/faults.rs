//! Faults of one layer in one step, row by row.

use crate::fault::Geometry;
use crate::map::Op;
use crate::sample::Hit;
use crate::target::Target;

/// The faults of one layer in one step: elements, grouped by the cache row they lie in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LayerFaults {
    rows: Vec<RowFaults>,
    elem: Vec<u16>,
    mask: Vec<u32>,
}

/// The faults of one cache row. Its elements end at `end` and start where those of the row before it end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RowFaults {
    /// Index into the columns of the step.
    pub(crate) index: u32,
    /// Row of the block table.
    pub(crate) row: u32,
    pub(crate) token: u32,
    pub(crate) kv: u8,
    pub(crate) head: u16,
    pub(crate) op: Op,
    /// Codes, or the scale: the one element of the row then.
    pub(crate) target: Target,
    end: usize,
}

impl RowFaults {
    /// The row of an owner at a place, without elements yet.
    pub(crate) fn new(owner: Owner, token: u32, kv: u8, head: u16) -> Self {
        let Owner {
            index,
            row,
            op,
            target,
        } = owner;
        Self {
            index,
            row,
            token,
            kv,
            head,
            op,
            target,
            end: 0,
        }
    }
}

/// Whose faults are pushed: index into the columns of the step, row of the block table, op and target.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Owner {
    pub(crate) index: u32,
    pub(crate) row: u32,
    pub(crate) op: Op,
    pub(crate) target: Target,
}

impl LayerFaults {
    /// Appends the hits of one token, ascending by row.
    pub(crate) fn push(&mut self, owner: Owner, token: u32, geometry: &Geometry, hits: &[Hit]) {
        for hits in hits.chunk_by(|a, b| a.row == b.row) {
            let (kv, head) = geometry.plane_head(hits[0].row);
            let place = RowFaults::new(owner, token, kv, head);
            self.push_row(place, hits.iter().map(|hit| (hit.elem, hit.mask)));
        }
    }

    /// Appends the elements of one cache row, with the bits that change in each.
    pub(crate) fn push_row(&mut self, row: RowFaults, bits: impl Iterator<Item = (u16, u32)>) {
        for (elem, mask) in bits {
            self.elem.push(elem);
            self.mask.push(mask);
        }
        let end = self.elem.len();
        self.rows.push(RowFaults { end, ..row });
    }

    /// Number of faulty elements.
    pub(crate) fn len(&self) -> usize {
        self.elem.len()
    }

    /// Each cache row with its elements and masks.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&RowFaults, &[u16], &[u32])> {
        let mut start = 0;
        self.rows.iter().map(move |row| {
            let range = start..row.end;
            start = row.end;
            (row, &self.elem[range.clone()], &self.mask[range])
        })
    }
}
