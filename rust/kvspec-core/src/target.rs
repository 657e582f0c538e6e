//! What of a cache row a fault strikes (sampling-scales.md).

use crate::error::Error;
use crate::fault::Geometry;

/// Bits of a stored scale, a float32.
pub const SCALE_BITS: u32 = 32;

/// Codes, or the scale that they share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// The D elements of a row.
    #[default]
    Values,
    /// The scale of a row: a row of one element of 32 bits.
    Scales,
}

impl Target {
    /// The target of that name.
    ///
    /// # Errors
    /// [`Error::Word`] for any other name.
    pub fn parse(name: &str) -> Result<Self, Error> {
        match name {
            "values" => Ok(Self::Values),
            "scales" => Ok(Self::Scales),
            _ => Err(Error::Word {
                name: "target",
                value: name.to_owned(),
                allowed: &["values", "scales"],
            }),
        }
    }

    /// The target of a code: 0 values, 1 scales.
    ///
    /// # Errors
    /// [`Error::Index`] for any other code.
    pub fn from_code(code: u8) -> Result<Self, Error> {
        match code {
            0 => Ok(Self::Values),
            1 => Ok(Self::Scales),
            _ => Err(Error::Index {
                name: "target",
                value: code.into(),
                limit: 2,
            }),
        }
    }

    /// Fails for faults of scales whose rows are not one element of 32 bits.
    pub(crate) fn check(self, geometry: &Geometry) -> Result<(), Error> {
        let Geometry {
            bits, head_size, ..
        } = *geometry;
        if self == Self::Scales && bits != SCALE_BITS {
            let expected = SCALE_BITS;
            return Err(Error::Width { bits, expected });
        }
        if self == Self::Scales && head_size != 1 {
            return Err(Error::ScaleRow { head_size });
        }
        Ok(())
    }
}
