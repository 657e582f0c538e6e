//! The bits of a mask, by number.

/// The eligible bits of an element, numbered from the least significant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EligibleBits {
    /// `prefix[i]` holds the `i` lowest eligible bits.
    prefix: [u32; 33],
    /// Position of the lowest bit if the eligible bits are neighbours.
    shift: Option<u32>,
}

impl EligibleBits {
    pub(crate) fn new(mask: u32) -> Self {
        let mut prefix = [mask; 33];
        let mut seen = 0;
        for i in 0..mask.count_ones() {
            prefix[i as usize] = seen;
            let rest = mask & !seen;
            seen |= rest & rest.wrapping_neg();
        }
        let shift = mask.trailing_zeros();
        let run = mask.checked_shr(shift).unwrap_or(0);
        let neighbours = run & run.wrapping_add(1) == 0;
        Self {
            prefix,
            shift: neighbours.then_some(shift),
        }
    }

    /// The eligible bits numbered `start..end`.
    #[inline]
    pub(crate) fn range(&self, start: u32, end: u32) -> u32 {
        self.prefix[end as usize] ^ self.prefix[start as usize]
    }

    /// The mask whose `i`-th eligible bit is bit `i` of `numbers`.
    #[inline]
    pub(crate) fn scatter(&self, mut numbers: u32) -> u32 {
        if let Some(shift) = self.shift {
            return numbers << shift;
        }
        let mut mask = 0;
        while numbers != 0 {
            let i = numbers.trailing_zeros();
            mask |= self.range(i, i + 1);
            numbers &= numbers - 1;
        }
        mask
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eligible_bits_agree_with_a_bit_by_bit_reading() {
        for mask in [
            1,
            0x8000_0000,
            u32::MAX,
            0xC0C0,
            0x7F80,
            0xF0F0,
            0xA5,
            0x8001,
        ] {
            let bits = EligibleBits::new(mask);
            let places: Vec<u32> = (0..32).filter(|b| mask >> b & 1 == 1).collect();
            let m = places.len();
            for (start, end) in (0..=m).flat_map(|end| (0..=end).map(move |start| (start, end))) {
                let expected = places[start..end].iter().fold(0, |all, b| all | 1 << b);
                assert_eq!(bits.range(start as u32, end as u32), expected);
                let numbers = (start..end).fold(0_u32, |all, i| all | 1 << i);
                assert_eq!(bits.scatter(numbers), expected);
            }
        }
    }
}
