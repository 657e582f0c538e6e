//! Storage formats of a cache, emulated in float32 words.
//!
//! A cache that declares a narrower format than its container holds rounded values. A fault then is: encode
//! the word, change the code, decode it.

mod float;
mod scaled;

use crate::error::Error;
use float::{E4M3, E5M2, FP16, encode_bf16};

/// What the cache is declared to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// bfloat16: 1 sign, 8 exponent, 7 mantissa bits.
    Bf16,
    /// IEEE binary16: 1 sign, 5 exponent, 10 mantissa bits.
    Fp16,
    /// OCP FP8 E4M3 (`e4m3fn`): no infinity, the largest number is 448. Scale 1.
    Fp8E4m3,
    /// OCP FP8 E5M2: the upper half of binary16. Scale 1.
    Fp8E5m2,
    /// Two's complement with a float32 scale per (token, plane, head).
    Int8,
    /// Unsigned with a float32 scale and a zero point per (token, plane, head).
    Int4,
}

const FORMATS: [Format; 6] = [
    Format::Bf16,
    Format::Fp16,
    Format::Fp8E4m3,
    Format::Fp8E5m2,
    Format::Int8,
    Format::Int4,
];
const NAMES: [&str; 6] = [
    "bf16",
    "fp16",
    "fp8_e4m3",
    "fp8_e5m2",
    "int8_per_token_head",
    "int4_per_token_head",
];
const BITS: [&str; 7] = [
    "all",
    "sign",
    "exponent",
    "mantissa",
    "BYTE_TOPBITS",
    "FP16_EXPONENT",
    "INT4_NIBBLE",
];

impl Format {
    /// The format of that name, the value of vLLM's `kv_cache_dtype` where it has one.
    ///
    /// # Errors
    /// [`Error::Word`] for any other name.
    pub fn parse(name: &str) -> Result<Self, Error> {
        let index = NAMES.iter().position(|&known| known == name);
        index.map(|index| FORMATS[index]).ok_or(Error::Word {
            name: "format",
            value: name.to_owned(),
            allowed: &NAMES,
        })
    }

    /// The name that [`Format::parse`] knows.
    #[must_use]
    pub fn name(self) -> &'static str {
        NAMES[self as usize]
    }

    /// Bits of a code.
    #[must_use]
    pub fn bits(self) -> u32 {
        match self {
            Self::Bf16 | Self::Fp16 => 16,
            Self::Fp8E4m3 | Self::Fp8E5m2 | Self::Int8 => 8,
            Self::Int4 => 4,
        }
    }

    /// Whether the codes of a row share a scale, without which they mean nothing.
    #[must_use]
    pub fn scaled(self) -> bool {
        matches!(self, Self::Int8 | Self::Int4)
    }

    /// The mask of a named set of bits of a code: a field, or a policy of sampling.md, section 6.
    ///
    /// # Errors
    /// [`Error::Word`] for any other name, [`Error::NoField`] for a field that the codes do not have.
    pub fn mask(self, bits: &str) -> Result<u32, Error> {
        let (sign, exponent) = match self {
            Self::Bf16 => (0x8000, 0x7F80),
            Self::Fp16 => (0x8000, 0x7C00),
            Self::Fp8E4m3 => (0x80, 0x78),
            Self::Fp8E5m2 => (0x80, 0x7C),
            Self::Int8 => (0x80, 0),
            Self::Int4 => (0, 0),
        };
        let all = u32::MAX >> (32 - self.bits());
        let mask = match bits {
            "all" => all,
            "sign" => sign,
            "exponent" | "FP16_EXPONENT" => exponent,
            "mantissa" if exponent == 0 => 0,
            "mantissa" => all & !(sign | exponent),
            // Two codes of 4 bits share a byte. Which half a policy would hit does not matter: rows are rotated, so
            // their elements are alike. So the nibble is the code, and the top bits are those of the code.
            "BYTE_TOPBITS" if self == Self::Int4 => 0xC,
            "INT4_NIBBLE" if self == Self::Int4 => 0xF,
            "BYTE_TOPBITS" => 0xC0C0 & all,
            "INT4_NIBBLE" => 0xF0F0 & all,
            _ => {
                return Err(Error::Word {
                    name: "bits",
                    value: bits.to_owned(),
                    allowed: &BITS,
                });
            }
        };
        match mask {
            0 => Err(Error::NoField {
                format: self.name(),
                bits: bits.to_owned(),
            }),
            mask => Ok(mask),
        }
    }

    /// The mask of a named set of bits of a scale, as [`Format::mask`] gives that of a code. The low four bits of
    /// an int4 scale are its zero point, not mantissa.
    ///
    /// # Errors
    /// [`Error::Unscaled`] for a format without scales, [`Error::Word`] for any other name.
    pub fn scale_mask(self, bits: &str) -> Result<u32, Error> {
        if !self.scaled() {
            let format = self.name();
            return Err(Error::Unscaled { format });
        }
        match bits {
            "all" => Ok(u32::MAX),
            "sign" => Ok(0x8000_0000),
            "exponent" | "FP16_EXPONENT" => Ok(0x7F80_0000),
            "mantissa" if self == Self::Int4 => Ok(0x007F_FFF0),
            "mantissa" => Ok(0x007F_FFFF),
            "BYTE_TOPBITS" => Ok(0xC0C0_C0C0),
            "INT4_NIBBLE" => Ok(0xF0F0_F0F0),
            _ => Err(Error::Word {
                name: "bits",
                value: bits.to_owned(),
                allowed: &BITS,
            }),
        }
    }

    /// The code of a float32 that the cache holds, given by its bits. `scale` is that of its row, as bits; only
    /// scaled formats look at it.
    ///
    /// Inverse of [`Format::decode`], of scaled formats only where the scale is one that [`Format::quantize`] gives
    /// and the value finite. Other values, of formats without scale, become the nearest code, ties to
    /// even; beyond the range infinite, or the largest number of E4M3. A NaN keeps its sign and the payload bits
    /// that the format holds; if none is set, it becomes quiet rather than infinite.
    #[inline]
    #[must_use]
    pub fn encode(self, word: u32, scale: u32) -> u32 {
        match self {
            Self::Bf16 => encode_bf16(word),
            Self::Fp16 => FP16.encode(word),
            Self::Fp8E4m3 => E4M3.encode(word),
            Self::Fp8E5m2 => E5M2.encode(word),
            Self::Int8 => scaled::encode_int8(word, scale),
            Self::Int4 => scaled::encode_int4(word, scale),
        }
    }

    /// The float32, as bits, of a code; exact for codes without scale, the IEEE product for others, whatever the
    /// scale, with one NaN. Bits above the format are ignored.
    #[inline]
    #[must_use]
    pub fn decode(self, code: u32, scale: u32) -> u32 {
        match self {
            Self::Bf16 => code << 16,
            Self::Fp16 => FP16.decode(code),
            Self::Fp8E4m3 => E4M3.decode(code),
            Self::Fp8E5m2 => E5M2.decode(code),
            Self::Int8 => scaled::decode_int8(code, scale),
            Self::Int4 => scaled::decode_int4(code, scale),
        }
    }

    /// Rounds a row, float32 as bits, to values that the cache can hold, as vLLM's cache write does. Returns the
    /// scale that is stored for the row, as bits; that of a format without scale is 1.
    ///
    /// FP8 saturates (448, 57344) and has one NaN.
    pub fn quantize(self, row: &mut [u32]) -> u32 {
        let scale = self.quantize_codes(row);
        for word in row {
            *word = self.decode(*word, scale);
        }
        scale
    }

    /// [`Format::quantize`] that leaves the codes of the row in place of its values.
    pub fn quantize_codes(self, row: &mut [u32]) -> u32 {
        match self {
            Self::Bf16 => each(row, encode_bf16),
            Self::Fp16 => each(row, |word| FP16.encode(word)),
            Self::Fp8E4m3 => each(row, |word| E4M3.saturate(word)),
            Self::Fp8E5m2 => each(row, |word| E5M2.saturate(word)),
            Self::Int8 => scaled::quantize_int8(row),
            Self::Int4 => scaled::quantize_int4(row),
        }
    }
}

fn each(row: &mut [u32], code: impl Fn(u32) -> u32) -> u32 {
    for word in row {
        *word = code(*word);
    }
    1.0_f32.to_bits()
}
