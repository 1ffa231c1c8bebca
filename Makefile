# `make demo` shows the main job, `make test` runs every check; both install what is missing.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
ARGS ?=

.PHONY: build demo test quick prerequisites schemathesis lint deny unit integration docs docs-fresh bench bench-core bench-threads bench-overload bench-disturbed bench-memory bench-isolation soak fuzz fuzz-corpus sanitize test-compose test-drivers \
	test-tools advisories msrv

# A release: the program without its symbols, which are beside it.
build:
	cargo build --release --locked
	dist/strip.sh target/release/pgusher

# By the profile of the tests: what only a release needs (all crates optimised as one) takes minutes.
demo:
	@tests/prerequisites.sh demo
	cargo build --locked --bin pgusher
	@demo/demo.sh

test: prerequisites
	@$(MAKE) --no-print-directory -j2 schemathesis lint
	@$(MAKE) --no-print-directory docs-fresh unit integration

# Formatting, lints, and the tests of crates, layout and corpus: seconds once built. The tests in tests/it are not run.
quick:
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	cargo test --locked --workspace --lib --bins --test tidy --test corpus

prerequisites:
	@tests/prerequisites.sh test

schemathesis:
	@tests/prerequisites.sh schemathesis

lint:
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps --quiet

# What may come into the binary: licenses, sources, and no crate twice without a reason.
deny:
	@tests/prerequisites.sh deny
	cargo deny --locked check bans licenses sources

# With the oldest compiler that is promised (`rust-version`), where it is installed. (Clippy looks in every `make lint` for what the
# standard library got later.)
MSRV ?= $(shell sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
msrv:
	cargo +$(MSRV) check --locked --workspace

# They need a network, or a copy of their database (ADVISORY_DB), which a build machine may not have: then this says so.
advisories:
	@tests/advisories.sh

unit:
	cargo test --locked --workspace --lib --bins --test corpus

# All of it on the default engine, which is io_uring where this machine has it; a part on the other.
OTHER ?= epoll
AGAIN ?= cancel:: halves:: isolation::who_ listen:: main_job:: relay:: tls:: waits::
# Tests wait for most of their time.
export RUST_TEST_THREADS ?= $(shell echo $$((3 * $$(nproc) < 16 ? 3 * $$(nproc) : 16)))
integration:
	cargo test --locked --test '*'
	PGUSHER_IO=$(OTHER) cargo test --locked --test it -- $(AGAIN)

docs:
	cargo run --quiet --locked -- manual > docs/configuration.md

docs-fresh:
	cargo run --quiet --locked -- manual | diff - docs/configuration.md || { echo "docs/configuration.md is stale: run make docs" >&2; exit 1; }

bench:
	@tests/prerequisites.sh bench
	cargo build --release --locked
	python3 bench/bench.py $(if $(QUICK),--quick --out -) $(ARGS)

# Instructions for each transaction, of the conductor and of the whole process, beside those that were saved last (bench/instructions.txt).
bench-core:
	@tests/prerequisites.sh bench-core
	cargo build --release --locked
	cargo bench --locked --no-run --package pgusher-relay --bench transactions
	python3 bench/instructions.py $(ARGS)

# What more threads that relay cost and bring.
bench-threads:
	@tests/prerequisites.sh bench
	cargo build --release --locked
	python3 bench/threads.py --out docs/benchmarks.md $(ARGS)

# Many more clients than connections: how long they wait, and whether any waits longer than the others.
bench-overload:
	@tests/prerequisites.sh bench
	cargo build --release --locked
	python3 bench/overload.py --out docs/benchmarks.md $(ARGS)

# What those notice who are in: a storm of logins, scrapes, reloads, the console and the page.
bench-disturbed:
	@tests/prerequisites.sh bench
	cargo build --release --locked
	python3 bench/disturbed.py --out docs/benchmarks.md $(ARGS)

# What idle clients, long rows and COPY take.
bench-memory:
	@tests/prerequisites.sh bench
	cargo build --release --locked
	python3 bench/memory.py --out docs/benchmarks.md $(ARGS)

# What it costs that a connection goes from one user to another.
bench-isolation:
	@tests/prerequisites.sh bench
	cargo build --release --locked
	python3 bench/isolation.py --out docs/benchmarks.md $(ARGS)
	python3 bench/resets.py

# The tests in their full sizes: minutes to hours.
soak: prerequisites schemathesis
	cargo build --release --locked
	PROPTEST_CASES=50000 cargo test --release --locked --package pgusher-relay --lib
	PGUSHER_SOAK=1 PGUSHER_IO=auto cargo test --release --locked --test it -- --nocapture $(ARGS)
	PGUSHER_SOAK=1 PGUSHER_IO=epoll cargo test --release --locked --test it -- --nocapture $(ARGS)

# Inputs by coverage, each target for this long: from the corpus and the seeds, which `make unit` replays. What is found is kept in
# fuzz/found, what breaks a promise in fuzz/artifacts. RUSTC_BOOTSTRAP: the flags are nightly's, the compiler need not be.
FUZZ_SECONDS ?= 600
FUZZ_TARGETS ?= body catalog config console frames lexer options relay scram startup
fuzz:
	@tests/prerequisites.sh fuzz
	cd fuzz && for target in $(FUZZ_TARGETS); do \
		mkdir -p found/$$target; \
		RUSTC_BOOTSTRAP=1 cargo fuzz run --sanitizer none $$target found/$$target corpus/$$target seeds/$$target -- \
			-max_total_time=$(FUZZ_SECONDS) -max_len=66000 -timeout=10 -rss_limit_mb=1024 -print_final_stats=1 || exit 1; \
	done

# The only unsafe code: its logic, with a fake kernel, under Miri; all of it, with the real one, under AddressSanitizer. Both need a nightly
# toolchain with Miri (rustup toolchain install nightly --component miri,rust-src).
sanitize:
	MIRIFLAGS=-Zmiri-disable-isolation PROPTEST_CASES=2 cargo +nightly miri test --locked --package pgusher-ring --lib --target-dir target/miri -- \
		--skip a_real_socket --skip last_words --skip a_ring_that_goes --skip a_bell
	RUSTFLAGS=-Zsanitizer=address cargo +nightly test --locked --package pgusher-ring --lib --target-dir target/asan \
		--target $$(rustc -vV | sed -n 's/^host: //p')

# The corpus anew, from all that is there: as few and as short inputs as reach what all of them reach.
fuzz-corpus:
	@tests/prerequisites.sh fuzz
	cd fuzz && for target in $(FUZZ_TARGETS); do \
		mkdir -p found/$$target least/$$target; \
		RUSTC_BOOTSTRAP=1 cargo fuzz run --sanitizer none $$target least/$$target seeds/$$target corpus/$$target found/$$target -- \
			-set_cover_merge=1 -use_counters=0 -max_len=4096 -timeout=10 || exit 1; \
		rm -rf corpus/$$target; mv least/$$target corpus/$$target; \
	done; rmdir least

test-compose:
	tests/compose.sh

# Tools that know PgBouncer, on the console.
test-tools:
	@tests/prerequisites.sh tools
	cargo build --release --locked
	/usr/bin/python3 tests/tools.py

# Real drivers of seven languages, all at once, through three connections.
test-drivers:
	@tests/prerequisites.sh drivers
	cargo build --release --locked
	python3 tests/drivers/run.py $(ARGS)
