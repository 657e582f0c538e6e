//! Every code of every storage format, and the rounding of rows.

#![expect(clippy::float_cmp, reason = "codes stand for exact values")]

use kvspec_core::{Error, Format};

const FLOATS: [Format; 4] = [Format::Bf16, Format::Fp16, Format::Fp8E4m3, Format::Fp8E5m2];
const ONE: u32 = 0x3F80_0000;

fn codes(format: Format) -> u32 {
    1 << format.bits()
}

fn number(format: Format, code: u32) -> f64 {
    f64::from(f32::from_bits(format.decode(code, ONE)))
}

/// (exponent bits, mantissa bits, bias, whether the highest exponent is kept for infinity and NaN)
fn parts(format: Format) -> (u32, u32, i32, bool) {
    match format {
        Format::Bf16 => (8, 7, 127, true),
        Format::Fp16 => (5, 10, 15, true),
        Format::Fp8E4m3 => (4, 3, 7, false),
        Format::Fp8E5m2 => (5, 2, 15, true),
        _ => unreachable!("no float"),
    }
}

#[test]
fn every_float_code_survives_decode_and_encode() {
    for format in FLOATS {
        for code in 0..codes(format) {
            let word = format.decode(code, ONE);
            assert_eq!(format.encode(word, ONE), code, "{format:?} {code:#x}");
        }
    }
}

#[test]
fn float_codes_agree_with_arithmetic() {
    for format in FLOATS {
        let (width, mantissa, bias, ieee) = parts(format);
        for code in 0..codes(format) {
            let top = (1 << width) - 1;
            let exponent = code >> mantissa & top;
            let fraction = f64::from(code & ((1 << mantissa) - 1));
            let one = f64::from(1 << mantissa);
            let sign = if code >> (width + mantissa) == 1 {
                -1.0
            } else {
                1.0
            };
            let expected = match exponent {
                0 => fraction / one * 2_f64.powi(1 - bias),
                _ if ieee && exponent == top && fraction == 0.0 => f64::INFINITY,
                _ if ieee && exponent == top => f64::NAN,
                _ if !ieee && exponent == top && fraction == one - 1.0 => f64::NAN,
                _ => (1.0 + fraction / one) * 2_f64.powi(exponent.cast_signed() - bias),
            };
            let value = number(format, code);
            if expected.is_nan() {
                assert!(value.is_nan(), "{format:?} {code:#x}");
            } else {
                assert_eq!(
                    value.to_bits(),
                    (sign * expected).to_bits(),
                    "{format:?} {code:#x}"
                );
            }
        }
    }
}

/// Halfway between neighbours the even code wins, anywhere else the nearer one.
#[test]
fn encode_rounds_to_the_nearest_even_code() {
    let largest = [0x7F7F, 0x7BFF, 0x7E, 0x7B];
    for (format, largest) in FLOATS.into_iter().zip(largest) {
        let sign = codes(format) >> 1;
        for code in 0..largest {
            // every midpoint of neighbours is a float32, and so are the values beside it
            let middle = f64::midpoint(number(format, code), number(format, code + 1)) as f32;
            let even = code + (code & 1);
            assert_eq!(format.encode(middle.to_bits(), ONE), even);
            assert_eq!(format.encode(middle.to_bits() + 1, ONE), code + 1);
            assert_eq!(format.encode(middle.to_bits() - 1, ONE), code);
            assert_eq!(format.encode(middle.to_bits() | 1 << 31, ONE), even | sign);
        }
    }
}

/// What `cvt.rn.satfinite` of PTX gives, and what 16-bit caches give.
#[test]
fn values_beyond_the_range() {
    let words = [
        464.0,
        465.0,
        1e9,
        f32::MAX,
        f32::INFINITY,
        f32::NEG_INFINITY,
    ];
    let values = |format: Format| {
        let mut row = words.map(f32::to_bits);
        assert_eq!(format.quantize(&mut row), ONE);
        row.map(f32::from_bits)
    };
    assert_eq!(
        values(Format::Fp8E4m3),
        [448.0, 448.0, 448.0, 448.0, 448.0, -448.0]
    );
    assert_eq!(
        values(Format::Fp8E5m2),
        [448.0, 448.0, 57344.0, 57344.0, 57344.0, -57344.0]
    );
    assert_eq!(
        values(Format::Fp16)[2..],
        [
            f32::INFINITY,
            f32::INFINITY,
            f32::INFINITY,
            f32::NEG_INFINITY
        ]
    );
    for format in [Format::Fp8E4m3, Format::Fp8E5m2] {
        let mut row = [0xFFC1_2345];
        format.quantize(&mut row);
        assert_eq!(format.encode(row[0], ONE), 0x7F);
    }
}

#[test]
fn nan_never_becomes_a_number() {
    for word in [
        0x7F80_0001,
        0x7FC0_0000,
        0xFF80_0FFF,
        0xFFFF_FFFF,
        0x7FA0_0001,
    ] {
        for format in FLOATS {
            let back = f32::from_bits(format.decode(format.encode(word, ONE), ONE));
            assert!(back.is_nan());
            assert_eq!(back.is_sign_negative(), word >> 31 == 1);
        }
    }
}

/// Scales from the smallest to those whose products overflow.
#[test]
fn every_integer_code_survives_decode_and_encode_unless_it_overflows() {
    let mut scale = 1e-6_f32;
    let mut scales = vec![f32::MAX, 0.1, 1.0, 3.0];
    while scale.is_finite() {
        scales.push(scale);
        scale *= 1.37;
    }
    for scale in scales {
        for code in 0..256 {
            let word = Format::Int8.decode(code, scale.to_bits());
            let value = f64::from((code as u8).cast_signed()) * f64::from(scale);
            assert_eq!(word, (value as f32).to_bits());
            if (value as f32).is_finite() {
                let back = Format::Int8.encode(word, scale.to_bits());
                assert_eq!(back, code, "{scale} {code}");
            }
        }
        for zero in 0..16 {
            let packed = scale.to_bits() & !0xF | zero;
            let unpacked = f64::from(f32::from_bits(packed & !0xF));
            for code in 0..16 {
                let word = Format::Int4.decode(code, packed);
                let value = (f64::from(code) - f64::from(zero)) * unpacked;
                assert_eq!(word, (value as f32).to_bits());
                if (value as f32).is_finite() {
                    let back = Format::Int4.encode(word, packed);
                    assert_eq!(back, code, "{scale} {zero} {code}");
                }
            }
        }
    }
}

/// What faults make of scales: zeros, subnormals, negative ones, infinities, NaN.
#[test]
fn values_are_ieee_products_under_any_scale() {
    let bits = [
        0,
        1,
        0x8000_0000,
        0x0040_0000,
        0xBF80_0000,
        0x7F80_0000,
        0xFF80_0000,
        0x7FC0_0001,
        0xFFFF_FFFF,
    ];
    for scale in bits {
        for code in 0..256 {
            let product = f32::from((code as u8).cast_signed()) * f32::from_bits(scale);
            let word = Format::Int8.decode(code, scale);
            if product.is_nan() {
                assert_eq!(word, 0x7FC0_0000);
            } else {
                assert_eq!(word, product.to_bits());
            }
        }
        for code in 0..16 {
            let zero = (scale & 0xF) as f32;
            let product = (code as f32 - zero) * f32::from_bits(scale & !0xF);
            let word = Format::Int4.decode(code, scale);
            assert!(word == product.to_bits() || product.is_nan() && word == 0x7FC0_0000);
        }
    }
}

#[test]
fn fields_of_scales() {
    let fields = [
        ("all", 0xFFFF_FFFF, 0xFFFF_FFFF),
        ("sign", 0x8000_0000, 0x8000_0000),
        ("exponent", 0x7F80_0000, 0x7F80_0000),
        ("FP16_EXPONENT", 0x7F80_0000, 0x7F80_0000),
        ("mantissa", 0x007F_FFFF, 0x007F_FFF0),
        ("BYTE_TOPBITS", 0xC0C0_C0C0, 0xC0C0_C0C0),
        ("INT4_NIBBLE", 0xF0F0_F0F0, 0xF0F0_F0F0),
    ];
    for (bits, int8, int4) in fields {
        assert_eq!(Format::Int8.scale_mask(bits), Ok(int8));
        assert_eq!(Format::Int4.scale_mask(bits), Ok(int4));
        for format in FLOATS {
            let unscaled = Err(Error::Unscaled {
                format: format.name(),
            });
            assert_eq!(format.scale_mask(bits), unscaled);
        }
    }
    assert!(matches!(
        Format::Int8.scale_mask("parity"),
        Err(Error::Word { .. })
    ));
}

#[test]
fn integer_rows_use_their_whole_range() {
    let mut row = [-1.0_f32, 0.25, 0.5, -0.125, 2.54].map(f32::to_bits);
    let scale = Format::Int8.quantize(&mut row);
    assert_eq!(scale, (2.54_f32 / 127.0).to_bits());
    let codes = row.map(|word| (Format::Int8.encode(word, scale) as u8).cast_signed());
    // halves go away from zero: 12.5 and -6.25
    assert_eq!(codes, [-50, 13, 25, -6, 127]);

    let mut row = [-1.0_f32, 2.0, 0.0, 0.31, 1.49].map(f32::to_bits);
    let scale = Format::Int4.quantize(&mut row);
    // 3 / 15, zero point 5 in the low bits
    assert_eq!(scale, 0.2_f32.to_bits() & !0xF | 5);
    assert_eq!(
        row.map(|word| Format::Int4.encode(word, scale)),
        [0, 15, 5, 7, 12]
    );
}

#[test]
fn rows_without_range_or_with_nonfinite_values_keep_their_codes() {
    let rows = [
        [0.0; 3],
        [f32::NAN; 3],
        [1.0, f32::INFINITY, f32::NAN],
        [f32::NEG_INFINITY, 1.0, 2.0],
    ];
    for format in [Format::Int8, Format::Int4] {
        for row in rows {
            let (mut words, mut kept) = (row.map(f32::to_bits), row.map(f32::to_bits));
            let scale = format.quantize(&mut words);
            assert_eq!(format.quantize_codes(&mut kept), scale);
            for (word, code) in words.into_iter().zip(kept) {
                assert!(code < codes(format));
                assert_eq!(format.decode(code, scale), word);
                if f32::from_bits(scale).is_finite() {
                    assert_eq!(format.encode(word, scale), code);
                }
            }
        }
        let mut zeros = [0_u32; 3];
        format.quantize(&mut zeros);
        assert_eq!(zeros, [0; 3]);
    }
}

#[test]
fn fields_that_codes_lack_are_refused() {
    let lacking = [
        (Format::Int8, &["exponent", "mantissa", "FP16_EXPONENT"][..]),
        (
            Format::Int4,
            &["sign", "exponent", "mantissa", "FP16_EXPONENT"][..],
        ),
    ];
    for (format, fields) in lacking {
        for bits in fields {
            assert!(
                matches!(format.mask(bits), Err(Error::NoField { .. })),
                "{format:?} {bits}"
            );
        }
    }
}
