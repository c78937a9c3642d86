#!/usr/bin/env bash
# What else is promised about speed and size: batches, scans, tails at 70% of the peak, start, memory. Prints one line a figure.
#
#   KEYS=1000000 SECONDS_EACH=10 ROUNDS=5   the defaults; about seven minutes and 4 GiB of disk
#
# Tails are taken in rounds, beside a bare server's at 70% of its own peak: on a machine that is slower at some times, 70% of a peak
# may be more than all that it can do a second later.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

KEYS="${KEYS:-1000000}" SECONDS_EACH="${SECONDS_EACH:-10}" ROUNDS="${ROUNDS:-5}"
build
build_bare
NODE_COUNT=4 choose_ports # three of a ring, and the bare server
temporary_data

resident() { awk -v name="$2" '$1 == name ":" { printf "%d", $2 / 1024 }' "/proc/${PIDS[$1]}/status"; }
bench() { "$BIN" bench "$@"; }
field() { grep -E "^$1 " | sed -E "s|.* $2 ([0-9.]+) ms.*|\1|"; }
rate_of() { grep -E "^$1 " | sed -E 's|.* ([0-9]+)/s .*|\1|'; }
targets() { printf '%s,%s,%s' "$(url 1)" "$(url 2)" "$(url 3)"; }
# milliseconds COMMAND…: how long it took.
milliseconds() { local began; began=$(now_ms); "$@" >/dev/null; echo $(($(now_ms) - began)); }

step "Three nodes"
start_ring
say "a node at rest: $(resident 1 VmRSS) MiB"

step "Batches of 1,000 unique keys with 100-byte values, W = 2, eight connections, all nodes"
bench --targets "$(targets)" --connections 8 --requests $((KEYS / 1000)) --read-percent 0 --batch 1000 | grep -E '^(put|items)'
say "a node now: $(resident 1 VmRSS) MiB, $(resident 1 VmHWM) MiB at most"

step "Scans of those $KEYS keys, R = 2"
for i in 1 2 3; do
  ms=$(milliseconds curl -s -m 120 "$(url "$i")/scan")
  say "everything, through node $i: $ms ms, $(rate "$KEYS" "$ms") keys a second"
done
cursor="" pages=()
for ((page = 1; page <= 100; page++)); do
  out=$(curl -s -D "$DATA_DIR/head" -o /dev/null -w '%{time_total}' "$(url 1)/scan?limit=1000${cursor:+&cursor=$cursor}")
  pages+=("$(awk -v s="$out" 'BEGIN { printf "%.2f", s * 1000 }')")
  cursor=$(tr -d '\r' <"$DATA_DIR/head" | sed -n 's/^[Xx]-[Nn]ext-[Cc]ursor: //p')
done
say "a page of 1,000: median of pages 1 to 20 $(printf '%s\n' "${pages[@]:0:20}" | median) ms, of pages 81 to 100 $(printf '%s\n' "${pages[@]:80}" | median) ms"
say "a node now: $(resident 1 VmRSS) MiB, $(resident 1 VmHWM) MiB at most"
stop_ring

step "Tails at 70% of the peak, medians of $ROUNDS rounds; memtables of 8 MiB, so that flushes and compactions run"
NODE_ENV=(MEMTABLE_SIZE=8MiB)
rm -rf "${DATA_DIR:?}"/node*
start_ring
start_bare 4
NODE_COUNT=4 # it is stopped with the others
# tail_of WHAT SERVER OPTION…: peak, then 70% of it. A line of SERVER RATE P50 P99 P999 in $DATA_DIR/tails.
tail_of() {
  local what=$1 server=$2 load out peak
  load=(--targets "$(url "$server")" --connections 64 --read-percent "$([ "$what" = put ] && echo 0 || echo 100)" "${@:3}")
  peak=$(bench "${load[@]}" --duration 2s | rate_of "$what")
  out=$(bench "${load[@]}" --duration "$((SECONDS_EACH / 2))s" --rate $((peak * 7 / 10)))
  printf '%s %s %s %s %s\n' "$server" $((peak * 7 / 10)) "$(field "$what" p50 <<<"$out")" "$(field "$what" p99 <<<"$out")" "$(field "$what" p99.9 <<<"$out")" >>"$DATA_DIR/tails"
}
# tails SERVER: the medians, and every round's p99.9.
tails() {
  local column figures=()
  for column in 2 3 4 5; do figures+=("$(awk -v s="$1" -v c="$column" '$1 == s { print $c }' "$DATA_DIR/tails" | median)"); done
  printf '%s/s, p50 %s ms, p99 %s ms, p99.9 %s ms (%s)' "${figures[@]}" "$(awk -v s="$1" '$1 == s { printf "%s%s", n++ ? ", " : "", $5 }' "$DATA_DIR/tails")"
}
for what in put get; do
  rm -f "$DATA_DIR/tails"
  writer=""
  if [ "$what" = get ]; then # flushes go on while it is read: 4,000 items a second, in batches, which share their syncs
    bench --targets "$(url 2)" --connections 1 --duration "$((ROUNDS * (SECONDS_EACH + 6)))s" --read-percent 0 --batch 100 --rate 40 >/dev/null &
    writer=$!
  fi
  flushes=$(metric 1 flushes) compactions=$(metric 1 compactions)
  for ((round = 1; round <= ROUNDS; round++)); do
    tail_of "$what" 1
    tail_of "$what" 4 --unchecked
  done
  say "$what, three nodes: $(tails 1); meanwhile $(($(metric 1 flushes) - flushes)) flushes and $(($(metric 1 compactions) - compactions)) compactions"
  say "$what, bare server: $(tails 4)"
  [ -z "$writer" ] || wait "$writer"
done
say "one client alone: put p50 $(bench --targets "$(url 1)" --connections 1 --duration 3s --read-percent 0 | field put p50) ms, get p50 $(bench --targets "$(url 1)" --connections 1 --duration 3s --read-percent 100 | field get p50) ms"
stop_ring

step "Start of one node with 1 GiB in tables"
NODE_ENV=(KVSTORE_PEERS=)
NODE_COUNT=1
peers_of() { :; }
rm -rf "${DATA_DIR:?}"/node*
start_node 1
wait_ready 1
bench --targets "$(url 1)" --connections 4 --requests 1024 --read-percent 0 --batch 64 --value-size 16384 | grep -E '^items' # incompressible: each fills a block
stop_node 1
say "on disk: $(du -sm "$DATA_DIR/node1" | cut -f1) MiB"
# restart: starts it again; says how long until it took requests, and what it replayed.
restart() {
  local began
  began=$(now_ms)
  start_node 1
  wait_ready 1
  say "$1: ready in $(($(now_ms) - began)) ms; $(grep -h "data recovered" "$DATA_DIR/node1/output.log" | tail -n 1 | sed 's/.*recovered //')"
}
restart "after a clean stop"
bench --targets "$(url 1)" --connections 8 --requests 380 --read-percent 0 --batch 1000 | grep -E '^items' # a log nearly full
kill_node 1
say "logs: $(du -cm "$DATA_DIR"/node1/data/*.log | tail -n 1 | cut -f1) MiB"
restart "after kill -9"
