#!/usr/bin/env bash
# A node is killed and restarted under load: how many requests were refused, and how long was nobody answered.
# The client talks to the two nodes that stay, as behind a load balancer that has taken the third out.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

build
choose_ports
temporary_data
start_ring

step "50 connections, 70% reads, nine seconds; node 3 dies after three and is back after six"
"$BIN" bench --targets "$(url 1),$(url 2)" --connections 50 --duration 9s --read-percent 70 --record "$DATA_DIR/writes" >"$DATA_DIR/load" 2>&1 &
load=$!
sleep 3
kill_node 3
say "  node 3 killed"
sleep 3
start_node 3
wait_ready 3
say "  node 3 ready again"
wait "$load" || true
sed 's/^/  /' "$DATA_DIR/load"

failed=$(awk '/^(put|get) /{ n += $4 } END { print n + 0 }' "$DATA_DIR/load")
gap=$(sed -n 's/^longest time without an answer: \([0-9]*\) ms/\1/p' "$DATA_DIR/load")
say "  requests refused or failed: $failed;  longest gap: $gap ms"
if [ "$gap" -le 1000 ]; then pass "nobody waited longer than a second"; else fail "nothing was answered for $gap ms"; fi
expect "requests refused or failed" 0 "$failed"
if "$BIN" bench --verify "$DATA_DIR/writes" --targets "$(url 1),$(url 2),$(url 3)" >"$DATA_DIR/verified" 2>&1; then
  pass "$(cat "$DATA_DIR/verified")"
else
  fail "$(cat "$DATA_DIR/verified")"
fi
finish
