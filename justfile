# Every command a developer needs. `just` lists them.

_default:
    @just --list

# Format, lints and spelling: what to run before a commit
check:
    cargo fmt --all -- --check
    cargo clippy --all-targets -- -D warnings
    @if command -v typos >/dev/null; then typos; else echo "spelling is not checked: pip install typos" >&2; fi

# Apply what clippy suggests, and format
fix:
    cargo clippy --all-targets --fix --allow-dirty --allow-staged
    cargo fmt --all

# Format, lint and document as CI does
lint:
    cargo fmt --all -- --check
    cargo clippy --all-targets -- -D warnings
    RUSTDOCFLAGS="-D warnings" cargo doc --no-deps
    cargo deny check licenses bans sources

# Every test, as CI runs them
test:
    scripts/test.sh

# Unit and integration tests alone
test-rust *ARGS:
    cargo nextest run {{ARGS}}

# Hundreds of kills and power cuts; the first seed repeats a run
full *SEED:
    scripts/full {{SEED}}

# The main job, from nothing
quickstart:
    scripts/quickstart.sh

# Prefill, decode and concurrent streams of a model file
bench MODEL:
    cargo run --release -- bench -m {{MODEL}}

# Start the server on a model file
serve *ARGS:
    cargo run --release -- serve {{ARGS}}
