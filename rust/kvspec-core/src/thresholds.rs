//! Count thresholds of a binomial distribution (sampling.md, section 3).
//!
//! The arithmetic is integers in fixed point with 256 fraction bits: no libm, so every platform gets
//! the same table, and its error of about 2^-210 is far below the 2^-64 that a table entry resolves.

use crate::error::Error;

const LIMBS: usize = 5;
const MAX_DEGREE: usize = 128;

/// A number in `[0, 2^64)` with 256 fraction bits, least significant limb first.
#[derive(Clone, Copy, PartialEq)]
struct Fixed([u64; LIMBS]);

impl Fixed {
    const ZERO: Self = Self([0; LIMBS]);
    const ONE: Self = Self([0, 0, 0, 0, 1]);
    /// Half a unit of the 64-bit results, 2^-65.
    const HALF: Self = Self([0, 0, 1 << 63, 0, 0]);

    /// `floor(p * 2^256)` of a double in `[0, 1]`.
    fn from_probability(p: f64) -> Self {
        let bits = p.to_bits();
        let exponent = (bits >> 52) as u32;
        let fraction = bits & ((1 << 52) - 1);
        // p = significand * 2^(exponent - 1075), so its lowest bit has weight 2^(exponent - 819) here
        let (significand, exponent) = match exponent {
            0 => (fraction, 1),
            _ => (fraction | 1 << 52, exponent),
        };
        let mut limbs = [0; LIMBS];
        if let Some(shift) = exponent.checked_sub(819) {
            let (limb, shift) = ((shift / 64) as usize, shift % 64);
            let wide = u128::from(significand) << shift;
            limbs[limb] = wide as u64;
            if limb + 1 < LIMBS {
                limbs[limb + 1] = (wide >> 64) as u64;
            }
        } else {
            limbs[0] = significand.checked_shr(819 - exponent).unwrap_or(0);
        }
        Self(limbs)
    }

    fn add(self, other: Self) -> Self {
        let mut sum = self;
        let mut carry = 0;
        for (x, y) in sum.0.iter_mut().zip(other.0) {
            let wide = u128::from(*x) + u128::from(y) + carry;
            *x = wide as u64;
            carry = wide >> 64;
        }
        sum
    }

    fn sub(self, other: Self) -> Self {
        let mut difference = self;
        let mut borrow = false;
        for (x, y) in difference.0.iter_mut().zip(other.0) {
            let (partial, first) = x.overflowing_sub(y);
            let (value, second) = partial.overflowing_sub(u64::from(borrow));
            *x = value;
            borrow = first || second;
        }
        difference
    }

    /// `floor(self * other / 2^256)`.
    fn mul(self, other: Self) -> Self {
        let mut product = [0_u64; 2 * LIMBS];
        for (i, &x) in self.0.iter().enumerate() {
            if x == 0 {
                continue;
            }
            let mut carry = 0;
            for (j, &y) in other.0.iter().enumerate() {
                let wide = u128::from(x) * u128::from(y) + u128::from(product[i + j]) + carry;
                product[i + j] = wide as u64;
                carry = wide >> 64;
            }
            product[i + LIMBS] = carry as u64;
        }
        let [_, _, _, _, limbs @ .., _] = product;
        Self(limbs)
    }

    /// `round(self * 2^64)`, halves up; at most 2^64 for the tails it is used on.
    fn rounded(self) -> u128 {
        let [.., low, high] = self.add(Self::HALF).0;
        u128::from(high) << 64 | u128::from(low)
    }
}

/// `poly^2` up to degree `degree`.
fn square(poly: &[Fixed], degree: usize) -> Vec<Fixed> {
    let top = poly.len() - 1;
    (0..=(2 * top).min(degree))
        .map(|k| {
            // The products of (i, k - i) and (k - i, i) are equal, also after truncation.
            let mut half = Fixed::ZERO;
            for i in k.saturating_sub(top)..k.div_ceil(2) {
                half = half.add(poly[i].mul(poly[k - i]));
            }
            let sum = half.add(half);
            if k % 2 == 0 {
                sum.add(poly[k / 2].mul(poly[k / 2]))
            } else {
                sum
            }
        })
        .collect()
}

/// `poly * (q + p x)` up to degree `degree`.
fn extend(poly: &[Fixed], q: Fixed, p: Fixed, degree: usize) -> Vec<Fixed> {
    (0..=poly.len().min(degree))
        .map(|k| {
            let stay = poly.get(k).map_or(Fixed::ZERO, |c| c.mul(q));
            let step = k.checked_sub(1).map_or(Fixed::ZERO, |i| poly[i].mul(p));
            stay.add(step)
        })
        .collect()
}

/// The table `T` by which a uniform 64-bit `U` becomes a count: `k = #{i : U >= T[i]}`.
///
/// `T[k] = 2^64 - round(2^64 * P(X > k))` for `X ~ Binomial(units, probability)`; the table ends where
/// the rounded tail is 0, so it is empty if nothing can happen.
///
/// # Errors
/// [`Error::Probability`] unless `probability` is in `[0, 1]`.
pub fn thresholds(units: u32, probability: f64) -> Result<Vec<u64>, Error> {
    let p = Fixed::from_probability(checked_probability("probability", probability)?);
    let q = Fixed::ONE.sub(p);
    let degree = (units as usize).min(MAX_DEGREE);

    let mut pmf = vec![Fixed::ONE];
    for bit in (0..u32::BITS - units.leading_zeros()).rev() {
        pmf = square(&pmf, degree);
        if units >> bit & 1 == 1 {
            pmf = extend(&pmf, q, p, degree);
        }
    }

    let mut tail = Fixed::ONE;
    let mut table = Vec::new();
    for mass in pmf.into_iter().take(degree) {
        tail = tail.sub(mass);
        let rounded = tail.rounded();
        if rounded == 0 {
            break;
        }
        // 2^64 - 2^64 wraps to 0, which every draw reaches
        table.push((rounded as u64).wrapping_neg());
    }
    Ok(table)
}

/// `value`, if it is a probability; -0.0 becomes 0.0.
pub(crate) fn checked_probability(name: &'static str, value: f64) -> Result<f64, Error> {
    if (0.0..=1.0).contains(&value) {
        Ok(value.abs())
    } else {
        Err(Error::Probability { name, value })
    }
}
