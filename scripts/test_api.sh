#!/usr/bin/env bash
# openapi.json against a live ring: schemathesis makes requests of it, good ones and bad ones, for a minute, and compares what
# is answered with what is described: status codes, content types, headers, bodies, methods, and that bad ones are refused.
#
# Runs wherever schemathesis is (pip install schemathesis); otherwise it says that it was skipped, and succeeds.
#
#   scripts/test_api.sh
#   SECONDS_MAX=600 EXAMPLES=1000        for longer, with more requests an operation
#   SCHEMATHESIS=venv/bin/schemathesis   where it is
#   REQUIRE_SCHEMATHESIS=1               to be skipped is a failure
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

schemathesis=$(command -v "${SCHEMATHESIS:-schemathesis}") || {
  say "SKIPPED: openapi.json was not compared with a live ring: there is no schemathesis (pip install schemathesis)"
  [ -z "${REQUIRE_SCHEMATHESIS:-}" ] || exit 1
  exit 0
}
schemathesis=$(realpath -s "$schemathesis") # it is run from another directory
config=$PWD/scripts/schemathesis.toml

build
choose_ports
temporary_data
start_ring

errors_before=() # a node that is not ready says so with 503
for i in 1 2 3; do errors_before[i]=$(metric "$i" errors); done

step "$("$schemathesis" --version), for ${SECONDS_MAX:-60} s"
# /events has no end, and what follows /internal/rpc is no HTTP. What is described before it is there says x-not-yet.
arguments=(
  "$(url 1)/openapi.json" --exclude-path /events --exclude-path /internal/rpc --exclude-by '/x-not-yet == true'
  --phases "examples,coverage,fuzzing" --max-examples "${EXAMPLES:-50}" --max-time "${SECONDS_MAX:-60}" --request-timeout 10
  --warnings off --suppress-health-check all
)
# Whatever it keeps goes with the data.
if (cd "$DATA_DIR" && NO_COLOR=1 "$schemathesis" --config-file "$config" run "${arguments[@]}" >schemathesis.log 2>&1); then
  pass "it is true: $(grep ' generated' "$DATA_DIR/schemathesis.log" | sed 's/^ *//')"
else
  cat "$DATA_DIR/schemathesis.log"
  fail "schemathesis found the description to be wrong, or was not able to look"
fi
for i in 1 2 3; do
  expect "answers of 500 and above by node $i" "${errors_before[i]}" "$(metric "$i" errors)"
  kill -0 "${PIDS[i]}" 2>/dev/null || fail "node $i has ended"
done

stop_ring
finish
