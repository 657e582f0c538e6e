//! A fault model bound to the geometry of a layer (sampling.md, sections 1 and 4 to 6).

use crate::eligible::EligibleBits;
use crate::error::Error;
use crate::thresholds::{checked_probability, thresholds};

/// Expected hits of a cell up to which it is drawn by its count.
const SPARSE_MEAN: f64 = 32.0;
const MAX_ROW_BITS: u32 = 32768;
const MAX_HEADS: u32 = 32767;

/// The rows that one token adds to the cache of one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Elements of a row, D.
    pub head_size: u32,
    /// Bits of a stored element, B.
    pub bits: u32,
    /// KV heads of the layer before any tensor-parallel split, H.
    pub heads: u32,
    /// Planes that share this geometry: 2 for K and V, 1 for one of them.
    pub planes: u32,
    /// The first of them: 0 for K, 1 for V alone.
    pub first_plane: u32,
}

impl Geometry {
    fn check(&self) -> Result<(), Error> {
        let Self {
            head_size,
            bits,
            heads,
            planes,
            first_plane,
        } = *self;
        if !(1..=32).contains(&bits) {
            return Err(Error::Bits { bits });
        }
        if head_size == 0 || head_size > MAX_ROW_BITS / bits {
            return Err(Error::RowBits { head_size, bits });
        }
        if !(1..=MAX_HEADS).contains(&heads) {
            return Err(Error::Heads { heads });
        }
        if !matches!((first_plane, planes), (0, 1 | 2) | (1, 1)) {
            return Err(Error::Planes {
                planes,
                first_plane,
            });
        }
        Ok(())
    }

    /// Rows of one token: planes times heads.
    #[must_use]
    pub fn rows(&self) -> u32 {
        self.planes * self.heads
    }

    /// Plane and head of row `row` of a token, plane major.
    pub(crate) fn plane_head(&self, row: u32) -> (u8, u16) {
        let plane = self.first_plane + row / self.heads;
        (plane as u8, (row % self.heads) as u16)
    }
}

/// What a rate counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Per {
    /// Each eligible bit flips.
    Bit,
    /// Each element is hit; one uniform eligible bit of it flips.
    Element,
    /// Each row (token, plane, head) is hit; one uniform eligible bit of it flips.
    Row,
}

impl Per {
    /// The unit of that name.
    ///
    /// # Errors
    /// [`Error::Word`] for any other name.
    pub fn parse(name: &str) -> Result<Self, Error> {
        match name {
            "bit" => Ok(Self::Bit),
            "element" => Ok(Self::Element),
            "row" => Ok(Self::Row),
            _ => Err(Error::Word {
                name: "unit",
                value: name.to_owned(),
                allowed: &["bit", "element", "row"],
            }),
        }
    }
}

/// Faults confined to pages of consecutive tokens of one layer and plane.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Page {
    /// Tokens of a page; independent of the engine's block size.
    pub tokens: u32,
    /// Probability that a page is hit.
    pub rate: f64,
}

/// A declared generator of faults.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FaultModel {
    /// Probability per unit, inside hit pages if there are pages.
    pub rate: f64,
    /// The unit.
    pub per: Per,
    /// Eligible bits of every element.
    pub mask: u32,
    /// Consecutive eligible bits that each hit flips, clipped at the end of its row.
    pub burst_len: u32,
    /// Restriction to pages.
    pub page: Option<Page>,
}

/// How coarsely hits are drawn: the smallest number of draws whose count stays small.
///
/// A function of geometry and model only, so no selector or batch moves a flip.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// One count for all rows of a token.
    Token,
    /// One count per row.
    Head,
    /// One draw per unit.
    Dense,
}

impl Level {
    /// Its name in files and in Python.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::Head => "head",
            Self::Dense => "dense",
        }
    }
}

/// A page rule, ready to draw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PageDraw {
    pub(crate) tokens: u32,
    /// A page is hit if its draw reaches this; never, if there is none.
    pub(crate) threshold: Option<u64>,
}

/// A fault model bound to a geometry, with its tables: draws the flips of any cell on its own.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampler {
    pub(crate) geometry: Geometry,
    pub(crate) level: Level,
    /// Units of a cell at `Token`, of a row otherwise.
    pub(crate) units: u32,
    /// Eligible bits of a unit, of which a hit picks one.
    pub(crate) sub: u32,
    pub(crate) table: Vec<u64>,
    pub(crate) eligible: EligibleBits,
    /// Eligible bits of an element, m.
    pub(crate) per_element: u32,
    /// Eligible bits of a row, E.
    pub(crate) per_row: u32,
    pub(crate) burst_len: u32,
    pub(crate) page: Option<PageDraw>,
    expected_flips_per_row: f64,
}

impl Sampler {
    /// Checks the model against the geometry, chooses the level and computes the tables (about 0.5 ms).
    ///
    /// # Errors
    /// One variant of [`Error`] per rule of sampling.md, sections 1 and 8.
    pub fn new(model: &FaultModel, geometry: &Geometry) -> Result<Self, Error> {
        geometry.check()?;
        let rate = checked_probability("rate", model.rate)?;
        let Geometry {
            head_size, bits, ..
        } = *geometry;
        let mask = model.mask;
        if mask == 0 || u64::from(mask) >> bits != 0 {
            return Err(Error::Mask { mask, bits });
        }
        if model.burst_len == 0 {
            return Err(Error::BurstLen);
        }
        let page = model.page.map(page_draw).transpose()?;

        let per_element = mask.count_ones();
        let per_row = head_size * per_element;
        let (row_units, sub) = match model.per {
            Per::Bit => (per_row, 1),
            Per::Element => (head_size, per_element),
            Per::Row => (1, per_row),
        };
        // at most 2 * 32767 * 32768, below 2^31
        let cell_units = geometry.rows() * row_units;
        let sparse = |units: u32| f64::from(units) * rate <= SPARSE_MEAN;
        let (level, units, table) = if sparse(cell_units) {
            (Level::Token, cell_units, thresholds(cell_units, rate)?)
        } else if sparse(row_units) {
            (Level::Head, row_units, thresholds(row_units, rate)?)
        } else {
            (Level::Dense, row_units, thresholds(1, rate)?)
        };

        let burst_len = model.burst_len.min(per_row);
        let page_rate = model.page.map_or(1.0, |page| page.rate.abs());
        let per_hit_page = expected_union(row_units, sub, rate, burst_len);
        Ok(Self {
            geometry: *geometry,
            level,
            units,
            sub,
            table,
            eligible: EligibleBits::new(mask),
            per_element,
            per_row,
            burst_len,
            page,
            expected_flips_per_row: per_hit_page * page_rate,
        })
    }

    /// The geometry it is bound to.
    #[must_use]
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// How its hits are drawn.
    #[must_use]
    pub fn level(&self) -> Level {
        self.level
    }

    /// Thresholds of the count at levels token and head, of a single unit at level dense.
    #[must_use]
    pub fn thresholds(&self) -> &[u64] {
        &self.table
    }

    /// Threshold of a page's draw; `None` without pages, or if no page can be hit.
    #[must_use]
    pub fn page_threshold(&self) -> Option<u64> {
        self.page.and_then(|page| page.threshold)
    }

    /// Eligible bits of one row, E.
    #[must_use]
    pub fn eligible_bits_per_row(&self) -> u32 {
        self.per_row
    }

    /// Expected number of flipped bits of one row (token, plane, head), overlaps of bursts counted once.
    #[must_use]
    pub fn expected_flips_per_row(&self) -> f64 {
        self.expected_flips_per_row
    }

    /// Whether no draw at all can cause a flip.
    pub(crate) fn never_hits(&self) -> bool {
        self.table.is_empty() || self.page.is_some_and(|page| page.threshold.is_none())
    }
}

fn page_draw(page: Page) -> Result<PageDraw, Error> {
    let rate = checked_probability("page_rate", page.rate)?;
    if page.tokens == 0 {
        return Err(Error::PageTokens);
    }
    Ok(PageDraw {
        tokens: page.tokens,
        threshold: thresholds(1, rate)?.first().copied(),
    })
}

/// Expected bits of a row that lie in at least one burst.
///
/// Bit q is covered by the anchors in a window of `w = min(q + 1, burst_len)` eligible bits that ends at q.
/// Units are hit independently, the alternatives of a unit exclude each other. So a unit with `c` of its
/// `sub` alternatives in the window leaves q uncovered with probability `1 - rate * c / sub`, and the window
/// holds q's own unit in part, then whole units, then a last one in part.
fn expected_union(units: u32, sub: u32, rate: f64, burst_len: u32) -> f64 {
    if burst_len == 1 {
        return f64::from(units) * rate;
    }
    let log_miss = |inside: u32| (-rate * f64::from(inside) / f64::from(sub)).ln_1p();
    let covered = |q: u32| {
        let window = burst_len.min(q + 1);
        let own = window.min(q % sub + 1);
        let rest = window - own;
        let (whole, last) = (rest / sub, rest % sub);
        // a rate of 1 makes the logarithm infinite, and 0 * infinity is not 0
        let whole_units = if whole == 0 {
            0.0
        } else {
            f64::from(whole) * log_miss(sub)
        };
        -(log_miss(own) + whole_units + log_miss(last)).exp_m1()
    };
    (0..units * sub).map(covered).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The union over all outcomes of a tiny row, by brute force.
    #[test]
    fn expected_union_equals_enumeration() {
        for (units, sub) in [(6_u32, 1_u32), (3, 2), (2, 4), (1, 6)] {
            for (rate, burst_len) in [(0.3, 1), (0.3, 2), (0.3, 3), (0.7, 5), (1.0, 4), (0.0, 4)] {
                let bits = units * sub;
                let burst_len = burst_len.min(bits);
                let outcomes = (sub + 1).pow(units);
                let mut expected = 0.0;
                for outcome in 0..outcomes {
                    let (mut weight, mut covered, mut code) = (1.0, 0_u32, outcome);
                    for unit in 0..units {
                        let pick = code % (sub + 1);
                        code /= sub + 1;
                        if pick == 0 {
                            weight *= 1.0 - rate;
                            continue;
                        }
                        weight *= rate / f64::from(sub);
                        let anchor = unit * sub + pick - 1;
                        for bit in anchor..(anchor + burst_len).min(bits) {
                            covered |= 1 << bit;
                        }
                    }
                    expected += weight * f64::from(covered.count_ones());
                }
                let exact = expected_union(units, sub, rate, burst_len);
                assert!((exact - expected).abs() < 1e-12, "{exact} {expected}");
            }
        }
    }
}
