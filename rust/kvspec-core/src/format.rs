//! Storage formats of a cache, emulated in float32 words.
//!
//! A cache that declares a narrower format than its container holds rounded values. A fault then is: encode
//! the word, change the code, decode it. Both directions work on the bits of a float32, never on floating
//! point registers, so the payload of a NaN survives.

use crate::error::Error;

const F32_EXPONENT: u32 = 0x7F80_0000;
const F32_MANTISSA: u32 = 0x007F_FFFF;

/// What the cache is declared to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// bfloat16: 1 sign, 8 exponent, 7 mantissa bits.
    Bf16,
    /// IEEE binary16: 1 sign, 5 exponent, 10 mantissa bits.
    Fp16,
}

impl Format {
    /// The format of that name.
    ///
    /// # Errors
    /// [`Error::Word`] for any other name.
    pub fn parse(name: &str) -> Result<Self, Error> {
        match name {
            "bf16" => Ok(Self::Bf16),
            "fp16" => Ok(Self::Fp16),
            _ => Err(Error::Word {
                name: "format",
                value: name.to_owned(),
                allowed: &["bf16", "fp16"],
            }),
        }
    }

    /// Bits of a code.
    #[must_use]
    pub fn bits(self) -> u32 {
        match self {
            Self::Bf16 | Self::Fp16 => 16,
        }
    }

    /// The mask of a named set of bits of a code: a field, or a policy of sampling.md, section 6.
    ///
    /// # Errors
    /// [`Error::Word`] for any other name.
    pub fn mask(self, bits: &str) -> Result<u32, Error> {
        let (exponent, mantissa) = match self {
            Self::Bf16 => (0x7F80, 0x007F),
            Self::Fp16 => (0x7C00, 0x03FF),
        };
        match bits {
            "all" => Ok(0xFFFF),
            "sign" => Ok(0x8000),
            "exponent" | "FP16_EXPONENT" => Ok(exponent),
            "mantissa" => Ok(mantissa),
            "BYTE_TOPBITS" => Ok(0xC0C0),
            "INT4_NIBBLE" => Ok(0xF0F0),
            _ => Err(Error::Word {
                name: "bits",
                value: bits.to_owned(),
                allowed: &[
                    "all",
                    "sign",
                    "exponent",
                    "mantissa",
                    "BYTE_TOPBITS",
                    "FP16_EXPONENT",
                    "INT4_NIBBLE",
                ],
            }),
        }
    }

    /// The code nearest to a float32 given by its bits, ties to even.
    ///
    /// Values beyond the range become infinite. A NaN keeps its sign and the payload bits that the format
    /// holds; if none is set, it becomes quiet rather than infinite.
    #[inline]
    #[must_use]
    pub fn encode(self, word: u32) -> u32 {
        match self {
            Self::Bf16 => encode_bf16(word),
            Self::Fp16 => encode_fp16(word),
        }
    }

    /// The float32, as bits, of a code; exact for every code. Bits above the format are ignored.
    #[inline]
    #[must_use]
    pub fn decode(self, code: u32) -> u32 {
        match self {
            Self::Bf16 => code << 16,
            Self::Fp16 => decode_fp16(code & 0xFFFF),
        }
    }
}

fn is_nan(word: u32) -> bool {
    word & !(1 << 31) > F32_EXPONENT
}

/// `value / 2^shift`, ties to even, for shifts of 1 to 31.
fn shift_to_even(value: u32, shift: u32) -> u32 {
    let even = value >> shift & 1;
    (value + (1 << (shift - 1)) - 1 + even) >> shift
}

fn encode_bf16(word: u32) -> u32 {
    if is_nan(word) {
        let code = word >> 16;
        return match code & 0x7F {
            0 => code | 0x40,
            _ => code,
        };
    }
    // A carry out of the mantissa is the next exponent, up to infinity.
    shift_to_even(word & !(1 << 31), 16) | word >> 16 & 0x8000
}

fn encode_fp16(word: u32) -> u32 {
    let sign = word >> 16 & 0x8000;
    let magnitude = word & !(1 << 31);
    if is_nan(word) {
        let payload = magnitude >> 13 & 0x3FF;
        return sign | 0x7C00 | if payload == 0 { 0x200 } else { payload };
    }
    let exponent = magnitude >> 23;
    let code = match exponent {
        // below half of the smallest subnormal, 2^-25
        0..102 => 0,
        // subnormal: the unit is 2^-24, the significand counts in 2^(exponent - 150)
        102..113 => shift_to_even(magnitude & F32_MANTISSA | 1 << 23, 126 - exponent),
        // rebias the exponent from 127 to 15
        113..143 => shift_to_even(magnitude - (112 << 23), 13),
        _ => 0x7C00,
    };
    sign | code
}

fn decode_fp16(code: u32) -> u32 {
    let sign = (code & 0x8000) << 16;
    let (exponent, mantissa) = (code >> 10 & 0x1F, code & 0x3FF);
    let magnitude = match (exponent, mantissa) {
        (0, 0) => 0,
        (0, _) => {
            // mantissa * 2^-24 with its leading bit at position `top`
            let top = mantissa.ilog2();
            (top + 127 - 24) << 23 | (mantissa << (23 - top)) & F32_MANTISSA
        }
        (0x1F, _) => F32_EXPONENT | mantissa << 13,
        _ => (exponent + 112) << 23 | mantissa << 13,
    };
    sign | magnitude
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_survives_decode_and_encode() {
        for format in [Format::Bf16, Format::Fp16] {
            for code in 0..=0xFFFF {
                assert_eq!(
                    format.encode(format.decode(code)),
                    code,
                    "{format:?} {code:#x}"
                );
            }
        }
    }

    #[test]
    fn decode_agrees_with_arithmetic() {
        for code in 0..=0xFFFF_u32 {
            let value = f32::from_bits(Format::Fp16.decode(code));
            let (exponent, mantissa) = (code >> 10 & 0x1F, f64::from(code & 0x3FF));
            let sign = if code >> 15 == 1 { -1.0 } else { 1.0 };
            let expected = match exponent {
                0 => mantissa * 2_f64.powi(-24),
                0x1F if mantissa == 0.0 => f64::INFINITY,
                0x1F => f64::NAN,
                _ => (1024.0 + mantissa) * 2_f64.powi(exponent.cast_signed() - 25),
            };
            let value = f64::from(value);
            if expected.is_nan() {
                assert!(value.is_nan(), "{code:#x}");
            } else {
                assert_eq!(value.to_bits(), (sign * expected).to_bits(), "{code:#x}");
            }
        }
    }

    /// Halfway between neighbours the even code wins, anywhere else the nearer one.
    #[test]
    fn encode_rounds_to_the_nearest_even_code() {
        for (format, infinity) in [(Format::Bf16, 0x7F80), (Format::Fp16, 0x7C00)] {
            for code in 0..infinity - 1 {
                let value = |code| f64::from(f32::from_bits(format.decode(code)));
                // every midpoint of neighbours is a float32, and so are the values beside it
                let middle = f64::midpoint(value(code), value(code + 1)) as f32;
                let even = code + (code & 1);
                assert_eq!(format.encode(middle.to_bits()), even);
                assert_eq!(format.encode(middle.to_bits() + 1), code + 1);
                assert_eq!(format.encode(middle.to_bits() - 1), code);
                assert_eq!(format.encode(middle.to_bits() | 1 << 31), even | 0x8000);
            }
        }
    }

    #[test]
    fn nan_never_becomes_infinite() {
        for word in [
            0x7F80_0001,
            0x7FC0_0000,
            0xFF80_0FFF,
            0xFFFF_FFFF,
            0x7FA0_0001,
        ] {
            for format in [Format::Bf16, Format::Fp16] {
                let back = f32::from_bits(format.decode(format.encode(word)));
                assert!(back.is_nan());
                assert_eq!(back.is_sign_negative(), word >> 31 == 1);
            }
        }
    }
}
