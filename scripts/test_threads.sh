#!/usr/bin/env bash
# What several threads of the engine use at once (arena, skiplist, key index, commit queue): every order of their steps with up to
# PREEMPTIONS preemptions, and the same tests under Miri and ThreadSanitizer where a nightly toolchain has what they need.
set -euo pipefail
cd "$(dirname "$0")/.."
PREEMPTIONS="${PREEMPTIONS:-2}"
LIMIT="${LIMIT:-3600}" # seconds that each of the three may take
PARTS=(engine::arena engine::skiplist engine::key_index engine::commit_queue engine::interleave)

printf '== every order of steps with up to %s preemptions\n' "$PREEMPTIONS"
INTERLEAVE_PREEMPTIONS="$PREEMPTIONS" timeout "$LIMIT" cargo test --all-features --lib -- --nocapture "${PARTS[@]}"

printf '== Miri\n'
if cargo +nightly miri --version >/dev/null 2>&1; then
  MIRIFLAGS="-Zmiri-disable-isolation" timeout "$LIMIT" cargo +nightly miri test --all-features --lib -- "${PARTS[@]:0:3}" --skip interleavings
else
  printf 'skipped: no nightly toolchain with the component miri\n'
fi

printf '== ThreadSanitizer\n'
target="$(rustc -vV | sed -n 's/^host: //p')"
if [ -d "$(rustc +nightly --print sysroot 2>/dev/null)/lib/rustlib/src" ]; then
  RUSTFLAGS="-Zsanitizer=thread" timeout "$LIMIT" cargo +nightly test -Zbuild-std --target "$target" --all-features --lib -- "${PARTS[@]:0:3}" --skip interleavings
else
  printf 'skipped: no nightly toolchain with the component rust-src\n'
fi
