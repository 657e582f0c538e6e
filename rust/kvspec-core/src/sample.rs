//! From cells to flips (sampling.md, sections 4 to 6).
//!
//! All sampling happens in the index space of eligible bits, so no model can touch another bit. Flips leave
//! this module merged: one mask per element.

use std::ops::Range;

use crate::dense::Dense;
use crate::fault::{Level, Sampler};
use crate::philox::{
    Block, Domain, Key, LANES, Lanes, bounded, draw, philox, philox_fill, philox_lanes, word1,
    word3,
};
use crate::select::Rows;

/// Hits of a cell from which on its blocks are computed in lanes.
const LANE_HITS: u32 = 8;

/// Lanes that a scan fills at once: they stay in the first-level cache.
const SCAN: usize = 16;

/// Stride of the layer in counter word 1.
const LAYER_STRIDE: u32 = 1 << 16;

/// The flips of one element of one row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hit {
    /// Row of the token, `(kv - first_plane) * heads + head`.
    pub(crate) row: u32,
    pub(crate) elem: u16,
    pub(crate) mask: u32,
}

/// Buffers that outlive a cell; nothing in them carries over from one to the next.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    draws: Vec<u64>,
    chosen: Vec<u32>,
    anchors: Vec<u32>,
    dense: Dense,
    hits: Vec<Hit>,
}

/// Where the cells of one request and layer are drawn.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) key: Key,
    pub(crate) request: u32,
    pub(crate) layer: u32,
}

/// The draws of one cell: key and counter words 0 to 2.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stream {
    key: Key,
    token: u32,
    word1: u32,
    request: u32,
}

impl Stream {
    #[inline]
    fn counter(&self, domain: Domain, block: u32) -> Block {
        [self.token, self.word1, self.request, word3(domain, block)]
    }

    pub(crate) fn block(&self, domain: Domain, block: u32) -> Block {
        philox(self.counter(domain, block), self.key)
    }

    #[inline]
    pub(crate) fn lanes(&self, domain: Domain, first: u32) -> Lanes {
        philox_lanes::<3>(self.counter(domain, first), 1, self.key)
    }
}

impl Sampler {
    /// Visits the hits of `tokens` as `visit(token, hits)`, tokens ascending, hits ascending in (row, element).
    /// One visit holds all hits of a token at level token, those of one row otherwise; never none.
    pub(crate) fn visit_tokens(
        &self,
        place: &Place,
        tokens: Range<u64>,
        rows: &Rows,
        scratch: &mut Scratch,
        mut visit: impl FnMut(u32, &[Hit]),
    ) {
        if self.never_hits() || rows.is_empty() {
            return;
        }
        for (span, planes) in self.page_spans(place, tokens) {
            if self.level == Level::Token {
                let start = self.token_stream(place, span.start as u32);
                let len = span.end - span.start;
                self.scan::<0>(&start, Domain::Token, 1, len, |i, block| {
                    let token = start.token + i;
                    self.draw_token(&Stream { token, ..start }, block, scratch);
                    self.hide(rows, planes, scratch);
                    if !scratch.hits.is_empty() {
                        visit(token, &scratch.hits);
                    }
                });
                continue;
            }
            for token in span {
                for row in rows.iter() {
                    let (kv, head) = self.geometry.plane_head(row);
                    if !planes[kv as usize] {
                        continue;
                    }
                    let stream = row_stream(place, token as u32, kv, head);
                    self.draw_row(&stream, row, scratch);
                    if !scratch.hits.is_empty() {
                        visit(stream.token, &scratch.hits);
                    }
                }
            }
        }
    }

    /// Visits the hits of one token in `layers` as `visit(layer, hits)`, as [`Self::visit_tokens`] does for one
    /// layer. Only for level token, where it fills the lanes although a decode step has a single token.
    pub(crate) fn visit_layers(
        &self,
        place: &Place,
        token: u32,
        layers: Range<u32>,
        rows: &Rows,
        scratch: &mut Scratch,
        mut visit: impl FnMut(u32, &[Hit]),
    ) {
        debug_assert_eq!(self.level, Level::Token);
        if self.never_hits() || rows.is_empty() {
            return;
        }
        let layer = layers.start;
        let start = self.token_stream(&Place { layer, ..*place }, token);
        let len = u64::from(layers.end - layers.start);
        self.scan::<1>(&start, Domain::Token, LAYER_STRIDE, len, |i, block| {
            let layer = layers.start + i;
            let place = Place { layer, ..*place };
            let planes = self.planes_hit(&place, u64::from(token));
            if planes == [false; 2] {
                return;
            }
            self.draw_token(&self.token_stream(&place, token), block, scratch);
            self.hide(rows, planes, scratch);
            if !scratch.hits.is_empty() {
                visit(layer, &scratch.hits);
            }
        });
    }

    pub(crate) fn token_stream(&self, place: &Place, token: u32) -> Stream {
        Stream {
            key: place.key,
            token,
            word1: word1(place.layer, self.geometry.first_plane, 0),
            request: place.request,
        }
    }

    /// Block 0 of `len` cells whose counter word `WORD` grows by `stride`; visits those that may hold a
    /// hit as `visit(index, block)`. Comparing the high halves first lets almost all lanes go unread.
    #[inline]
    pub(crate) fn scan<const WORD: usize>(
        &self,
        start: &Stream,
        domain: Domain,
        stride: u32,
        len: u64,
        mut visit: impl FnMut(u32, &Block),
    ) {
        let Some(first) = self.table.first() else {
            return;
        };
        let floor = (first >> 32) as u32;
        let mut lanes = [const { Lanes::new() }; SCAN];
        for base in (0..len).step_by(SCAN * LANES) {
            let live = (len - base).min((SCAN * LANES) as u64) as usize;
            let lanes = &mut lanes[..live.div_ceil(LANES)];
            let mut counter = start.counter(domain, 0);
            counter[WORD] = counter[WORD].wrapping_add(stride.wrapping_mul(base as u32));
            philox_fill::<WORD>(lanes, counter, stride, start.key);
            for (first, lanes) in (0..live).step_by(LANES).zip(&*lanes) {
                let any = lanes.words[0]
                    .iter()
                    .fold(0, |any, &w| any | u32::from(w >= floor));
                if any == 0 {
                    continue;
                }
                for lane in 0..LANES.min(live - first) {
                    if lanes.words[0][lane] >= floor {
                        visit((base as usize + first + lane) as u32, &lanes.block(lane));
                    }
                }
            }
        }
    }

    /// Draws the whole cell of a token, given its block 0.
    fn draw_token(&self, stream: &Stream, block: &Block, scratch: &mut Scratch) {
        scratch.hits.clear();
        self.draw_anchors(stream, Domain::Token, block, scratch);
        self.cover(0, scratch);
    }

    /// Draws one row at level head or dense.
    fn draw_row(&self, stream: &Stream, row: u32, scratch: &mut Scratch) {
        scratch.hits.clear();
        if self.level == Level::Dense {
            self.draw_dense(stream, &mut scratch.dense);
            self.gather(row, &scratch.dense, &mut scratch.hits);
        } else {
            let block = stream.block(Domain::Row, 0);
            self.draw_anchors(stream, Domain::Row, &block, scratch);
            self.cover(row, scratch);
        }
    }

    /// Units of a cell that are hit, given its block 0, at levels token and head.
    #[inline]
    pub(crate) fn hits_of(&self, block: &Block) -> u32 {
        let count = draw(block, 0);
        self.table.iter().take_while(|&&t| count >= t).count() as u32
    }

    /// A count and Floyd's sample of that many units: ascending anchors, each a unit and one of its alternatives.
    fn draw_anchors(&self, stream: &Stream, domain: Domain, block: &Block, scratch: &mut Scratch) {
        let Scratch {
            draws,
            chosen,
            anchors,
            ..
        } = scratch;
        anchors.clear();
        let hits = self.hits_of(block);
        if hits == 0 {
            return;
        }
        if hits == 1 {
            anchors.push(bounded(draw(block, 1), self.units * self.sub));
            return;
        }
        draws.clear();
        draws.push(draw(block, 1));
        let blocks = hits / 2;
        if hits < LANE_HITS {
            draws.extend((1..=blocks).flat_map(|i| both(&stream.block(domain, i))));
        } else {
            for first in (1..=blocks).step_by(LANES) {
                let lanes = stream.lanes(domain, first);
                draws.extend((0..LANES).flat_map(|lane| both(&lanes.block(lane))));
            }
        }
        chosen.clear();
        for (last, &draw) in (self.units - hits..self.units).zip(&*draws) {
            let pick = bounded(draw, (last + 1) * self.sub);
            let (unit, alternative) = if self.sub == 1 {
                (pick, 0)
            } else {
                (pick / self.sub, pick % self.sub)
            };
            let unit = if chosen.contains(&unit) { last } else { unit };
            chosen.push(unit);
            anchors.push(unit * self.sub + alternative);
        }
        anchors.sort_unstable();
    }

    /// The union of the bursts of ascending anchors; `row` is added to the row that an anchor lies in.
    fn cover(&self, row: u32, scratch: &mut Scratch) {
        let Scratch { anchors, hits, .. } = scratch;
        for (i, &anchor) in anchors.iter().enumerate() {
            let within = anchor / self.per_row;
            let start = within * self.per_row;
            // Bursts are of one length, so a later one begins where this one stops to matter.
            let mut end = (anchor + self.burst_len).min(start + self.per_row);
            if let Some(&next) = anchors.get(i + 1) {
                end = end.min(next);
            }
            let (mut from, to) = (anchor - start, end - start);
            while from < to {
                let elem = from / self.per_element;
                let first = elem * self.per_element;
                let stop = to.min(first + self.per_element);
                let mask = self.eligible.range(from - first, stop - first);
                let (row, elem) = (row + within, elem as u16);
                match hits.last_mut() {
                    Some(hit) if hit.row == row && hit.elem == elem => hit.mask |= mask,
                    _ => hits.push(Hit { row, elem, mask }),
                }
                from = stop;
            }
        }
    }

    /// Drops hits of rows that are not shown or lie outside hit pages. They were drawn all the same, so that
    /// showing less moves nothing.
    fn hide(&self, rows: &Rows, planes: [bool; 2], scratch: &mut Scratch) {
        if planes == [true; 2] && rows.shows_all() {
            return;
        }
        scratch.hits.retain(|hit| {
            let (kv, _) = self.geometry.plane_head(hit.row);
            planes[kv as usize] && rows.shows(hit.row)
        });
    }

    /// Whether K and V of `token` may be hit as far as pages go.
    fn planes_hit(&self, place: &Place, token: u64) -> [bool; 2] {
        let Some(page) = self.page else {
            return [true; 2];
        };
        let Some(threshold) = page.threshold else {
            return [false; 2];
        };
        let planes = self.geometry.first_plane..self.geometry.first_plane + self.geometry.planes;
        [0, 1].map(|kv| {
            let stream = Stream {
                key: place.key,
                token: (token / u64::from(page.tokens)) as u32,
                word1: word1(place.layer, kv, 0),
                request: place.request,
            };
            planes.contains(&kv) && draw(&stream.block(Domain::Page, 0), 0) >= threshold
        })
    }

    /// Cuts `tokens` at page borders and keeps the spans whose page is hit in some plane.
    pub(crate) fn page_spans(
        &self,
        place: &Place,
        tokens: Range<u64>,
    ) -> impl Iterator<Item = (Range<u64>, [bool; 2])> {
        let page_tokens = self.page.map_or(u64::MAX, |page| u64::from(page.tokens));
        let mut start = tokens.start;
        std::iter::from_fn(move || {
            while start < tokens.end {
                let border = (start / page_tokens + 1).saturating_mul(page_tokens);
                let span = start..border.min(tokens.end);
                start = span.end;
                let planes = self.planes_hit(place, span.start);
                if planes != [false; 2] {
                    return Some((span, planes));
                }
            }
            None
        })
    }
}

/// The draws of one row.
#[inline]
pub(crate) fn row_stream(place: &Place, token: u32, kv: u8, head: u16) -> Stream {
    Stream {
        key: place.key,
        token,
        word1: word1(place.layer, u32::from(kv), u32::from(head)),
        request: place.request,
    }
}

/// The two draws of a block.
#[inline]
fn both(block: &Block) -> [u64; 2] {
    [draw(block, 0), draw(block, 1)]
}
