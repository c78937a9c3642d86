#!/usr/bin/env bash
# Builds kvstore, starts three nodes on 8081–8083, loads the cities of the world, verifies every copy, tries every
# endpoint, kills a node and brings it back, and cleans up.
#
#   ./ingress_script.sh          run and clean up
#   ./ingress_script.sh --keep   leave the ring running (data in ./data) and say how to talk to it
#
#   BASE_PORT=9081   use 9081–9083
set -euo pipefail
cd "$(dirname "$0")"
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

KEEP=""
case "${1:-}" in
  "") ;;
  --keep) KEEP=1 ;;
  -h | --help) sed -n '2,8s/^# \{0,1\}//p' "$0"; exit 0 ;;
  *) say "usage: $0 [--keep]" >&2; exit 2 ;;
esac
CITIES=tests/data/cities/cities.jsonl.gz

step "1. Build"
build
say "  $("$BIN" --version)"

step "2. Three nodes"
require_ports "${BASE_PORT:-8081}"
if [ -n "$KEEP" ]; then
  DATA_DIR=./data
  trap 'status=$?; [ "$status" = 0 ] || stop_ring; exit $status' EXIT
  trap 'exit 130' INT TERM
else
  temporary_data
fi
start_ring
for i in 1 2 3; do say "  node $i: $(url "$i")  process ${PIDS[i]}"; done
expect_match "every node sees three members, N=3 W=2 R=2" '*"replication_factor":3*"write_quorum":2*"read_quorum":2*' \
  "$(curl -s -m 30 "$(url 1)/cluster/status" | tr -d ' \n')"

step "3. Load the cities of the world through all three nodes"
COUNT=$(gzip -dc "$CITIES" | wc -l)
ANSWERS="$DATA_DIR/answers"
BEGAN=$(now_ms)
# Batches of 1,000 lines, one node after the other.
gzip -dc "$CITIES" | split -l 1000 -a 3 - "$DATA_DIR/batch."
turn=0
for batch in "$DATA_DIR"/batch.*; do
  { printf '{"items":['; paste -sd, "$batch"; printf ']}'; } |
    curl -s -m 30 -X POST "$(url $((turn % 3 + 1)))/batch" -H "Content-Type: application/json" --data-binary @- -w '\n'
  turn=$((turn + 1))
done >"$ANSWERS"
LOAD_MS=$(($(now_ms) - BEGAN))
expect "every batch was answered 'Batch Processed'" "$(((COUNT + 999) / 1000))" "$(grep -c '^Batch Processed$' "$ANSWERS" || true)"
rm -f "$ANSWERS" "$DATA_DIR"/batch.*
say "  $COUNT records in $LOAD_MS ms: $(rate "$COUNT" "$LOAD_MS") records a second, each on two disks at least"

step "4. Verify replication: every node's own copy, whole"
# With three replicas on three nodes, a scan with r=1 is answered by the node's own disk.
# The last write of a batch may still be on its way to the third replica.
own_count() { curl -s -m 30 "$(url "$1")/scan?prefix=city:&r=1" | grep -o '"city:[A-Z][A-Z]:[0-9]*":' | wc -l; }
own_copy_is_whole() { [ "$(own_count "$1")" = "$COUNT" ]; }
for i in 1 2 3; do
  if eventually 10 own_copy_is_whole "$i"; then pass "node $i holds all $COUNT cities"; else fail "node $i holds $(own_count "$i") of $COUNT"; fi
done
expect "distinct copies, compared to the byte" 1 "$(for i in 1 2 3; do curl -s -m 30 "$(url "$i")/scan?prefix=city:&r=1" | cksum; done | sort -u | wc -l)"
NEW_YORK='{"name":"New York City","country":"US","admin1":"NY","latitude":40.7143,"longitude":-74.006,"population":8804190,"timezone":"America/New_York"}'
for i in 1 2 3; do expect "node $i knows New York City" "$NEW_YORK" "$(get "$i" city:US:5128581)"; done

step "5. Every endpoint"
expect "POST /put" "OK" "$(curl -s -m 30 -X POST "$(url 1)/put" -H "Content-Type: application/json" -d '{"key":"user:1001","value":"Alice Smith"}')"
expect "GET /get" "Alice Smith" "$(curl -s -m 30 "$(url 1)/get?key=user:1001")"
expect "HEAD /get" 200 "$(code -I "$(url 2)/get?key=user:1001")"
expect "GET /get of a missing key" "Not Found" "$(get 1 no:such:key)"
expect "POST /batch" "Batch Processed" "$(curl -s -m 30 -X POST "$(url 1)/batch" -H "Content-Type: application/json" \
  -d '{"items":[{"key":"product:101","value":"Laptop"},{"key":"product:102","value":"Mouse"},{"key":"product:103","value":"Keyboard"}]}')"
expect "GET /scan, both ends included" '{"product:101":"Laptop","product:102":"Mouse","product:103":"Keyboard"}' \
  "$(curl -s -m 30 "$(url 2)/scan?start=product:101&end=product:103")"
page=$(curl -s -m 30 -D - "$(url 3)/scan?prefix=product:&limit=2" | tr -d '\r')
cursor=$(sed -n 's/^[Xx]-[Nn]ext-[Cc]ursor: //p' <<<"$page")
expect "GET /scan with a limit: the first page" '{"product:101":"Laptop","product:102":"Mouse"}' "$(tail -n 1 <<<"$page")"
expect "GET /scan with its cursor: the rest" '{"product:103":"Keyboard"}' "$(curl -s -m 30 "$(url 1)/scan?prefix=product:&limit=2&cursor=$cursor")"
expect "POST /delete" "Deleted" "$(curl -s -m 30 -X POST "$(url 2)/delete?key=user:1001")"
expect "a deleted key is gone on another node" "Not Found" "$(curl -s -m 30 "$(url 3)/get?key=user:1001")"
expect_match "GET /metrics" '*"writes"*"reads"*"batches"*"scans"*"deletes"*"errors"*"compactions"*"flushes"*"wal_syncs"*' "$(curl -s -m 30 "$(url 1)/metrics" | tr -d '\n')"
expect_match "GET /metrics for Prometheus" '*# TYPE kvstore_*' "$(curl -s -m 30 -H 'Accept: text/plain' "$(url 1)/metrics" | tr '\n' ' ')"
expect_match "GET /health" '*"status":"healthy"*' "$(curl -s -m 30 "$(url 1)/health" | tr -d ' ')"
expect "GET /livez" 200 "$(code "$(url 1)/livez")"
expect "GET /readyz" 200 "$(code "$(url 1)/readyz?verbose")"
expect_match "GET /cluster/status" '*"node_id"*"nodes"*"hints_pending"*' "$(curl -s -m 30 "$(url 1)/cluster/status" | tr -d '\n')"
expect_match "GET /ring of a key" '*"token"*"range"*"primaries"*"fallbacks"*' "$(curl -s -m 30 "$(url 1)/ring?key=city:US:5128581" | tr -d '\n')"
expect_match "GET /explain: all three replicas hold the value" '*"state":"value"*"state":"value"*"state":"value"*' \
  "$(curl -s -m 30 "$(url 1)/explain?key=city:US:5128581" | tr -d ' \n')"
expect "a malformed body is refused" 400 "$(code -X POST "$(url 1)/put" -d '{')"
expect "an unknown path is refused" 404 "$(code "$(url 1)/nowhere")"
expect "a wrong method is refused" 405 "$(code "$(url 1)/put")"

step "6. Consistency"
expect "written on node 2 …" "OK" "$(put 2 cross:node data-from-n2)"
expect "… read on node 3 at once" "data-from-n2" "$(get 3 cross:node)"
put 1 versioned:key v1 >/dev/null
put 2 versioned:key v2 >/dev/null
for i in 1 2 3; do expect "node $i has the newer version" "v2" "$(get "$i" versioned:key)"; done

step "7. A node is killed and comes back"
kill_node 3
expect "written while node 3 is down" "OK" "$(put 1 quorum:test data)"
expect "read while node 3 is down" "data" "$(get 2 quorum:test)"
start_node 3
wait_ring
if eventually 10 local_has 3 quorum:test data; then pass "node 3 was sent what it missed"; else fail "node 3 still misses the write"; fi

step "8. Rates, on this machine, all three nodes and the client on it"
if command -v hey >/dev/null 2>&1; then
  hey -n 10000 -c 50 -m POST -H "Content-Type: application/json" -d '{"key":"bench:hey","value":"data"}' "$(url 1)/put" | grep -E 'Requests/sec|99%' | sed 's/^ */  hey put: /'
  hey -n 10000 -c 50 "$(url 1)/get?key=bench:hey" | grep -E 'Requests/sec|99%' | sed 's/^ */  hey get: /'
fi
"$BIN" bench --targets "$(url 1)" --duration 3s --connections 50 --read-percent 0 | sed 's/^/  /'
"$BIN" bench --targets "$(url 1)" --duration 3s --connections 50 --read-percent 100 | sed 's/^/  /'
say "  load: $(rate "$COUNT" "$LOAD_MS") records/s in batches of 1,000"
for i in 1 2 3; do
  say "  node $i: $(metric "$i" writes) puts, $(metric "$i" reads) gets, $(metric "$i" batches) batches, $(metric "$i" scans) scans, $(metric "$i" wal_syncs) log syncs, $(metric "$i" errors) errors"
done

if [ -n "$KEEP" ]; then
  finish
  step "The ring is running"
  say "  curl \"$(url 1)/get?key=city:US:5128581\""
  say "  curl -X POST $(url 2)/put -d '{\"key\":\"hello\",\"value\":\"world\"}'"
  say "  curl \"$(url 3)/scan?prefix=city:IS:\""
  say "  curl $(url 1)/cluster/status"
  say "  stop it:  kill ${PIDS[*]}"
else
  stop_ring
  finish
fi
