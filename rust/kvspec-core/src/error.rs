//! Every way an argument can be wrong.

use std::fmt;

/// What was wrong with an argument: one variant per rule, carrying the offending value and the limit it broke.
///
/// Nothing has been written when an error is returned.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Error {
    /// A probability is not a number in `[0, 1]`.
    Probability { name: &'static str, value: f64 },
    /// A storage word has no bits or more than 32.
    Bits { bits: u32 },
    /// A row has no bits or more than 32768.
    RowBits { head_size: u32, bits: u32 },
    /// The number of KV heads is 0 or above 32767.
    Heads { heads: u32 },
    /// The planes are not a subset of K (0) and V (1).
    Planes { planes: u32, first_plane: u32 },
    /// The mask is empty or reaches beyond the storage word.
    Mask { mask: u32, bits: u32 },
    /// A burst of length zero.
    BurstLen,
    /// A page without tokens.
    PageTokens,
    /// A half-open range runs backwards or beyond its limit.
    Range {
        name: &'static str,
        start: u64,
        end: u64,
        limit: u64,
    },
    /// An index or coordinate is not below its limit.
    Index {
        name: &'static str,
        value: u64,
        limit: u64,
    },
    /// A column or array differs in length from its fellows.
    Length {
        name: &'static str,
        len: usize,
        expected: usize,
    },
    /// A fault map is not in canonical order, or holds a site twice.
    Order { index: usize },
    /// The flips asked for would not fit into memory.
    TooManyFlips { expected: f64, limit: u64 },
    /// A shape has more elements than can be addressed, or a stride leads before the first word.
    Layout { name: &'static str },
    /// A site lies outside the cache.
    Address { address: u64, words: usize },
    /// A block table names a negative block, or an offset table holds a negative offset.
    Negative { name: &'static str, value: i64 },
    /// Faults of reads are still in the cache of a layer.
    NotRestored { layer: u32 },
    /// Samplers of one table, or a sampler and the cache, disagree about the width of a storage word.
    Width { bits: u32, expected: u32 },
    /// A word that is not one of the allowed ones.
    Word {
        name: &'static str,
        value: String,
        allowed: &'static [&'static str],
    },
    /// Codes of this format have no such bits.
    NoField { format: &'static str, bits: String },
    /// A format whose rows have scales, without codes and scales.
    NoScales { format: &'static str },
    /// Faults of scales in a format whose rows have none.
    Unscaled { format: &'static str },
    /// A row of scales that is not one element.
    ScaleRow { head_size: u32 },
    /// A regular expression that cannot be compiled.
    Pattern { reason: String },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Probability { name, value } => {
                write!(f, "{name} {value} is not a number in [0, 1]")
            }
            Self::Bits { bits } => write!(f, "{bits} bits per element is outside 1 to 32"),
            Self::RowBits { head_size, bits } => write!(
                f,
                "a row of {head_size} elements of {bits} bits is outside 1 to 32768 bits"
            ),
            Self::Heads { heads } => write!(f, "{heads} heads is outside 1 to 32767"),
            Self::Planes {
                planes,
                first_plane,
            } => write!(
                f,
                "{planes} planes from plane {first_plane} is not a subset of K (0) and V (1)"
            ),
            Self::Mask { mask, bits } => {
                write!(f, "mask {mask:#x} is empty or wider than {bits} bits")
            }
            Self::BurstLen => write!(f, "burst length 0 is below 1"),
            Self::PageTokens => write!(f, "a page of 0 tokens is below 1"),
            Self::Range {
                name,
                start,
                end,
                limit,
            } => write!(f, "{name} {start}..{end} is not a range within 0..{limit}"),
            Self::Index { name, value, limit } => write!(f, "{name} {value} is not below {limit}"),
            Self::Length {
                name,
                len,
                expected,
            } => write!(f, "{name} has {len} entries instead of {expected}"),
            Self::Order { index } => write!(
                f,
                "site {index} of the fault map repeats or precedes the one before it"
            ),
            Self::TooManyFlips { expected, limit } => write!(
                f,
                "about {expected:.3e} flips at once are more than the limit of {limit}"
            ),
            Self::Layout { name } => write!(f, "{name} cannot be addressed"),
            Self::Address { address, words } => {
                write!(f, "address {address} is outside a cache of {words} words")
            }
            Self::Negative { name, value } => write!(f, "{name} {value} is below 0"),
            Self::NotRestored { layer } => write!(f, "layer {layer} is injected and not restored"),
            Self::Width { bits, expected } => write!(
                f,
                "a sampler for {bits} bits per element does not fit elements of {expected} bits"
            ),
            Self::Word {
                name,
                value,
                allowed,
            } => write!(f, "{name} `{value}` is not one of {}", allowed.join(", ")),
            Self::NoField { format, bits } => write!(f, "codes of {format} have no {bits} bits"),
            Self::NoScales { format } => {
                write!(f, "{format} needs the scales of its rows")
            }
            Self::Unscaled { format } => write!(f, "rows of {format} have no scales"),
            Self::ScaleRow { head_size } => {
                write!(f, "a row of scales has 1 element, not {head_size}")
            }
            Self::Pattern { reason } => f.write_str(reason),
        }
    }
}

impl std::error::Error for Error {}
