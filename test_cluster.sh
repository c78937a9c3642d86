#!/usr/bin/env bash
# The whole suite: all tests, each with a limit on its time, then scenarios on a ring of three real processes.
#
#   ./test_cluster.sh              both
#   ./test_cluster.sh --cluster    the scenarios alone
#   ./test_cluster.sh --all        both, and what lies in deploy/, the description of the API against a ring, the status page
#                                  in a browser and the ring in containers, where this machine has the tools; what is skipped
#                                  says so
set -euo pipefail
cd "$(dirname "$0")"
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

case "${1:-}" in
  "" | --all)
    step "All tests"
    run_tests
    build
    [ "${1:-}" = --all ] && more=(deploy api page compose) || more=()
    for script in "${more[@]}"; do
      step "scripts/test_$script.sh"
      KVSTORE_SKIP_BUILD=1 "scripts/test_$script.sh"
    done
    ;;
  --cluster) ;;
  -h | --help) sed -n '2,8s/^# \{0,1\}//p' "$0"; exit 0 ;;
  *) say "usage: $0 [--cluster | --all]" >&2; exit 2 ;;
esac

step "Three nodes"
build
choose_ports
temporary_data
start_ring
for i in 1 2 3; do say "  node $i: $(url "$i")  process ${PIDS[i]}"; done

step "Scenario 1: written on one node, read on another"
expect "put on node 1" "OK" "$(put 1 test:1 hello)"
expect "get on node 2" "hello" "$(get 2 test:1)"
expect "put on node 2" "OK" "$(put 2 cross:node data-from-n2)"
expect "get on node 3, at once" "data-from-n2" "$(get 3 cross:node)"

step "Scenario 2: a batch of a hundred, and a scan"
batch=$(for i in {1..100}; do printf '{"key":"prod:%d","value":"item-%d"}\n' "$i" "$i"; done | paste -sd, -)
expect "batch on node 1" "Batch Processed" "$(curl -s -m 10 -X POST "$(url 1)/batch" -d "{\"items\":[$batch]}")"
expect "scan of all of them on node 2" 100 "$(curl -s -m 10 "$(url 2)/scan?prefix=prod:" | grep -o '"prod:[0-9]*":' | wc -l)"
# Keys are ordered bytewise, so from prod:1 to prod:50 lie prod:1, prod:10 … prod:19, prod:100, and so on.
want=$(for i in {1..100}; do echo "prod:$i"; done | LC_ALL=C awk '$0 >= "prod:1" && $0 <= "prod:50"' | wc -l)
expect "scan from prod:1 to prod:50 on node 3" "$want" "$(curl -s -m 10 "$(url 3)/scan?start=prod:1&end=prod:50" | grep -o '"prod:[0-9]*":' | wc -l)"

step "Scenario 3: delete and verify"
put 1 temp:1 delete-me >/dev/null
expect "it is there" "delete-me" "$(get 1 temp:1)"
expect "delete on node 2" "Deleted" "$(delete 2 temp:1)"
for i in 1 2 3; do expect "node $i says so" "Not Found" "$(get "$i" temp:1)"; done
expect "deleting what is not there" "Deleted" "$(delete 1 never:was)"

step "Scenario 4: all replicas agree"
put 1 consistency:test v1 >/dev/null
for i in 1 2 3; do expect "node $i" "v1" "$(get "$i" consistency:test)"; done
put 1 versioned:key v1 >/dev/null
put 3 versioned:key v2 >/dev/null
for i in 1 2 3; do expect "node $i has version 2" "v2" "$(get "$i" versioned:key)"; done

step "Scenario 5: a quorum with a node killed"
expect "written while all are up" "OK" "$(put 1 quorum:before data)"
kill_node 3
expect "an older write is still read" "data" "$(get 1 quorum:before)"
expect "a new write is taken" "OK" "$(put 1 quorum:test data)"
expect "and read on the other node" "data" "$(get 2 quorum:test)"
expect "a delete is taken" "Deleted" "$(delete 2 quorum:before)"
if wait_state 1 3 down 5; then pass "node 1 has noticed"; else fail "node 1 has not noticed"; fi
expect "a write that wants all three is refused" 503 "$(code -X POST "$(url 1)/put?w=3" -d '{"key":"quorum:all","value":"x"}')"
expect "a read of one replica is answered" "data" "$(curl -s -m 10 "$(url 2)/get?key=quorum:test&r=1")"

step "Scenario 6: hinted handoff"
for i in {1..50}; do put $((i % 2 + 1)) "missed:$i" "value-$i" >/dev/null; done
expect_match "nodes 1 and 2 keep hints" "[1-9]*" "$(($(hints_of 1) + $(hints_of 2)))"
start_node 3
wait_ring
no_hints_left() { [ "$(($(hints_of 1) + $(hints_of 2)))" = 0 ]; }
if eventually 12 no_hints_left; then pass "all hints were delivered"; else fail "hints are left"; fi
missing=0
for i in {1..50}; do local_has 3 "missed:$i" "value-$i" || missing=$((missing + 1)); done
expect "node 3's own copies, of 50: missing" 0 "$missing"
expect "the delete reached it too" "Not Found" "$(curl -s -m 10 "$(url 3)/get?key=quorum:before&r=1")"

step "Scenario 7: all nodes are killed at once and come back"
for i in {1..20}; do put 1 "power:$i" "value-$i" >/dev/null; done
for i in 1 2 3; do kill_node "$i"; done
for i in 1 2 3; do start_node "$i"; done
wait_ring
missing=0
for i in {1..20}; do [ "$(get 2 "power:$i")" = "value-$i" ] || missing=$((missing + 1)); done
expect "acknowledged writes missing" 0 "$missing"

step "Scenario 8: a graceful stop"
stop_node 2
expect "the others go on" "value-1" "$(get 1 power:1)"
start_node 2
wait_ring
expect "node 2 is back" "value-1" "$(get 2 power:1)"

stop_ring
finish
