//! Ragged arrays: all rows in one buffer, as Arrow and numpy hold them.

use std::fmt;

/// Why a batch cannot be scored.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// An offsets array needs one entry more than there are rows, so it is never empty.
    NoOffsets,
    /// Offsets must start at zero or above and never fall.
    OffsetFalls {
        /// Row whose end lies before its start.
        row: usize,
    },
    /// An offset points behind the values.
    OffsetBeyondValues {
        /// The offset.
        offset: i64,
        /// How many values there are.
        values: usize,
    },
    /// There must be one golden index per trial.
    IndexCount {
        /// Golden indices given.
        indices: usize,
        /// Trials given.
        trials: usize,
    },
    /// A golden index points at no golden row.
    IndexOutOfRange {
        /// The trial.
        trial: usize,
        /// Its golden index.
        index: u32,
        /// How many golden rows there are.
        golden: usize,
    },
    /// Distances are 32-bit, so a sequence must stay below 2^31 symbols.
    TooLong {
        /// Length of the sequence.
        length: usize,
    },
    /// A curve of so many positions is asked for by mistake.
    TooManyPositions {
        /// Positions asked for.
        positions: usize,
    },
    /// Two arrays that are read side by side differ in shape.
    ShapeMismatch {
        /// Elements expected.
        expected: usize,
        /// Elements given.
        given: usize,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoOffsets => write!(
                f,
                "the offsets are empty; they need one entry more than there are rows"
            ),
            Self::OffsetFalls { row } => write!(f, "the offsets of row {row} are negative or fall"),
            Self::OffsetBeyondValues { offset, values } => {
                write!(f, "offset {offset} points behind the {values} values")
            }
            Self::IndexCount { indices, trials } => {
                write!(f, "{indices} golden indices for {trials} trials")
            }
            Self::IndexOutOfRange {
                trial,
                index,
                golden,
            } => {
                write!(
                    f,
                    "trial {trial} has golden index {index}, but there are {golden} golden outputs"
                )
            }
            Self::TooLong { length } => {
                write!(f, "a sequence of {length} symbols is longer than 2^31 - 1")
            }
            Self::TooManyPositions { positions } => {
                write!(
                    f,
                    "{positions} positions are more than the {MOST_POSITIONS} of the longest curve"
                )
            }
            Self::ShapeMismatch { expected, given } => {
                write!(f, "expected {expected} elements, got {given}")
            }
        }
    }
}

impl std::error::Error for Error {}

/// The longest sequence that is scored: distances and furthest-reaching offsets stay within 32 bits.
pub(super) const LONGEST: usize = i32::MAX as usize;

/// The most positions of a curve, so that a wrong number cannot ask for more memory than there is.
pub(super) const MOST_POSITIONS: usize = 1 << 24;

/// Rows of one buffer: row `i` is `values[offsets[i]..offsets[i + 1]]`.
#[derive(Debug, Clone, Copy)]
pub struct Ragged<'a, T> {
    values: &'a [T],
    offsets: &'a [i64],
}

impl<'a, T> Ragged<'a, T> {
    /// Checks the offsets once, so that reading a row cannot fail.
    ///
    /// # Errors
    /// If the offsets are empty, negative, falling or point behind the values, or if a row is too long.
    pub fn new(values: &'a [T], offsets: &'a [i64]) -> Result<Self, Error> {
        let (&first, &last) = offsets
            .first()
            .zip(offsets.last())
            .ok_or(Error::NoOffsets)?;
        // No early exit: the scan stays a vector loop, and wrong offsets are the exception.
        let (mut falls, mut longest) = (first < 0, 0);
        for pair in offsets.windows(2) {
            falls |= pair[1] < pair[0];
            longest = longest.max(pair[1].wrapping_sub(pair[0]));
        }
        if falls {
            let row = offsets
                .windows(2)
                .position(|pair| pair[0] < 0 || pair[1] < pair[0]);
            return Err(Error::OffsetFalls {
                row: row.unwrap_or(0),
            });
        }
        if longest > LONGEST as i64 {
            return Err(Error::TooLong {
                length: longest as usize,
            });
        }
        if usize::try_from(last).map_or(true, |last| last > values.len()) {
            return Err(Error::OffsetBeyondValues {
                offset: last,
                values: values.len(),
            });
        }
        Ok(Self { values, offsets })
    }

    /// Number of rows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Whether there are no rows.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Row `index`.
    #[must_use]
    #[inline(always)]
    pub fn row(&self, index: usize) -> &'a [T] {
        &self.values[self.offsets[index] as usize..self.offsets[index + 1] as usize]
    }

    /// Symbols in all rows.
    #[must_use]
    pub fn total(&self) -> usize {
        (self.offsets[self.len()] - self.offsets[0]) as usize
    }
}

/// Checks that every trial names a golden row.
pub(super) fn check_index(golden_index: &[u32], golden: usize, trials: usize) -> Result<(), Error> {
    if golden_index.len() != trials {
        return Err(Error::IndexCount {
            indices: golden_index.len(),
            trials,
        });
    }
    match golden_index
        .iter()
        .position(|&index| index as usize >= golden)
    {
        Some(trial) => Err(Error::IndexOutOfRange {
            trial,
            index: golden_index[trial],
            golden,
        }),
        None => Ok(()),
    }
}
