#!/usr/bin/env bash
# Plants mechanical mutations in the code that decides and does no I/O, and runs its unit tests against each: a mutant that
# survives is a decision that no test holds. Part of the long form: it compiles the library once for each mutant.
#
#   scripts/mutants.sh                 # everything
#   scripts/mutants.sh --shard 0/8     # an eighth of it
#
# Needs cargo-mutants (cargo install --locked cargo-mutants).
set -euo pipefail
cd "$(dirname "$0")/.."

if ! cargo mutants --version >/dev/null 2>&1; then
  echo "cargo-mutants is not installed: cargo install --locked cargo-mutants" >&2
  exit 2
fi

files=(
  src/replication/quorum.rs
  src/replication/read_repair.rs
  src/replication/standing.rs
  src/engine/compact/picker.rs
  src/hlc.rs
  src/cluster/assign.rs
)
arguments=()
for file in "${files[@]}"; do arguments+=(--file "$file"); done

# Optimized code would take far longer to compile than these tests take to run.
export CARGO_PROFILE_DEV_OPT_LEVEL=0
exec cargo mutants "${arguments[@]}" --timeout 120 "$@" -- --lib
