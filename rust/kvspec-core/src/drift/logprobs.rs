//! Distance between next-token distributions, in nats.

/// The least probability given to the rest of a truncated distribution. Logprobs are 32-bit floats, so the sum of a whole
/// distribution misses one by about this much; a rest below it cannot be told from zero.
const SMALLEST_REST: f64 = 1e-6;

/// Kullback-Leibler divergence `sum_t p(t) (ln p(t) - ln q(t))` of two full distributions given as natural logarithms
/// over one vocabulary. Infinite if `q` rules out a token that `p` allows; never below zero; NaN if a logarithm is.
#[must_use]
pub fn kl_full(golden: &[f32], faulty: &[f32]) -> f64 {
    let terms = golden
        .iter()
        .zip(faulty)
        .map(|(&p, &q)| term(f64::from(p), f64::from(q)));
    not_negative(terms.sum())
}

/// Kullback-Leibler divergence of two distributions of which only the likeliest tokens are known: tokens that both lists
/// hold count one by one, all others together as one event.
///
/// Merging events can only lower a divergence, so this is a lower bound of the full one, and equal to it where both
/// lists hold the whole vocabulary. NaN if a logarithm is, also one that would be merged.
#[must_use]
pub fn kl_topk(golden: (&[u32], &[f32]), faulty: (&[u32], &[f32])) -> f64 {
    if golden.1.iter().chain(faulty.1).any(|value| value.is_nan()) {
        return f64::NAN;
    }
    let (mut sum, mut golden_rest, mut faulty_rest) = (0.0, 1.0, 1.0);
    for (id, &p) in golden.0.iter().zip(golden.1) {
        if let Some(at) = faulty.0.iter().position(|other| other == id)
            && let Some(&q) = faulty.1.get(at)
        {
            let (p, q) = (f64::from(p), f64::from(q));
            sum += term(p, q);
            golden_rest -= p.exp();
            faulty_rest -= q.exp();
        }
    }
    let rest = |rest: f64| rest.max(SMALLEST_REST).ln();
    not_negative(sum + term(rest(golden_rest), rest(faulty_rest)))
}

/// Share of tokens that both lists hold: `|golden and faulty| / max(|golden|, |faulty|)`; 1 for two empty lists. A token
/// is listed once.
#[must_use]
pub fn topk_agreement(golden: &[u32], faulty: &[u32]) -> f64 {
    let longest = golden.len().max(faulty.len());
    if longest == 0 {
        return 1.0;
    }
    golden.iter().filter(|id| faulty.contains(id)).count() as f64 / longest as f64
}

/// `p (ln p - ln q)` from logarithms; a token of probability zero adds nothing, NaN apart.
fn term(p: f64, q: f64) -> f64 {
    if p == f64::NEG_INFINITY && !q.is_nan() {
        0.0
    } else {
        p.exp() * (p - q)
    }
}

/// Rounding may take an exact zero below zero. NaN stays NaN: it means that a logprob was.
fn not_negative(sum: f64) -> f64 {
    if sum < 0.0 { 0.0 } else { sum }
}
