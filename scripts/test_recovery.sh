#!/usr/bin/env bash
# kill -9 under load, restart, and every acknowledged write is there: first one node at a time, then all three at once.
#
#   ROUNDS=3   how often
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

build
choose_ports
temporary_data
start_ring
all="$(url 1),$(url 2),$(url 3)"

# load_while NAME COMMAND…: writes through all three nodes for three seconds; the command runs in the middle.
load_while() {
  local record="$DATA_DIR/$1.record"
  "$BIN" bench --targets "$all" --connections 30 --duration 3s --read-percent 0 --record "$record" >"$DATA_DIR/$1.out" 2>&1 &
  local load=$!
  sleep 1
  "${@:2}"
  wait "$load" || true # nodes were killed: some requests failed, and should have
  grep -E '^(put|longest)' "$DATA_DIR/$1.out" | sed 's/^/  /'
}

verify() { "$BIN" bench --verify "$DATA_DIR/$1.record" --targets "$all" >"$DATA_DIR/$1.verified" 2>&1; }

kill_all() { for i in 1 2 3; do kill_node "$i"; done; }

for ((round = 1; round <= ${ROUNDS:-3}; round++)); do
  victim=$((round % 3 + 1))
  step "Round $round: node $victim is killed under load"
  load_while "one-$round" kill_node "$victim"
  start_node "$victim"
  wait_ring
  if verify "one-$round"; then pass "$(cat "$DATA_DIR/one-$round.verified")"; else fail "$(cat "$DATA_DIR/one-$round.verified")"; fi

  step "Round $round: all three nodes are killed under load"
  load_while "all-$round" kill_all
  for i in 1 2 3; do start_node "$i"; done
  wait_ring
  if verify "all-$round"; then pass "$(cat "$DATA_DIR/all-$round.verified")"; else fail "$(cat "$DATA_DIR/all-$round.verified")"; fi
done

step "Everything once more, from all rounds"
for record in "$DATA_DIR"/*.record; do
  name=$(basename "$record" .record)
  if verify "$name"; then pass "$name: $(cat "$DATA_DIR/$name.verified")"; else fail "$name: $(cat "$DATA_DIR/$name.verified")"; fi
done
finish
