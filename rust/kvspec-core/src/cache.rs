//! The cache of a layer, as the engine lays it out.

use crate::error::Error;
use crate::faults::RowFaults;
use crate::format::Format;
use crate::target::Target;

/// What a layer's cache holds.
///
/// Of scaled formats, codes and scales are the state, as on a device, and the words follow from them: word = code *
/// scale. So a fault of one never moves a fault of the other, whatever their order.
#[derive(Debug)]
pub struct LayerCache<'a> {
    /// What attention reads: float32 as bits, values of the storage format.
    pub words: &'a mut [u32],
    /// Of scaled formats: code of each element, `[blocks, 2, T, H, D]`, row-major. Empty for the others.
    pub codes: &'a mut [u8],
    /// Of scaled formats: scale of each row as float32 bits, `[blocks, 2, T, H]`, row-major. Empty for the others.
    pub scales: &'a mut [u32],
}

impl<'a> LayerCache<'a> {
    /// A cache whose format has no scales.
    pub fn plain(words: &'a mut [u32]) -> Self {
        Self {
            words,
            codes: &mut [],
            scales: &mut [],
        }
    }

    /// The code or the scale at a place that [`CacheTables::resolve`] has checked.
    pub(crate) fn get(&self, place: &Place, format: Format) -> u32 {
        match *place {
            Place::Word { address } => format.encode(self.words[address], 0),
            Place::Code { code, .. } => self.codes[code].into(),
            Place::Scale { row, .. } => self.scales[row],
        }
    }

    /// Stores a code or a scale, and every word that follows from it. `row_words` are those of [`Place::Scale`].
    pub(crate) fn set(&mut self, place: &Place, value: u32, format: Format, row_words: &[usize]) {
        match *place {
            Place::Word { address } => self.words[address] = format.decode(value, 0),
            Place::Code { row, code, address } => {
                self.codes[code] = value as u8;
                self.words[address] = format.decode(value, self.scales[row]);
            }
            Place::Scale { row, first, size } => {
                self.scales[row] = value;
                let codes = &self.codes[row * size..][..size];
                for (&address, &code) in row_words[first..][..size].iter().zip(codes) {
                    self.words[address] = format.decode(code.into(), value);
                }
            }
        }
    }

    /// Fails if a place lies outside.
    pub(crate) fn check(&self, place: &Place, row_words: &[usize]) -> Result<(), Error> {
        let address = match *place {
            Place::Word { address } => address,
            Place::Code { row, code, address } => {
                index_below("code of a row", code as u64, self.codes.len())?;
                index_below("scale of a row", row as u64, self.scales.len())?;
                address
            }
            Place::Scale { row, first, size } => {
                let code = (row as u64).saturating_mul(size as u64) + size as u64;
                index_below("code of a row", code.saturating_sub(1), self.codes.len())?;
                index_below("scale of a row", row as u64, self.scales.len())?;
                row_words[first..][..size]
                    .iter()
                    .copied()
                    .max()
                    .unwrap_or(0)
            }
        };
        let (address, words) = (address as u64, self.words.len());
        if address >= words as u64 {
            return Err(Error::Address { address, words });
        }
        Ok(())
    }
}

/// Where a fault is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Place {
    /// An element of a format without scales.
    Word { address: usize },
    /// An element of a scaled format: its row, its code and its word.
    Code {
        row: usize,
        code: usize,
        address: usize,
    },
    /// The scale of a row, whose words have `size` addresses from `first` on in a list.
    Scale {
        row: usize,
        first: usize,
        size: usize,
    },
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
}

impl CacheTables<'_> {
    pub(crate) fn check(&self) -> Result<(), Error> {
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

    /// Appends the place of each element `elems` of a cache row, or of its scale; the words of a row whose scale
    /// changes go to `row_words`.
    pub(crate) fn resolve(
        &self,
        row: &RowFaults,
        elems: &[u16],
        scaled: bool,
        places: &mut Vec<Place>,
        row_words: &mut Vec<usize>,
    ) -> Result<(), Error> {
        let [.., size] = self.offsets_shape;
        let (block, inside) = (self.block(row)?, self.row_in_block(row)?);
        let rows = (self.offsets.len() / size.max(1)) as u64;
        let base = block
            .checked_mul(self.block_stride as u64)
            .ok_or(Error::Layout { name: "block" })?;
        let offsets = &self.offsets[inside * size..][..size];
        let address = |elem: usize| -> Result<usize, Error> {
            let offset = *offsets.get(elem).ok_or(Error::Index {
                name: "elem",
                value: elem as u64,
                limit: offsets.len() as u64,
            })?;
            let offset = u64::try_from(offset).map_err(|_| Error::Negative {
                name: "offset",
                value: offset,
            })?;
            Ok(usize::try_from(base.saturating_add(offset)).unwrap_or(usize::MAX))
        };
        let row_index = block.saturating_mul(rows).saturating_add(inside as u64);
        let index = usize::try_from(row_index).unwrap_or(usize::MAX);
        match row.target {
            Target::Values => {
                for &elem in elems {
                    let (elem, address) = (elem as usize, address(elem as usize)?);
                    places.push(if scaled {
                        let code = index.saturating_mul(size).saturating_add(elem);
                        Place::Code {
                            row: index,
                            code,
                            address,
                        }
                    } else {
                        Place::Word { address }
                    });
                }
            }
            Target::Scales => {
                let first = row_words.len();
                for elem in 0..size {
                    row_words.push(address(elem)?);
                }
                // one element, so one place
                places.extend(elems.iter().map(|_| Place::Scale {
                    row: index,
                    first,
                    size,
                }));
            }
        }
        Ok(())
    }
}

pub(crate) fn index_below(name: &'static str, value: u64, limit: usize) -> Result<(), Error> {
    let limit = limit as u64;
    if value >= limit {
        return Err(Error::Index { name, value, limit });
    }
    Ok(())
}
