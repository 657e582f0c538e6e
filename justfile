# `just` lists the recipes. Every one of them is also a plain command.

default:
    @just --list

# What CI runs.
ci:
    bash .ci/run

# Tests that need no engine.
quick:
    uv run --extra cpu pytest -m "not vllm and not gpu"

# All tests, the engine ones on real vLLM on the CPU included.
test:
    uv run --extra cpu pytest
    cargo test --workspace

# Formatting, lints, types.
lint:
    uv run --extra cpu ruff format --check .
    uv run --extra cpu ruff check .
    uv run --extra cpu mypy
    cargo fmt --all --check
    cargo clippy --workspace --all-targets -- -D warnings

# Mend what can be mended automatically.
fix:
    uv run --extra cpu ruff check --fix .
    uv run --extra cpu ruff format .
    cargo fmt --all

# The figures of README and CHANGELOG, measured on this machine (about 15 minutes).
bench:
    uv run --extra cpu python benches/overhead.py
    uv run --extra cpu python benches/determinism.py
    uv run --extra cpu python benches/cold_check.py
    uv run --extra cpu python benches/maps.py
    cargo run --release --example bench_sampling

# Pins in pyproject.toml from a fresh resolution.
pins:
    python3 tools/pins.py
