#!/usr/bin/env bash
# What lies in deploy/, by the tools that will read it: promtool on a live node's metrics and on the rules, systemd on the
# unit, shells on the Makefile. A tool that is not here is named, and its checks are skipped.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

# runs NAME COMMAND…: counts a check: the command succeeds.
runs() {
  local said
  if said=$("${@:2}" 2>&1); then pass "$1"; else fail "$1: $said"; fi
}
has() {
  command -v "$1" >/dev/null 2>&1 || { say "  SKIPPED: there is no $1"; return 1; }
}

step "Metrics and rules"
if has promtool && has jq; then
  build
  NODE_COUNT=1 choose_ports
  NODE_COUNT=1
  temporary_data
  start_ring
  put 1 k v >/dev/null
  get 1 k >/dev/null
  curl -s -m 30 "$(url 1)/metrics?format=prometheus" >"$DATA_DIR/metrics.txt"
  clean() { [ -z "$(promtool check metrics <"$DATA_DIR/metrics.txt" 2>&1)" ]; }
  if clean; then pass "promtool has nothing to say of the metrics"; else fail "$(promtool check metrics <"$DATA_DIR/metrics.txt" 2>&1)"; fi
  runs "the configuration and the alerts are sound" promtool check config deploy/prometheus/prometheus.yml
  runs "each alert comes when it should" promtool test rules deploy/prometheus/alerts_test.yml
  # Every query of the dashboard, as a rule, since that is what promtool reads.
  # shellcheck disable=SC2016  # Grafana's variables, not the shell's
  jq -r '.panels[].targets[]?.expr' deploy/grafana/kvstore.json |
    sed 's/\$__rate_interval/5m/g; s/\$instance/.*/g' |
    jq -R -s '{groups: [{name: "dashboard", rules: [split("\n") | map(select(. != "")) | to_entries[] | {record: "dashboard:query_\(.key)", expr: .value}]}]}' >"$DATA_DIR/dashboard.yml"
  expect_match "the dashboard's queries are well formed" "*SUCCESS*" "$(promtool check rules "$DATA_DIR/dashboard.yml" 2>&1)"
  stop_ring
fi

step "The unit"
if has systemd-analyze; then
  # The binary is not installed here: that alone may be wrong.
  expect "systemd reads it" "" "$(systemd-analyze verify deploy/kvstore.service 2>&1 | grep -v 'is not executable' || true)"
  score=$(systemd-analyze security --offline=true deploy/kvstore.service 2>/dev/null | sed -n 's/.*exposure level for kvstore.service: \([0-9.]*\).*/\1/p')
  if awk -v score="${score:-9}" 'BEGIN { exit !(score < 2) }'; then pass "its exposure is $score of 10"; else fail "its exposure is ${score:-unknown} of 10"; fi
fi

step "The Makefile"
if has make; then
  for target in help build run test bench fmt lint docker; do
    if make -n "$target" >/dev/null 2>&1; then pass "make $target"; else fail "make $target"; fi
  done
fi
finish
