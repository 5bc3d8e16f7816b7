# Works on a fresh clone with a Rust toolchain; scripts/setup installs what else is missing. Two targets want more:
# test-versions needs npm, node, pip and the network, from which it takes the servers; lint and fmt need the toolchain's
# components clippy and rustfmt.

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-bare test-versions fuzz bench bench-micro faults lint fmt doc audit

help: ## list of targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 16

setup: ## install what is missing: a Postgres server, a C compiler
	scripts/setup

demo: setup ## watch rows of a throw-away Postgres arrive at a receiver; DEMO="--messages 20" ends by itself
	cargo run --example demo -- $(DEMO)

test: setup ## all tests, against a real Postgres; RUNNER=cargo does without nextest
	scripts/test $(RUNNER)

test-bare: ## the same on a bare Debian made by debootstrap, in a chroot; needs root, debootstrap and the network
	scripts/test-bare

test-versions: ## the core tests on Postgres 14 to 18, of 15 and 18 two builds each; needs npm, pip and the network
	scripts/test-versions

fuzz: ## decoder, frames, values and messages, FUZZ_SECONDS each (60); needs a nightly toolchain and cargo-fuzz
	mkdir -p fuzz/artifacts
	for target in decoder frames value message; do \
		cargo +nightly fuzz run $$target -- -max_total_time=$(or $(FUZZ_SECONDS),60) -max_len=4096 -timeout=20 \
			-malloc_limit_mb=64 -rss_limit_mb=1024 || exit 1; \
	done

bench: setup ## side by side with pg_recvlogical, in a release build; BENCH="--quick" to try it
	cargo bench --bench side_by_side -- $(BENCH)

faults: setup ## inject every fault alone and print the seconds until it is told and cleared; FAULT=name for some
	scripts/faults $(FAULT)

bench-micro: ## decoder, record, scheduler, store on their own
	cargo bench --bench decoder --bench record --bench scheduler
	cargo bench --bench store

lint: ## formatting and clippy; needs the components rustfmt and clippy
	cargo fmt --check
	cargo clippy --all-targets -- -D warnings

fmt: ## format
	cargo fmt

doc: ## the documentation of the code, private parts too; warnings are errors
	RUSTDOCFLAGS="-D warnings -A rustdoc::private_intra_doc_links" cargo doc --no-deps --document-private-items

audit: ## licences, sources, duplicates and known vulnerabilities of the dependencies; needs cargo-deny
	scripts/audit
