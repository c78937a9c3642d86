#!/usr/bin/env bash
# How fast is a request, as a ratio to a bare HTTP server on the same hyper set-up, in one run, alternating.
# Prints tables in Markdown: medians of ROUNDS rounds, servers in shuffled order in each.
#
#   ROUNDS=5 REQUESTS=100000 SECONDS_EACH=5   the defaults
#   SERVERS="bare one three etcd"             which; etcd (three nodes) only where it is installed; "unsynced" is three nodes more,
#                                             for which every sync is done at once: what the disk costs (needs cc)
#
# Needs hey for its rows, wrk for its, and etcd for its server; rows without their tool are left out.
# The processor time is that of all servers of a kind together, and of the client, per request answered.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

ROUNDS="${ROUNDS:-5}" REQUESTS="${REQUESTS:-100000}" SECONDS_EACH="${SECONDS_EACH:-5}"
SERVERS="${SERVERS:-bare one three etcd}"
installed() { command -v "$1" >/dev/null 2>&1; }
installed etcd || SERVERS="${SERVERS/etcd/}"

build
build_bare
NODE_COUNT=14 choose_ports # three of a ring, one alone, one bare, three of etcd with two ports each, three unsynced
temporary_data
start_ring
NODE_COUNT=14 # so that all are stopped at the end
"$BIN" -port "${PORTS[4]}" -dir "$DATA_DIR/alone" >"$DATA_DIR/alone.log" 2>&1 &
PIDS[4]=$!
start_bare 5
if [[ "$SERVERS" == *etcd* ]]; then
  cluster="e6=http://127.0.0.1:${PORTS[9]},e7=http://127.0.0.1:${PORTS[10]},e8=http://127.0.0.1:${PORTS[11]}"
  for i in 6 7 8; do
    etcd --name "e$i" --data-dir "$DATA_DIR/etcd$i" --log-level error --initial-cluster "$cluster" \
      --listen-client-urls "$(url "$i")" --advertise-client-urls "$(url "$i")" \
      --listen-peer-urls "$(url $((i + 3)))" --initial-advertise-peer-urls "$(url $((i + 3)))" >"$DATA_DIR/etcd$i.log" 2>&1 &
    PIDS[i]=$!
  done
fi
if [[ "$SERVERS" == *unsynced* ]]; then
  printf 'int fsync(int file) { return 0; }\nint fdatasync(int file) { return 0; }\n' | cc -shared -fPIC -x c -o "$DATA_DIR/unsynced.so" -
  NODE_ENV=("LD_PRELOAD=$DATA_DIR/unsynced.so")
  for i in 12 13 14; do start_node "$i" 12 13 14; done
  for i in 12 13 14; do wait_ready "$i"; done
  for i in 13 14; do wait_state 12 "$i" up || die "node 12 does not see node $i"; done
fi
wait_ready 4

declare -A URL=([bare]="$(url 5)" [one]="$(url 4)" [three]="$(url 1)" [etcd]="$(url 6)" [unsynced]="$(url 12)")
declare -A MEMBERS=([bare]="5" [one]="4" [three]="1 2 3" [etcd]="6 7 8" [unsynced]="12 13 14")
RESULTS="$DATA_DIR/results"

# cpu_of SERVER: processor time of its processes so far, in ticks of 10 ms.
cpu_of() {
  local i
  for i in ${MEMBERS[$1]}; do sed 's/.*) //' "/proc/${PIDS[i]}/stat"; done | awk '{ t += $12 + $13 } END { print t }'
}
# cpu_of_clients: processor time of the load generators that have ended so far, in ticks.
cpu_of_clients() { sed 's/.*) //' "/proc/$$/stat" | awk '{ print $14 + $15 }'; }

# measure WORKLOAD SERVER COMMAND…: runs a load generator whose output `parse_…` turns into RATE COUNT P50 P99 P999 (ms).
measure() {
  local server_before client_before figures
  server_before=$(cpu_of "$2") client_before=$(cpu_of_clients)
  "${@:4}" >"$DATA_DIR/output"
  figures=$("$3" <"$DATA_DIR/output")
  printf '%s\t%s\t%s\t%s\t%s\t%s\n' "$1" "$2" "$figures" \
    "$(($(cpu_of "$2") - server_before))" "$(($(cpu_of_clients) - client_before))" "$round" >>"$RESULTS"
}
# hey -o csv: a line a request: how long it took, …, when it began.
parse_hey() {
  awk -F, 'NR > 1 { print $1, $8 }' | sort -g |
    awk '{ t[++n] = $1; if ($1 + $2 > end) end = $1 + $2 }
         END { printf "%s\t%d\t%s\t%s\t%s", n / end, n, t[int(n * .5)] * 1000, t[int(n * .99)] * 1000, t[int(n * .999)] * 1000 }'
}
parse_bench() {
  tr -d ' \n' | sed 's/.*"operations"//' | tr ',{}' '\n' | awk -F: '
    { gsub(/"/, "", $1); v[$1] = $2 }
    END { printf "%s\t%d\t%s\t%s\t%s", v["per_second"], v["ok"], v["p50_us"] / 1000, v["p99_us"] / 1000, v["p99.9_us"] / 1000 }'
}
# wrk --latency, with a line of our own for p99.9
parse_wrk() {
  awk '/^p999/ { p50 = $2; p99 = $3; p999 = $4; n = $5; rate = $6; bad = $7 }
       END { if (bad > 0) exit 1; printf "%s\t%d\t%s\t%s\t%s", rate, n, p50, p99, p999 }'
}
cat >"$DATA_DIR/load.lua" <<'LUA'
-- Unique random keys; -- get: keys that were put by the same run's seed
local operation, keys = os.getenv("WRK_OPERATION"), tonumber(os.getenv("WRK_KEYS"))
local value, threads = string.rep("v", 100), 0
function setup(thread) thread:set("id", threads); threads = threads + 1 end
function init() math.randomseed(os.time() * 10 + id); next_key = id * 1e9 end
function request()
  if operation == "get" then
    return wrk.format("GET", string.format("/get?key=wrk:%d", math.random(0, keys - 1)))
  end
  return wrk.format("POST", "/put", nil, string.format('{"key":"wrk:%d:%d","value":"%s"}', math.random(0, 2^31), math.random(0, 2^31), value))
end
function done(summary, latency)
  local errors = summary.errors
  print(string.format("p999 %f %f %f %d %f %d", latency:percentile(50) / 1000, latency:percentile(99) / 1000,
    latency:percentile(99.9) / 1000, summary.requests, summary.requests / summary.duration * 1e6,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
LUA
WRK_KEYS=10000
fill() { # SERVER: the keys that wrk reads
  local items
  items=$(awk -v n=$WRK_KEYS 'BEGIN { v = sprintf("%100s", ""); gsub(/ /, "v", v); for (i = 0; i < n; i++) printf "%s{\"key\":\"wrk:%d\",\"value\":\"%s\"}", i ? "," : "", i, v }')
  printf '{"items":[%s]}' "$items" | curl -s -o /dev/null -X POST --data-binary @- "${URL[$1]}/batch"
}
run_wrk() { # WORKLOAD SERVER OPERATION
  WRK_OPERATION=$3 WRK_KEYS=$WRK_KEYS measure "$1" "$2" parse_wrk \
    wrk -t 1 -c 64 -d "${SECONDS_EACH}s" -s "$DATA_DIR/load.lua" "${URL[$2]}"
}
run_bench() { # WORKLOAD SERVER READ_PERCENT
  local unchecked=()
  [ "$2" != bare ] || unchecked=(--unchecked)
  measure "$1" "$2" parse_bench \
    "$BIN" bench --targets "${URL[$2]}" --connections 64 --duration "${SECONDS_EACH}s" --read-percent "$3" "${unchecked[@]}" --json
}

JSON=(-H "Content-Type: application/json" -m POST)
KEY=$(printf hey | base64) VALUE=$(printf data | base64)
for server in one three unsynced; do
  [[ " $SERVERS " == *" $server "* ]] || continue
  fill "$server"
  curl -s -o /dev/null -X POST "${URL[$server]}/put" -d '{"key":"hey","value":"data"}'
done
run_hey() { # WORKLOAD SERVER OPERATION
  local arguments=("${URL[$2]}/get?key=hey")
  case "$2 $3" in
    "etcd put") arguments=("${JSON[@]}" -d "{\"key\":\"$KEY\",\"value\":\"$VALUE\"}" "${URL[etcd]}/v3/kv/put") ;;
    "etcd get") arguments=("${JSON[@]}" -d "{\"key\":\"$KEY\"}" "${URL[etcd]}/v3/kv/range") ;;
    *put) arguments=("${JSON[@]}" -d '{"key":"hey","value":"data"}' "${URL[$2]}/put") ;;
  esac
  measure "$1" "$2" parse_hey hey -n "$REQUESTS" -c 50 -o csv "${arguments[@]}"
}
for ((round = 1; round <= ROUNDS; round++)); do
  # One workload after the other, on all servers: what is compared is seconds apart, on a machine that is slower at some times.
  for workload in "hey put, one key" "hey get, one key" "put, unique keys" "get, random keys" "wrk put, unique keys" "wrk get, random keys"; do
    # shellcheck disable=SC2086  # words
    for server in $(shuf -e $SERVERS); do
      case "$server $workload" in
        *" hey"*) ! installed hey || run_hey "$workload" "$server" "${workload:4:3}" ;;
        etcd*) ;; # it has no such dialect
        *" wrk"*) ! installed wrk || run_wrk "$workload" "$server" "${workload:4:3}" ;;
        *" put"*) run_bench "$workload" "$server" 0 ;;
        *) run_bench "$workload" "$server" 100 ;;
      esac
    done
  done
  printf 'round %s of %s\n' "$round" "$ROUNDS" >&2
done

# Medians; the ratio is the median of the rounds' own ratios to the bare server.
sort -t$'\t' -k1,1 -k2,2 -k3,3g "$RESULTS" | awk -F'\t' '
  function flush(  m) {
    if (!n) return
    m = int((n + 1) / 2); rate[w, s] = r[m]; line[w, s] = r[m] "\t" p50[m] "\t" p99[m] "\t" p999[m] "\t" cpu[m] "\t" client[m]
  }
  function median_ratio(w, s,  i, m, v, t) {
    for (i = 1; i <= rounds; i++) if ((w, s, i) in by_round) v[++m] = by_round[w, s, i] / by_round[w, "bare", i]
    for (i = 2; i <= m; i++) for (t = i; t > 1 && v[t] < v[t - 1]; t--) { x = v[t]; v[t] = v[t - 1]; v[t - 1] = x }
    return v[int((m + 1) / 2)]
  }
  { if ($1 != w || $2 != s) { flush(); w = $1; s = $2; n = 0 }
    n++; r[n] = $3; p50[n] = $5; p99[n] = $6; p999[n] = $7; cpu[n] = $8 * 10000 / $4; client[n] = $9 * 10000 / $4
    by_round[$1, $2, $10] = $3; if ($10 > rounds) rounds = $10 }
  END {
    flush()
    print "| workload | server | requests/s | ratio to bare | p50 ms | p99 ms | p99.9 ms | µs of server | µs of client |"
    print "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    count = split("hey put, one key;hey get, one key;put, unique keys;get, random keys;wrk put, unique keys;wrk get, random keys", order, ";")
    split("bare one three unsynced etcd", servers, " ")
    for (i = 1; i <= count; i++) for (j = 1; j <= 5; j++) if ((order[i], servers[j]) in line) {
      split(line[order[i], servers[j]], f, "\t")
      printf "| %s | %s | %d | %.2f | %.2f | %.2f | %.2f | %.1f | %.1f |\n", order[i], servers[j], f[1], median_ratio(order[i], servers[j]), f[2], f[3], f[4], f[5], f[6]
    }
  }'
say
for i in 1 4 5; do
  case $i in 1) name="a node of three" ;; 4) name="one node alone" ;; *) name="bare server" ;; esac
  say "$name: $(awk '/VmRSS/{printf "%d", $2/1024}' "/proc/${PIDS[i]}/status") MiB resident at the end,  $(awk '/VmHWM/{printf "%d", $2/1024}' "/proc/${PIDS[i]}/status") at most"
done
# One client alone: what a request costs when nobody else is there.
say
for server in one three; do
  "$BIN" bench --targets "${URL[$server]}" --connections 1 --duration "${SECONDS_EACH}s" --read-percent 50 | grep -E '^(put|get) ' | sed "s/^/one client, $server: /"
done
