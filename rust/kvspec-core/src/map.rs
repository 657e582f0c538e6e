//! Explicit fault maps and their application to a cache (sampling.md, section 8).

use std::ops::{BitAnd, BitOr, BitXor, Not};

use crate::error::Error;
use crate::scatter::apply_ordered;
use crate::sites::Sites;

/// Flips as columns of equal length, in canonical order: ascending and unique by (request, layer, kv, head,
/// token, elem, bit).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FaultMap {
    pub(crate) columns: Columns,
}

/// The columns of a [`FaultMap`]; one row is one flipped bit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Columns {
    /// Index of the request in the plan.
    pub request: Vec<u32>,
    /// Global layer index.
    pub layer: Vec<u16>,
    /// 0 for K, 1 for V.
    pub kv: Vec<u8>,
    /// Global KV head.
    pub head: Vec<u16>,
    /// Logical position in the request.
    pub token: Vec<u32>,
    /// Element of the row.
    pub elem: Vec<u16>,
    /// Bit of the stored element, 0 the least significant.
    pub bit: Vec<u8>,
}

impl Columns {
    /// The same columns, borrowed.
    #[must_use]
    pub fn sites(&self) -> Sites<'_> {
        Sites {
            request: &self.request,
            step: None,
            layer: &self.layer,
            kv: &self.kv,
            head: &self.head,
            token: &self.token,
            elem: &self.elem,
            bit: &self.bit,
        }
    }

    fn site(&self, i: usize) -> (u32, u16, u8, u16, u32, u16, u8) {
        (
            self.request[i],
            self.layer[i],
            self.kv[i],
            self.head[i],
            self.token[i],
            self.elem[i],
            self.bit[i],
        )
    }
}

impl FaultMap {
    /// A map from outside.
    ///
    /// # Errors
    /// [`Error::Length`] for columns of unequal length, [`Error::Order`] unless the sites ascend strictly.
    pub fn new(columns: Columns) -> Result<Self, Error> {
        let expected = columns.request.len();
        let lengths = [
            ("layer", columns.layer.len()),
            ("kv", columns.kv.len()),
            ("head", columns.head.len()),
            ("token", columns.token.len()),
            ("elem", columns.elem.len()),
            ("bit", columns.bit.len()),
        ];
        for (name, len) in lengths {
            if len != expected {
                return Err(Error::Length {
                    name,
                    len,
                    expected,
                });
            }
        }
        match (1..expected).find(|&i| columns.site(i - 1) >= columns.site(i)) {
            Some(index) => Err(Error::Order { index }),
            None => Ok(Self { columns }),
        }
    }

    /// Number of flips.
    #[must_use]
    pub fn len(&self) -> usize {
        self.columns.token.len()
    }

    /// Whether there is no flip.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The columns.
    #[must_use]
    pub fn columns(&self) -> &Columns {
        &self.columns
    }

    /// The columns, given up.
    #[must_use]
    pub fn into_columns(self) -> Columns {
        self.columns
    }

    /// Applies `op` to every site of `cache`. A flip applied twice restores the cache.
    ///
    /// # Errors
    /// [`Error::Index`] if a coordinate is outside `layout.shape` or a bit outside the word, [`Error::Layout`]
    /// or [`Error::Address`] if the layout reaches outside the cache. Everything is checked before the first
    /// write.
    pub fn apply<W: Word>(&self, cache: &mut [W], layout: &Layout, op: Op) -> Result<(), Error> {
        apply_ordered(cache, &self.columns.sites(), layout, op)
    }
}

/// What a fault does to a bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Op {
    /// Inverts it.
    Flip,
    /// Stuck at 0.
    Set0,
    /// Stuck at 1.
    Set1,
}

impl Op {
    /// The op of a code in the column `op` of a fault map.
    ///
    /// # Errors
    /// [`Error::Index`] for any other code.
    pub fn from_code(code: u8) -> Result<Self, Error> {
        match code {
            0 => Ok(Self::Flip),
            1 => Ok(Self::Set0),
            2 => Ok(Self::Set1),
            _ => Err(Error::Index {
                name: "op",
                value: code.into(),
                limit: 3,
            }),
        }
    }

    /// A word with the bits of `mask` changed.
    #[must_use]
    pub fn apply<W: Word>(self, word: W, mask: W) -> W {
        match self {
            Self::Flip => word ^ mask,
            Self::Set0 => word & !mask,
            Self::Set1 => word | mask,
        }
    }

    /// The op of that name.
    ///
    /// # Errors
    /// [`Error::Word`] for any other name.
    pub fn parse(name: &str) -> Result<Self, Error> {
        match name {
            "flip" => Ok(Self::Flip),
            "set0" => Ok(Self::Set0),
            "set1" => Ok(Self::Set1),
            _ => Err(Error::Word {
                name: "op",
                value: name.to_owned(),
                allowed: &["flip", "set0", "set1"],
            }),
        }
    }
}

/// Where a cache holds (request, layer, kv, head, token, elem).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Index of the word at the origin.
    pub base: usize,
    /// Extent of each coordinate.
    pub shape: [usize; 6],
    /// Words from one to the next of each coordinate; may be negative or 0.
    pub strides: [isize; 6],
}

impl Layout {
    /// A cache without gaps, the last coordinate fastest; `None` if its size overflows.
    #[must_use]
    pub fn contiguous(shape: [usize; 6]) -> Option<Self> {
        let mut strides = [0; 6];
        let mut words: usize = 1;
        for (stride, &extent) in strides.iter_mut().zip(&shape).rev() {
            *stride = isize::try_from(words).ok()?;
            words = words.checked_mul(extent)?;
        }
        Some(Self {
            base: 0,
            shape,
            strides,
        })
    }

    /// The strides modulo the word size, once no coordinate inside a shape without zeros can leave the cache.
    pub(crate) fn checked_strides(&self, words: usize) -> Result<[usize; 6], Error> {
        let (mut lowest, mut highest) = (self.base as i128, self.base as i128);
        for (&extent, &stride) in self.shape.iter().zip(&self.strides) {
            let reach = (extent as i128 - 1).saturating_mul(stride as i128);
            lowest = lowest.saturating_add(reach.min(0));
            highest = highest.saturating_add(reach.max(0));
        }
        if lowest < 0 {
            return Err(Error::Layout { name: "strides" });
        }
        if highest >= words as i128 {
            return Err(Error::Address {
                address: u64::try_from(highest).unwrap_or(u64::MAX),
                words,
            });
        }
        Ok(self.strides.map(isize::cast_unsigned))
    }
}

/// A storage word of a cache.
pub trait Word:
    Copy + BitXor<Output = Self> + BitAnd<Output = Self> + BitOr<Output = Self> + Not<Output = Self>
{
    /// Its width.
    const BITS: u32;
    /// The word with one bit set, below [`Self::BITS`].
    fn bit(bit: u8) -> Self;
}

macro_rules! word {
    ($($ty:ty),*) => {$(
        impl Word for $ty {
            const BITS: u32 = <$ty>::BITS;
            fn bit(bit: u8) -> Self {
                (1 as $ty) << (u32::from(bit) % Self::BITS)
            }
        }
    )*};
}
word!(u8, u16, u32);
