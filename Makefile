# The usual commands by their usual names. `make` alone lists them.
.DEFAULT_GOAL := help
.PHONY: help build run ring test bench fmt lint deny docker completions man

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## target/release/kvstore
	cargo build --release --bin kvstore

run: ## One node on port 8081, data in ./data
	cargo run --release --bin kvstore

ring: ## Three nodes on 8081 to 8083 with real data, left running
	./ingress_script.sh --keep

test: ## The whole suite
	./test_cluster.sh

bench: ## Request path beside bare HTTP, then the engine (minutes)
	benches/request_path.sh
	cargo bench --bench engine

fmt: ## Formats the sources
	cargo fmt

lint: ## Format, clippy and documentation, warnings refused
	cargo fmt --check
	cargo clippy --all-targets --all-features -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --all-features

deny: ## Known holes, licences and sources of all crates (needs cargo-deny)
	cargo deny check

docker: ## The image kvstore:latest, from a binary built here (`docker build .` compiles inside)
	cargo build --release --bin kvstore
	docker build --target from-host -t kvstore:latest .

completions: build ## Completion scripts for bash, zsh and fish, in target/completions
	mkdir -p target/completions
	target/release/kvstore completions bash > target/completions/kvstore.bash
	target/release/kvstore completions zsh > target/completions/_kvstore
	target/release/kvstore completions fish > target/completions/kvstore.fish

man: build ## Manual pages of all commands, in target/man
	target/release/kvstore man target/man
