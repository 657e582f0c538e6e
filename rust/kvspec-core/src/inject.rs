//! The faults of one step, and their injection into the cache of a layer.

use crate::cache::{CacheTables, LayerCache, Place, index_below};
use crate::error::Error;
use crate::faults::LayerFaults;
use crate::format::Format;
use crate::map::Op;
use crate::target::Target;

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
    /// Places of a layer's faults, in order.
    places: Vec<Place>,
    /// Words of the rows whose scale changes; kept until the layer is restored.
    row_words: Vec<usize>,
    /// What a transient injection has overwritten, in order.
    saved: Vec<Saved>,
    /// Layer that is injected and not restored.
    open: Option<u32>,
}

/// What was there before a fault.
#[derive(Clone, Copy, Debug)]
struct Saved {
    /// Index into the columns of the step.
    index: u32,
    place: Place,
    /// The code or scale; of a format without scales the whole word, whose NaN may hold more than its code.
    before: u32,
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
    /// Codes or scales.
    pub target: Vec<Target>,
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
            places: Vec::new(),
            row_words: Vec::new(),
            saved: Vec::new(),
            open: None,
        }
    }

    /// Number of faulty elements in all layers, entries counted apart.
    #[must_use]
    pub fn len(&self) -> usize {
        self.parts.iter().flatten().map(LayerFaults::len).sum()
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
        Ok(self.layer(layer)?.map(LayerFaults::len).sum())
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
            columns.target.resize(end, row.target);
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

    /// Injects the faults of one layer into its cache, which holds values of `format`.
    ///
    /// Each code or scale is changed, stored and read back, and the words that follow from it are stored. Faults of
    /// reads must be taken back by [`Self::restore`] before the next layer.
    ///
    /// # Errors
    /// [`Error::Index`], [`Error::Length`], [`Error::Negative`] or [`Error::Layout`] if the tables do not cover
    /// a fault, [`Error::Address`] if one lies outside the words, [`Error::Width`] if the format differs from the
    /// samplers', [`Error::NoScales`] if it needs scales, [`Error::Unscaled`] for faults of scales if it has none,
    /// [`Error::NotRestored`]. Everything is checked before the first write.
    pub fn inject(
        &mut self,
        layer: u32,
        cache: &mut LayerCache<'_>,
        tables: &CacheTables<'_>,
        format: Format,
    ) -> Result<(), Error> {
        if let Some(layer) = self.open {
            return Err(Error::NotRestored { layer });
        }
        if self.layer_len(layer)? == 0 {
            return Ok(());
        }
        self.resolve(layer, cache, tables, format)?;
        let mut rest = &self.places[..];
        for (row, _, masks) in self.parts.iter().flat_map(|p| p[layer as usize].iter()) {
            let (here, after) = rest.split_at(masks.len());
            rest = after;
            let index = row.index as usize;
            if self.first_shown.is_some() {
                self.saved.extend(here.iter().map(|place| Saved {
                    index: row.index,
                    place: *place,
                    before: match *place {
                        Place::Word { address } => cache.words[address],
                        _ => cache.get(place, format),
                    },
                }));
            }
            let done = apply(cache, here, masks, row.op, format, &self.row_words);
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

    /// Finds the places of a layer's faults, and fails if one cannot be injected.
    fn resolve(
        &mut self,
        layer: u32,
        cache: &LayerCache<'_>,
        tables: &CacheTables<'_>,
        format: Format,
    ) -> Result<(), Error> {
        if let Some(bits) = self.bits
            && bits != format.bits()
        {
            let expected = format.bits();
            return Err(Error::Width { bits, expected });
        }
        tables.check()?;
        let (name, scaled) = (format.name(), format.scaled());
        if scaled && (cache.scales.is_empty() || cache.codes.is_empty()) {
            return Err(Error::NoScales { format: name });
        }
        self.places.clear();
        self.row_words.clear();
        for (row, elems, _) in self.parts.iter().flat_map(|p| p[layer as usize].iter()) {
            if row.target == Target::Scales && !scaled {
                return Err(Error::Unscaled { format: name });
            }
            tables.resolve(row, elems, scaled, &mut self.places, &mut self.row_words)?;
        }
        self.places
            .iter()
            .try_for_each(|place| cache.check(place, &self.row_words))
    }

    /// Puts back what the last injection of reads found, bit for bit. Without one it does nothing.
    ///
    /// # Errors
    /// [`Error::Address`] or [`Error::Index`] if the cache is shorter than the one that was injected. Nothing is
    /// written then.
    pub fn restore(&mut self, cache: &mut LayerCache<'_>, format: Format) -> Result<(), Error> {
        self.saved
            .iter()
            .try_for_each(|saved| cache.check(&saved.place, &self.row_words))?;
        // Backwards, so that of two faults in one element the first has the last say.
        for saved in self.saved.drain(..).rev() {
            let faulty = cache.get(&saved.place, format);
            match saved.place {
                Place::Word { address } => cache.words[address] = saved.before,
                _ => cache.set(&saved.place, saved.before, format, &self.row_words),
            }
            let back = faulty ^ cache.get(&saved.place, format);
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

/// Applies `op` to the masks at `places`. Landed are bits that read back as the op wants them and, so that a stray
/// change is seen, every other bit that changed.
fn apply(
    cache: &mut LayerCache<'_>,
    places: &[Place],
    masks: &[u32],
    op: Op,
    format: Format,
    row_words: &[usize],
) -> Applied {
    let mut done = Applied::default();
    for (place, &mask) in places.iter().zip(masks) {
        let before = cache.get(place, format);
        cache.set(place, op.apply(before, mask), format, row_words);
        let after = cache.get(place, format);
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
