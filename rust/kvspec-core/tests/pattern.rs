//! Patterns of graders: what is refused, and that no text takes long.

use std::time::{Duration, Instant};

use kvspec_core::{Error, Pattern};

#[test]
fn patterns_that_could_take_long_are_refused_or_fast() {
    for refused in [
        r"(a)\1",
        "(?=a)b",
        "(((a{1000}){1000}){1000})",
        "(",
        &"(".repeat(100_000),
    ] {
        assert!(
            matches!(Pattern::new(refused), Err(Error::Pattern { .. })),
            "{refused:.40}"
        );
    }
    let hard = Pattern::new("^(a+)+$").expect("legal");
    let started = Instant::now();
    assert!(!hard.occurs_in(&("a".repeat(100_000) + "!")));
    assert!(started.elapsed() < Duration::from_secs(10));
}

#[test]
fn patterns_occur_anywhere_unless_anchored() {
    let word = Pattern::new(r"(?i)\bparis\b").expect("legal");
    assert!(word.occurs_in("It is Paris."));
    assert!(!word.occurs_in("comparison"));
}
