# Shared by every script here: building, starting and stopping a ring of its own, checking answers.
# Sourced, not run. Whoever sources it has `set -euo pipefail` and stands in the repository's root.
#
# A script ends only processes that it started itself, by their process ids. A port that is taken is reported;
# its owner is left alone.
# shellcheck shell=bash

BIN="${BIN:-${CARGO_TARGET_DIR:-target}/release/kvstore}"
NODE_COUNT="${NODE_COUNT:-3}"
PORTS=()     # PORTS[i]: node i's port, from 1
PIDS=()      # PIDS[i]: node i's process, empty while it is down
DATA_DIR=""  # holds node1, node2, …
NODE_ENV=()  # settings for every node, NAME=value
STOP_SECONDS="${STOP_SECONDS:-30}"  # how long a node may take to stop
SUITE_SECONDS="${SUITE_SECONDS:-900}"  # how long all tests together may take where they have no limits of their own
FAILED=0
PASSED=0

if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then
  BOLD=$'\e[1m' GREEN=$'\e[32m' RED=$'\e[31m' PLAIN=$'\e[0m'
else
  BOLD="" GREEN="" RED="" PLAIN=""
fi

say() { printf '%s\n' "$*"; }
step() { printf '\n%s%s%s\n' "$BOLD" "$*" "$PLAIN"; }
pass() { PASSED=$((PASSED + 1)); printf '  %sok%s    %s\n' "$GREEN" "$PLAIN" "$*"; }
fail() { FAILED=$((FAILED + 1)); printf '  %sFAIL%s  %s\n' "$RED" "$PLAIN" "$*"; }
die() { printf '%serror:%s %s\n' "$RED" "$PLAIN" "$*" >&2; exit 1; }

# expect NAME WANTED GOT: counts a check.
expect() {
  if [ "$2" = "$3" ]; then pass "$1"; else fail "$1: wanted '$2', got '${3:0:300}'"; fi
}

# expect_match NAME PATTERN GOT: counts a check; the pattern is bash's (`*` matches anything).
expect_match() {
  # shellcheck disable=SC2053  # the pattern is meant as one
  if [[ "$3" == $2 ]]; then pass "$1"; else fail "$1: wanted '$2', got '${3:0:300}'"; fi
}

need() { command -v "$1" >/dev/null 2>&1 || die "$1 is needed and was not found"; }

now_ms() { date +%s%3N; }

# median: that of numbers, a line each.
median() { sort -g | awk '{ v[++n] = $1 } END { print v[int((n + 1) / 2)] }'; }

# rate COUNT MILLISECONDS: events a second.
rate() { awk -v n="$1" -v ms="$2" 'BEGIN { print int(n * 1000 / (ms + (ms == 0))) }'; }

build() {
  need cargo; need curl; need awk; need gzip
  [ -n "${KVSTORE_SKIP_BUILD:-}" ] || cargo build --release --quiet --bin kvstore
  [ -x "$BIN" ] || die "$BIN was not built"
}

# limited SECONDS COMMAND…: runs a command in a process group of its own, and ends the whole group when the time is up.
limited() {
  local limit=$1 job status=0
  shift
  set -m
  "$@" </dev/null &
  job=$!
  set +m
  # shellcheck disable=SC2064  # the group's number is that of now
  trap "kill -TERM -- -$job 2>/dev/null; exit 130" INT TERM
  local deadline=$((SECONDS + limit))
  while kill -0 "$job" 2>/dev/null; do
    if [ "$SECONDS" -ge "$deadline" ]; then
      say "${RED}error:${PLAIN} not done within $limit s, ended: $*"
      kill -TERM -- "-$job" 2>/dev/null || true
      sleep 5
      kill -KILL -- "-$job" 2>/dev/null || true
      break
    fi
    sleep 0.2
  done
  wait "$job" || status=$?
  trap - INT TERM
  return "$status"
}

# run_tests: all tests of the package, in limited time. cargo-nextest ends the one test that takes too long and goes on
# (.config/nextest.toml). Without it the tests together have a limit; libtest names what runs for more than a minute.
run_tests() {
  need cargo
  if cargo nextest --version >/dev/null 2>&1; then
    limited "$SUITE_SECONDS" cargo test --quiet --all-features --doc
    cargo nextest run --all-features 2>&1 # last, so that its summary closes the output
  else
    say "cargo-nextest is not installed: all tests together have $SUITE_SECONDS s, single tests have no limit"
    cargo test --all-features --no-run
    limited "$SUITE_SECONDS" cargo test --all-features
  fi
}

# build_bare: the server that answers `OK` to everything, for benchmarks.
build_bare() {
  [ -n "${KVSTORE_SKIP_BUILD:-}" ] || cargo build --release --quiet --example bare_http
  [ -x "${BIN%/kvstore}/examples/bare_http" ] || die "examples/bare_http was not built"
}

port_taken() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# choose_ports: free ports below the range that the kernel gives to outgoing connections.
choose_ports() {
  local port i
  for ((i = 1; i <= NODE_COUNT; i++)); do
    while :; do
      port=$((20000 + (RANDOM * 32768 + RANDOM) % 10000))
      if [[ " ${PORTS[*]:-} " != *" $port "* ]] && ! port_taken "$port"; then break; fi
    done
    PORTS[i]=$port
  done
}

# require_ports FIRST: consecutive ports, all of them free.
require_ports() {
  local i
  for ((i = 1; i <= NODE_COUNT; i++)); do
    PORTS[i]=$(($1 + i - 1))
    port_taken "${PORTS[i]}" && die "port ${PORTS[i]} is taken; stop its owner, or choose others with BASE_PORT=9081 $0"
  done
  return 0
}

url() { printf 'http://127.0.0.1:%s' "${PORTS[$1]}"; }

# peers_of I [MEMBER…]: who node I is told about: the other members, all nodes where none are named.
peers_of() {
  local own=$1 i list=""
  shift
  # shellcheck disable=SC2046  # numbers
  [ $# -gt 0 ] || set -- $(seq "$NODE_COUNT")
  for i in "$@"; do
    [ "$i" = "$own" ] || list+="${list:+,}localhost:${PORTS[i]}"
  done
  printf '%s' "$list"
}

# start_node I [MEMBER…]: starts node I on its port and directory, in a ring of these; does not wait.
start_node() {
  local dir="$DATA_DIR/node$1"
  mkdir -p "$dir"
  env "${NODE_ENV[@]}" "$BIN" -port "${PORTS[$1]}" -peers "$(peers_of "$@")" -dir "$dir" >>"$dir/output.log" 2>&1 &
  PIDS[$1]=$!
}

# start_bare I: starts the bare server on port I, and waits until it is there.
start_bare() {
  "${BIN%/kvstore}/examples/bare_http" "${PORTS[$1]}" >"$DATA_DIR/bare.log" 2>&1 &
  PIDS[$1]=$!
  eventually 5 port_taken "${PORTS[$1]}" || die "the bare server did not start"
}

# wait_ready I [SECONDS]: until node I answers /readyz with 200.
wait_ready() {
  local deadline=$(($(date +%s) + ${2:-30}))
  until [ "$(curl -s -o /dev/null -m 1 -w '%{http_code}' "$(url "$1")/readyz")" = 200 ]; do
    if ! kill -0 "${PIDS[$1]}" 2>/dev/null; then
      tail -n 5 "$DATA_DIR/node$1/output.log" >&2
      die "node $1 ended while starting"
    fi
    if [ "$(date +%s)" -ge "$deadline" ]; then
      curl -s -m 1 "$(url "$1")/readyz?verbose" >&2 || true
      die "node $1 is not ready after ${2:-30} s"
    fi
    sleep 0.05
  done
}

# wait_state I J STATE [SECONDS]: until node I believes that node J is in STATE.
wait_state() {
  local deadline=$(($(date +%s) + ${4:-10}))
  until curl -s -m 1 "$(url "$1")/cluster/status" | tr -d ' \n' | grep -q "\"name\":\"127.0.0.1:${PORTS[$2]}\",\"state\":\"$3\""; do
    [ "$(date +%s)" -lt "$deadline" ] || return 1
    sleep 0.05
  done
}

# wait_ring: until every running node is ready and sees every other running node. A node that is ready may still
# refuse a quorum (503) for the moment that it takes to find the others.
wait_ring() {
  local i j
  for ((i = 1; i <= NODE_COUNT; i++)); do [ -z "${PIDS[i]:-}" ] || wait_ready "$i"; done
  for ((i = 1; i <= NODE_COUNT; i++)); do
    for ((j = 1; j <= NODE_COUNT; j++)); do
      [ -z "${PIDS[i]:-}" ] || [ -z "${PIDS[j]:-}" ] || wait_state "$i" "$j" up 30 || die "node $i does not see node $j"
    done
  done
}

# start_ring: starts every node and waits until each is ready and sees all others.
start_ring() {
  local i
  for ((i = 1; i <= NODE_COUNT; i++)); do start_node "$i"; done
  wait_ring
}

# kill_node I: kill -9, as a power cut would.
kill_node() {
  kill -9 "${PIDS[$1]}" 2>/dev/null || true
  wait "${PIDS[$1]}" 2>/dev/null || true
  PIDS[$1]=""
}

# wait_end I: waits until node I, which was asked to stop, has ended. One that takes longer than STOP_SECONDS is a failed
# check and is killed, so that no script waits for it for ever.
wait_end() {
  local deadline=$((SECONDS + STOP_SECONDS))
  while kill -0 "${PIDS[$1]}" 2>/dev/null; do
    if [ "$SECONDS" -ge "$deadline" ]; then
      fail "node $1 (process ${PIDS[$1]}) has not stopped within $STOP_SECONDS s of SIGTERM; killed"
      kill -9 "${PIDS[$1]}" 2>/dev/null || true
      break
    fi
    sleep 0.05
  done
  wait "${PIDS[$1]}" 2>/dev/null || true
  PIDS[$1]=""
}

# stop_node I: asks it to stop and waits.
stop_node() {
  [ -n "${PIDS[$1]:-}" ] || return 0
  kill -TERM "${PIDS[$1]}" 2>/dev/null || true
  wait_end "$1"
}

# stop_ring: asks every running node to stop, then waits for all.
stop_ring() {
  local i
  for ((i = 1; i <= NODE_COUNT; i++)); do
    [ -z "${PIDS[i]:-}" ] || kill -TERM "${PIDS[i]}" 2>/dev/null || true
  done
  for ((i = 1; i <= NODE_COUNT; i++)); do
    [ -z "${PIDS[i]:-}" ] || wait_end "$i"
  done
}

# temporary_data: a directory that goes when the script ends, together with the nodes.
temporary_data() {
  DATA_DIR=$(mktemp -d "${TMPDIR:-/tmp}/kvstore.XXXXXX")
  # shellcheck disable=SC2154  # status is set by the trap itself
  trap 'status=$?; stop_ring; rm -rf "$DATA_DIR"; exit $status' EXIT
  trap 'exit 130' INT TERM
}

get() { curl -s -m 10 -G "$(url "$1")/get" --data-urlencode "key=$2"; }
put() { curl -s -m 10 -X POST "$(url "$1")/put" -d "{\"key\":\"$2\",\"value\":\"$3\"}"; }
delete() { curl -s -m 10 -X POST "$(url "$1")/delete?key=$2"; }
code() { curl -s -m 10 -o /dev/null -w '%{http_code}' "$@"; }

# metric I NAME: a number of node I's /metrics.
metric() { curl -s -m 5 "$(url "$1")/metrics" | tr -d ' \n' | sed -n "s/.*[{,]\"$2\":\([0-9.]*\).*/\1/p"; }

# hints_of I: how many hints node I holds for others.
hints_of() {
  curl -s -m 5 "$(url "$1")/cluster/status" | tr -d ' \n' | grep -o '"hints_pending":[0-9]*' |
    awk -F: '{ n += $2 } END { print n + 0 }'
}

# eventually SECONDS COMMAND…: until the command succeeds.
eventually() {
  local deadline=$(($(date +%s) + $1))
  shift
  until "$@"; do
    [ "$(date +%s)" -lt "$deadline" ] || return 1
    sleep 0.1
  done
}

# local_has I KEY VALUE: node I's own copy, asked with R = 1 (a replica asks itself first).
local_has() { [ "$(curl -s -m 5 -G "$(url "$1")/get" --data-urlencode "key=$2" --data-urlencode r=1)" = "$3" ]; }

# finish: the verdict; fails if any check did.
finish() {
  step "Result"
  if [ "$FAILED" != 0 ]; then
    say "  ${RED}$FAILED of $((PASSED + FAILED)) checks failed${PLAIN}"
    exit 1
  fi
  say "  ${GREEN}all $PASSED checks passed${PLAIN}"
}

# load_rounds READ_PERCENT: loads the running ring through one node and through all three, with 1, 50 and 200
# connections, and with hey when it is installed. Every failed request is a failed check.
load_rounds() {
  local connections targets all result failed
  all="$(url 1),$(url 2),$(url 3)"
  for targets in "$(url 1)" "$all"; do
    for connections in 1 50 200; do
      step "$connections connections, $1% reads, $([ "$targets" = "$all" ] && echo "all three nodes" || echo "one node")"
      result=$("$BIN" bench --targets "$targets" --connections "$connections" --duration "${SECONDS_EACH:-5}s" --read-percent "$1")
      # shellcheck disable=SC2001  # every line, not one
      sed 's/^/  /' <<<"$result"
      failed=$(awk '/ failed /{ n += $4 } END { print n + 0 }' <<<"$(grep -E '^(put|get) ' <<<"$result")")
      expect "requests that failed" 0 "$failed"
    done
  done
  if command -v hey >/dev/null 2>&1; then
    step "hey: one key, 50 connections"
    put 1 hey:key data >/dev/null
    if [ "$1" -lt 100 ]; then
      hey -n 20000 -c 50 -m POST -H "Content-Type: application/json" -d '{"key":"hey:key","value":"data"}' "$(url 1)/put" |
        grep -E 'Requests/sec|50% in|99% in|\[[0-9]+\]' | sed 's/^ */  put  /'
    fi
    if [ "$1" -gt 0 ]; then
      hey -n 20000 -c 50 "$(url 1)/get?key=hey:key" | grep -E 'Requests/sec|50% in|99% in|\[[0-9]+\]' | sed 's/^ */  get  /'
    fi
  fi
}
