//! The faults of one step, and their injection into the cache of a layer.

use crate::error::Error;
use crate::fault::Geometry;
use crate::format::Format;
use crate::map::Op;
use crate::sample::Hit;

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
    index: u32,
    /// Row of the block table.
    row: u32,
    token: u32,
    kv: u8,
    head: u16,
    op: Op,
    end: usize,
}

impl RowFaults {
    /// The row at a place, without elements yet.
    pub(crate) fn new(index: u32, row: u32, token: u32, kv: u8, head: u16, op: Op) -> Self {
        Self {
            index,
            row,
            token,
            kv,
            head,
            op,
            end: 0,
        }
    }
}

/// Whose faults are pushed: index into the columns of the step, row of the block table, op.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Owner {
    pub(crate) index: u32,
    pub(crate) row: u32,
    pub(crate) op: Op,
}

impl LayerFaults {
    /// Appends the hits of one token, ascending by row.
    pub(crate) fn push(&mut self, owner: Owner, token: u32, geometry: &Geometry, hits: &[Hit]) {
        let Owner { index, row, op } = owner;
        for hits in hits.chunk_by(|a, b| a.row == b.row) {
            let (kv, head) = geometry.plane_head(hits[0].row);
            let place = RowFaults::new(index, row, token, kv, head, op);
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

    /// Each cache row with its elements and masks.
    fn iter(&self) -> impl Iterator<Item = (&RowFaults, &[u16], &[u32])> {
        let mut start = 0;
        self.rows.iter().map(move |row| {
            let range = start..row.end;
            start = row.end;
            (row, &self.elem[range.clone()], &self.mask[range])
        })
    }
}

/// How the engine lays out the cache of a layer.
#[derive(Clone, Copy, Debug)]
pub struct CacheTables<'a> {
    /// Block of each run of T tokens, `[rows, blocks_per_row]`, row-major.
    pub block_table: &'a [i32],
    /// Width of the block table.
    pub blocks_per_row: usize,
    /// Offset of each element inside its block, `[2, T, H, D]`, row-major.
    pub offsets: &'a [i64],
    /// `[2, T, H, D]`: planes, tokens of a block, heads, elements.
    pub offsets_shape: [usize; 4],
    /// Words from one block to the next.
    pub block_stride: usize,
    /// Scale of each cache row as float32 bits, `[blocks, 2, T, H]`, row-major; for scaled formats only.
    pub scales: &'a [u32],
}

impl CacheTables<'_> {
    fn check(&self) -> Result<(), Error> {
        let sizes = self.offsets_shape;
        let expected = sizes
            .iter()
            .try_fold(1_usize, |n, &size| n.checked_mul(size));
        match expected {
            Some(expected) if expected != self.offsets.len() => Err(Error::Length {
                name: "offsets",
                len: self.offsets.len(),
                expected,
            }),
            None => Err(Error::Layout { name: "offsets" }),
            Some(_) => Ok(()),
        }
    }

    /// Index of the block that holds a token of a row.
    fn block(&self, row: &RowFaults) -> Result<u64, Error> {
        let tokens = self.offsets_shape[1];
        let block = u64::from(row.token)
            .checked_div(tokens as u64)
            .ok_or(Error::Layout { name: "offsets" })?;
        index_below("block of a token", block, self.blocks_per_row)?;
        let id = (row.row as usize)
            .checked_mul(self.blocks_per_row)
            .and_then(|first| self.block_table.get(first.checked_add(block as usize)?))
            .ok_or(Error::Index {
                name: "row",
                value: row.row.into(),
                limit: (self.block_table.len() / self.blocks_per_row) as u64,
            })?;
        u64::try_from(*id).map_err(|_| Error::Negative {
            name: "block",
            value: i64::from(*id),
        })
    }

    /// Index of a cache row among those of its block.
    fn row_in_block(&self, row: &RowFaults) -> Result<usize, Error> {
        let [planes, tokens, heads, _] = self.offsets_shape;
        index_below("kv", row.kv.into(), planes)?;
        index_below("head", row.head.into(), heads)?;
        // `check` has proved that the product of the extents does not overflow
        let slot = row.token as usize % tokens;
        Ok((row.kv as usize * tokens + slot) * heads + row.head as usize)
    }

    /// Scale of a cache row; 0 where there are none.
    fn scale(&self, row: &RowFaults) -> Result<u32, Error> {
        if self.scales.is_empty() {
            return Ok(0);
        }
        let block = self.block(row)?;
        let rows = self.offsets_shape[..3].iter().product::<usize>() as u64;
        let index = block
            .saturating_mul(rows)
            .saturating_add(self.row_in_block(row)? as u64);
        let limit = self.scales.len();
        index_below("scale of a row", index, limit)?;
        Ok(self.scales[index as usize])
    }

    /// Offsets of the elements of a row inside its block.
    fn row(&self, row: &RowFaults) -> Result<&[i64], Error> {
        let size = self.offsets_shape[3];
        let first = self.row_in_block(row)? * size;
        Ok(&self.offsets[first..first + size])
    }

    /// Appends the address of each element of a cache row.
    fn resolve(
        &self,
        row: &RowFaults,
        elems: &[u16],
        words: usize,
        addresses: &mut Vec<usize>,
    ) -> Result<(), Error> {
        let block = self
            .block(row)?
            .checked_mul(self.block_stride as u64)
            .ok_or(Error::Layout { name: "block" })?;
        let offsets = self.row(row)?;
        for &elem in elems {
            let offset = *offsets.get(elem as usize).ok_or(Error::Index {
                name: "elem",
                value: elem.into(),
                limit: offsets.len() as u64,
            })?;
            let offset = u64::try_from(offset).map_err(|_| Error::Negative {
                name: "offset",
                value: offset,
            })?;
            let address = block.saturating_add(offset);
            if address >= words as u64 {
                return Err(Error::Address { address, words });
            }
            addresses.push(address as usize);
        }
        Ok(())
    }
}

fn index_below(name: &'static str, value: u64, limit: usize) -> Result<(), Error> {
    let limit = limit as u64;
    if value >= limit {
        return Err(Error::Index { name, value, limit });
    }
    Ok(())
}

/// The faults of one step, grouped by layer and merged into one mask per element, with counts of what they did.
///
/// All counts are of bits, by index into the step's columns, summed over the layers injected so far.
#[derive(Clone, Debug)]
pub struct StepFaults {
    layers: u32,
    bits: Option<u32>,
    /// Shares of the step's rows in order; in each, the faults of every layer.
    parts: Vec<Vec<LayerFaults>>,
    /// Of reads: for each row, the tokens below this were shown by an earlier forward of the same event.
    first_shown: Option<Vec<u32>>,
    landed: Vec<u64>,
    changed: Vec<u64>,
    exposed: Vec<u64>,
    restored: Vec<u64>,
    addresses: Vec<usize>,
    /// What a transient injection has overwritten, in order.
    saved: Vec<Saved>,
    /// Layer that is injected and not restored.
    open: Option<u32>,
}

/// A word before a fault.
#[derive(Clone, Copy, Debug)]
struct Saved {
    /// Index into the columns of the step.
    index: u32,
    word: u32,
    scale: u32,
    address: usize,
}

/// Merged faults of one layer as columns of equal length; a row is one element.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StepColumns {
    /// Row of the block table.
    pub row: Vec<u32>,
    /// 0 for K, 1 for V.
    pub kv: Vec<u8>,
    /// Global KV head.
    pub head: Vec<u16>,
    /// Logical position in the request.
    pub token: Vec<u32>,
    /// Element of the row.
    pub elem: Vec<u16>,
    /// Bits of the stored element to flip.
    pub mask: Vec<u32>,
}

impl StepFaults {
    /// Faults of writes, which stay, or of reads, which are restored: those come with `first_shown`.
    pub(crate) fn new(
        layers: u32,
        bits: Option<u32>,
        parts: Vec<Vec<LayerFaults>>,
        entries: usize,
        first_shown: Option<Vec<u32>>,
    ) -> Self {
        let zeros = || vec![0; entries];
        Self {
            layers,
            bits,
            parts,
            first_shown,
            landed: zeros(),
            changed: zeros(),
            exposed: zeros(),
            restored: zeros(),
            addresses: Vec::new(),
            saved: Vec::new(),
            open: None,
        }
    }

    /// Number of faulty elements in all layers, entries counted apart.
    #[must_use]
    pub fn len(&self) -> usize {
        self.parts
            .iter()
            .flatten()
            .map(|layer| layer.elem.len())
            .sum()
    }

    /// Whether the step has no fault.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of faulty elements of one layer.
    ///
    /// # Errors
    /// [`Error::Index`] for a layer beyond the table's.
    pub fn layer_len(&self, layer: u32) -> Result<usize, Error> {
        Ok(self.layer(layer)?.map(|faults| faults.elem.len()).sum())
    }

    /// The faults of one layer, in order of step entry, token, plane, head and element.
    ///
    /// # Errors
    /// [`Error::Index`] for a layer beyond the table's.
    pub fn columns(&self, layer: u32) -> Result<StepColumns, Error> {
        let mut columns = StepColumns::default();
        for (row, elems, masks) in self.layer(layer)?.flat_map(LayerFaults::iter) {
            columns.elem.extend_from_slice(elems);
            columns.mask.extend_from_slice(masks);
            let end = columns.elem.len();
            columns.row.resize(end, row.row);
            columns.kv.resize(end, row.kv);
            columns.head.resize(end, row.head);
            columns.token.resize(end, row.token);
        }
        Ok(columns)
    }

    /// Sites in their faulty state after injection: bits that a flip inverted, bits of a stuck-at that read as
    /// stuck, and any bit beside the sites that changed, which makes the count wrong.
    ///
    /// A site of a read event counts once, in the first forward that shows it.
    #[must_use]
    pub fn landed(&self) -> &[u64] {
        &self.landed
    }

    /// Bits that differ before and after, counted like [`Self::landed`]; less than those only for stuck-ats.
    #[must_use]
    pub fn changed(&self) -> &[u64] {
        &self.changed
    }

    /// Bits that reads changed, in every forward. Writes expose nothing.
    #[must_use]
    pub fn exposed(&self) -> &[u64] {
        &self.exposed
    }

    /// Bits that [`Self::restore`] changed back.
    #[must_use]
    pub fn restored(&self) -> &[u64] {
        &self.restored
    }

    /// Injects the faults of one layer into its cache, float32 words that hold values of `format`.
    ///
    /// Each word is encoded, its code changed, decoded, written and read back. Faults of reads must be taken back
    /// by [`Self::restore`] before the next layer.
    ///
    /// # Errors
    /// [`Error::Index`], [`Error::Length`], [`Error::Negative`] or [`Error::Layout`] if the tables do not cover
    /// a fault, [`Error::Address`] if one lies outside `words`, [`Error::Width`] if the format differs from the
    /// samplers', [`Error::NoScales`] if it needs scales, [`Error::NotRestored`]. Everything is checked before the
    /// first write.
    pub fn inject(
        &mut self,
        layer: u32,
        words: &mut [u32],
        tables: &CacheTables<'_>,
        format: Format,
    ) -> Result<(), Error> {
        if let Some(layer) = self.open {
            return Err(Error::NotRestored { layer });
        }
        if self.layer_len(layer)? == 0 {
            return Ok(());
        }
        if let Some(bits) = self.bits
            && bits != format.bits()
        {
            let expected = format.bits();
            return Err(Error::Width { bits, expected });
        }
        tables.check()?;
        if format.scaled() && tables.scales.is_empty() {
            let format = format.name();
            return Err(Error::NoScales { format });
        }
        self.addresses.clear();
        for part in &self.parts {
            for (row, elems, _) in part[layer as usize].iter() {
                tables.resolve(row, elems, words.len(), &mut self.addresses)?;
                tables.scale(row)?;
            }
        }
        let mut rest = &self.addresses[..];
        for (row, _, masks) in self.parts.iter().flat_map(|p| p[layer as usize].iter()) {
            let (here, after) = rest.split_at(masks.len());
            rest = after;
            let (index, scale) = (row.index as usize, tables.scale(row)?);
            if self.first_shown.is_some() {
                self.saved.extend(here.iter().map(|&address| Saved {
                    index: row.index,
                    word: words[address],
                    scale,
                    address,
                }));
            }
            let done = apply(words, here, masks, row.op, format, scale);
            if let Some(first_shown) = &self.first_shown {
                self.exposed[index] += done.changed;
                if row.token < first_shown[index] {
                    continue;
                }
            }
            self.landed[index] += done.landed;
            self.changed[index] += done.changed;
        }
        self.open = self.first_shown.is_some().then_some(layer);
        Ok(())
    }

    /// Puts back what the last injection of reads found, word for word. Without one it does nothing.
    ///
    /// # Errors
    /// [`Error::Address`] if `words` is shorter than the cache that was injected. Nothing is written then.
    pub fn restore(&mut self, words: &mut [u32], format: Format) -> Result<(), Error> {
        if let Some(beyond) = self.saved.iter().find(|saved| saved.address >= words.len()) {
            let (address, words) = (beyond.address as u64, words.len());
            return Err(Error::Address { address, words });
        }
        // Backwards, so that of two faults in one word the first has the last say.
        for saved in self.saved.drain(..).rev() {
            let faulty = format.encode(words[saved.address], saved.scale);
            words[saved.address] = saved.word;
            let back = faulty ^ format.encode(words[saved.address], saved.scale);
            self.restored[saved.index as usize] += u64::from(back.count_ones());
        }
        self.open = None;
        Ok(())
    }

    fn layer(&self, layer: u32) -> Result<impl Iterator<Item = &LayerFaults>, Error> {
        index_below("layer", layer.into(), self.layers as usize)?;
        Ok(self.parts.iter().map(move |part| &part[layer as usize]))
    }
}

/// What an injection did, in bits.
#[derive(Clone, Copy, Debug, Default)]
struct Applied {
    landed: u64,
    changed: u64,
}

/// Applies `op` to the masks in the codes of the words at `addresses`. Landed are bits that read back as the op
/// wants them and, so that a stray change is seen, every other bit that changed.
fn apply(
    words: &mut [u32],
    addresses: &[usize],
    masks: &[u32],
    op: Op,
    format: Format,
    scale: u32,
) -> Applied {
    let mut done = Applied::default();
    for (&address, &mask) in addresses.iter().zip(masks) {
        let before = format.encode(words[address], scale);
        words[address] = format.decode(op.apply(before, mask), scale);
        let after = format.encode(words[address], scale);
        let changed = before ^ after;
        let hit = match op {
            Op::Flip => changed,
            Op::Set0 => !after,
            Op::Set1 => after,
        };
        let landed = hit & mask | changed & !mask;
        done.landed += u64::from(landed.count_ones());
        done.changed += u64::from(changed.count_ones());
    }
    done
}
