//! Floating-point codes of 8 and 16 bits.
//!
//! Both directions work on the bits of a float32, never on floating-point registers, so the payload of a NaN
//! survives.

const F32_EXPONENT: u32 = 0x7F80_0000;
const F32_MANTISSA: u32 = 0x007F_FFFF;
const SIGN: u32 = 1 << 31;

/// A floating-point format narrower than float32: sign, exponent, mantissa.
#[derive(Clone, Copy)]
pub(super) struct Small {
    /// Bits of the code.
    pub(super) bits: u32,
    /// Bits of the mantissa.
    pub(super) mantissa: u32,
    /// Bias of the exponent.
    pub(super) bias: u32,
    /// Whether the highest exponent is kept for infinity and NaN. Without it (`e4m3fn`) only the very last code
    /// is NaN, and values beyond the largest number become that number.
    pub(super) ieee: bool,
}

pub(super) const FP16: Small = Small {
    bits: 16,
    mantissa: 10,
    bias: 15,
    ieee: true,
};
pub(super) const E5M2: Small = Small {
    bits: 8,
    mantissa: 2,
    bias: 15,
    ieee: true,
};
pub(super) const E4M3: Small = Small {
    bits: 8,
    mantissa: 3,
    bias: 7,
    ieee: false,
};

pub(super) fn is_nan(word: u32) -> bool {
    word & !SIGN > F32_EXPONENT
}

/// `value / 2^shift`, ties to even, for shifts of 1 to 31.
fn shift_to_even(value: u32, shift: u32) -> u32 {
    let even = value >> shift & 1;
    (value + (1 << (shift - 1)) - 1 + even) >> shift
}

impl Small {
    /// The largest code without sign: a NaN.
    const fn last(self) -> u32 {
        (1 << (self.bits - 1)) - 1
    }

    /// The code of infinity where there is one; else of NaN. All codes below are numbers.
    pub(super) const fn beyond(self) -> u32 {
        if self.ieee {
            self.last() >> self.mantissa << self.mantissa
        } else {
            self.last()
        }
    }

    /// The code nearest to a float32, ties to even. Values beyond the range become infinite, or the largest
    /// number where infinity does not exist. A NaN keeps its sign and the payload bits that the format holds.
    pub(super) fn encode(self, word: u32) -> u32 {
        let Self {
            bits,
            mantissa,
            bias,
            ieee,
        } = self;
        let sign = (word & SIGN) >> (32 - bits);
        let magnitude = word & !SIGN;
        if is_nan(word) {
            let payload = (magnitude & F32_MANTISSA) >> (23 - mantissa);
            let quiet = if payload == 0 {
                1 << (mantissa - 1)
            } else {
                payload
            };
            return sign
                | if ieee {
                    self.beyond() | quiet
                } else {
                    self.last()
                };
        }
        let exponent = magnitude >> 23;
        let code = if exponent < 127 - bias - mantissa {
            // below half of the smallest subnormal number
            0
        } else if exponent < 128 - bias {
            // subnormal: the unit is 2^(1 - bias - mantissa), the significand counts in 2^(exponent - 150)
            shift_to_even(
                magnitude & F32_MANTISSA | 1 << 23,
                151 - bias - mantissa - exponent,
            )
        } else {
            // A carry out of the mantissa is the next exponent, up to infinity.
            shift_to_even(magnitude - ((127 - bias) << 23), 23 - mantissa)
        };
        let largest = if ieee { self.beyond() } else { self.last() - 1 };
        sign | code.min(largest)
    }

    /// The float32 of a code, exact.
    pub(super) fn decode(self, code: u32) -> u32 {
        let Self {
            bits,
            mantissa,
            bias,
            ..
        } = self;
        let sign = (code << (32 - bits)) & SIGN;
        let code = code & self.last();
        let (exponent, fraction) = (code >> mantissa, code & ((1 << mantissa) - 1));
        let magnitude = if code >= self.beyond() {
            F32_EXPONENT | fraction << (23 - mantissa)
        } else if exponent > 0 {
            (exponent + 127 - bias) << 23 | fraction << (23 - mantissa)
        } else if fraction > 0 {
            // fraction * 2^(1 - bias - mantissa), its leading bit at position `top`
            let top = fraction.ilog2();
            (top + 128 - bias - mantissa) << 23 | (fraction << (23 - top)) & F32_MANTISSA
        } else {
            0
        };
        sign | magnitude
    }

    /// The code that NVIDIA's `cvt.rn.satfinite` gives: the largest number instead of infinity, one NaN.
    pub(super) fn saturate(self, word: u32) -> u32 {
        if is_nan(word) {
            return self.last();
        }
        let code = self.encode(word);
        let sign = code & (1 << (self.bits - 1));
        sign | (code & self.last()).min(self.beyond() - 1)
    }
}

pub(super) fn encode_bf16(word: u32) -> u32 {
    if is_nan(word) {
        let code = word >> 16;
        return match code & 0x7F {
            0 => code | 0x40,
            _ => code,
        };
    }
    // A carry out of the mantissa is the next exponent, up to infinity.
    shift_to_even(word & !SIGN, 16) | word >> 16 & 0x8000
}
