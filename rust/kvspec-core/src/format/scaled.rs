//! Integer codes with one scale per row (token, plane, head), quantized as vLLM does.
//!
//! Int8 is symmetric: value = code * scale. Int4 is asymmetric, value = (code - zero) * scale, and its zero point
//! lies in the low four mantissa bits of the stored scale. (vLLM 0.32: `_reshape_cache_per_token_head` and
//! `_reshape_cache_int4_kernel`. Int4 rows are rotated first; the caller does that.) All arithmetic is in IEEE
//! float32; what a GPU makes of NaN in a row is taken from PTX.
//!
//! A value is the IEEE product of code and scale, whatever the scale is, and all NaNs are one. The product is
//! rounded, but division gives the code back for every scale that quantizing makes of finite rows, since those are at
//! least 1e-6. Under a faulty scale, which may be 0 or infinite, it need not: caches keep their codes.

const SMALLEST_SCALE: f32 = 1e-6;
const ZERO_POINT: u32 = 0xF;
const NAN: u32 = 0x7FC0_0000;

fn to_word(value: f32) -> u32 {
    if value.is_nan() { NAN } else { value.to_bits() }
}

/// Nearest integer, halves away from zero, as the kernels write it: add half, cut off.
fn round(value: f32) -> i32 {
    (if value >= 0.0 {
        value + 0.5
    } else {
        value - 0.5
    }) as i32
}

pub(super) fn decode_int8(code: u32, scale: u32) -> u32 {
    to_word(f32::from((code as u8).cast_signed()) * f32::from_bits(scale))
}

pub(super) fn encode_int8(word: u32, scale: u32) -> u32 {
    let code = f32::from_bits(word) / f32::from_bits(scale);
    (code.round_ties_even() as i32).cast_unsigned() & 0xFF
}

/// The stored scale of a row, as bits, and each value replaced by its code.
pub(super) fn quantize_int8(row: &mut [u32]) -> u32 {
    // `max` ignores NaN, as the GPU's does
    let largest = row
        .iter()
        .fold(0.0_f32, |most, &word| most.max(f32::from_bits(word).abs()));
    let scale = (largest / 127.0).max(SMALLEST_SCALE);
    let inverse = 1.0 / scale;
    for word in row {
        let value = f32::from_bits(*word) * inverse;
        let code = if value.is_nan() {
            -128
        } else {
            round(value).clamp(-128, 127)
        };
        *word = code.cast_unsigned() & 0xFF;
    }
    scale.to_bits()
}

fn int4_scale(packed: u32) -> (f32, i32) {
    (
        f32::from_bits(packed & !ZERO_POINT),
        (packed & ZERO_POINT).cast_signed(),
    )
}

pub(super) fn decode_int4(code: u32, packed: u32) -> u32 {
    let (scale, zero) = int4_scale(packed);
    to_word(((code & 0xF).cast_signed() - zero) as f32 * scale)
}

pub(super) fn encode_int4(word: u32, packed: u32) -> u32 {
    let (scale, zero) = int4_scale(packed);
    let code = (f32::from_bits(word) / scale).round_ties_even() as i32;
    code.wrapping_add(zero).cast_unsigned() & 0xF
}

/// The stored scale of a row with its zero point, as bits, and each value replaced by its code.
pub(super) fn quantize_int4(row: &mut [u32]) -> u32 {
    let (least, most) = row.iter().fold(
        (f32::INFINITY, f32::NEG_INFINITY),
        |(least, most), &word| {
            let value = f32::from_bits(word);
            (least.min(value), most.max(value))
        },
    );
    let scale = ((most - least) / 15.0).max(SMALLEST_SCALE);
    let zero = round(-least / scale).clamp(0, 15);
    let inverse = 1.0 / scale;
    for word in row {
        let code = round(f32::from_bits(*word) * inverse + zero as f32).clamp(0, 15);
        *word = code.cast_unsigned();
    }
    scale.to_bits() & !ZERO_POINT | zero.cast_unsigned()
}
