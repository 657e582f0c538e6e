//! Golden diffing: how far a faulty output is from the golden one.
//!
//! A *sequence* is a run of symbols: token ids (`u32`), or the characters of a text (`u8` where both texts are ASCII,
//! Unicode code points otherwise). With `g` the golden and `f` the faulty sequence:
//!
//! * `first_divergence` = the first `i` with `g[i] != f[i]`; the shorter length if one is a prefix of the other; -1 if
//!   they are identical.
//! * `mismatches` = `#{i < min(|g|, |f|) : g[i] != f[i]}`.
//! * `positional` = `mismatches + ||g| - |f||`.
//! * `edit_distance` = the least number of insertions, deletions and substitutions that turn `g` into `f`.
//! * `indel_distance` = the least number of insertions and deletions that turn `g` into `f`; with `lcs` the length of the
//!   longest common subsequence it is `|g| + |f| - 2 lcs`.
//!
//! Every row is computed on its own, so the result does not depend on how rows are grouped or how many threads run.

#![expect(
    clippy::inline_always,
    reason = "code that is not inlined into the dispatched function loses its vector instructions"
)]
#![expect(
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "lengths are below 2^31, checked at the border, and signed differences are taken between them"
)]

mod batch;
mod curve;
mod detail;
mod edits;
mod frontier;
mod lanes;
mod logprobs;
mod parallel;
mod prefix;
mod ragged;
mod repetition;
mod short;
mod simd;
mod symbol;
mod text;
mod vector;
mod wave;

pub use batch::{Columns, Options, score_tokens};
pub use curve::{PositionCounts, first_divergence_histogram, position_counts, survival};
pub use detail::{DetailOptions, Details, detail_tokens};
pub use edits::{edit_distance, edit_distance_within, indel_distance, lcs_length};
pub use logprobs::{kl_full, kl_topk, topk_agreement};
pub use prefix::{common_prefix, common_suffix, first_divergence, mismatches, positional};
pub use ragged::{Error, Ragged};
pub use repetition::{Tail, periodic_tail};
pub use symbol::Symbol;
pub use text::{Text, detail_texts, score_texts};
