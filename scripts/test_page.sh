#!/usr/bin/env bash
# The status page in a real browser: a ring of three, a node that goes down and comes back, the node that serves the page
# itself going down and coming back, a key looked up, without a mouse, on a phone, in dark and light.
#
# Runs wherever chromium and chromedriver are; otherwise it says that it was skipped, and succeeds.
#
#   scripts/test_page.sh                  the checks
#   scripts/test_page.sh --pictures DIR   and what was seen, as PNG
#   PAGE=http://…                         another address for the page, as of a proxy while one works on it
#   REQUIRE_BROWSER=1                     to be skipped is a failure
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

pictures=""
case "${1:-}" in
  "") ;;
  --pictures) pictures="${2:?a directory}"; mkdir -p "$pictures" ;;
  *) sed -n '2,10s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
skip() {
  say "SKIPPED: the status page was not seen by a browser: $*"
  [ -z "${REQUIRE_BROWSER:-}" ] || exit 1
  exit 0
}
command -v chromedriver >/dev/null 2>&1 || skip "there is no chromedriver"
chromium=$(command -v chromium || command -v chromium-browser || command -v google-chrome) || skip "there is no chromium"
command -v jq >/dev/null 2>&1 || skip "there is no jq"

build
NODE_COUNT=4 choose_ports # the fourth is the driver's
NODE_ENV=(MEMTABLE_SIZE=1MiB)
temporary_data
chromedriver --port="${PORTS[4]}" >"$DATA_DIR/chromedriver.log" 2>&1 &
driver=$!
session="" load=""
end() {
  status=$?
  trap - EXIT
  [ -z "$load" ] || kill "$load" 2>/dev/null || true
  [ -z "$session" ] || curl -s -m 10 -X DELETE "$wire" >/dev/null || true
  kill "$driver" 2>/dev/null || true
  stop_ring
  rm -rf "$DATA_DIR"
  exit "$status"
}
trap end EXIT
wire="http://127.0.0.1:${PORTS[4]}/session"

# ask METHOD PATH [JSON]: a command of the browser; its value.
ask() { curl -s -m 60 -X "$1" "$wire$2" -H 'Content-Type: application/json' ${3:+-d "$3"} | jq -r '.value'; }
# js EXPRESSION: its value in the page.
js() { ask POST /execute/sync "$(jq -n --arg script "return $1" '{script: $script, args: []}')"; }
is() { [ "$(js "$1")" = true ]; }
# check NAME EXPRESSION [SECONDS]: counts a check: the expression becomes true.
check() {
  if eventually "${3:-30}" is "$2"; then pass "$1"; else fail "$1: never true: $2"; fi
}
keys() { # keys NAME…: presses keys, by their WebDriver code or letter
  local key presses=""
  for key in "$@"; do presses+="{\"type\":\"keyDown\",\"value\":\"$key\"},{\"type\":\"keyUp\",\"value\":\"$key\"},"; done
  ask POST /actions "{\"actions\":[{\"type\":\"key\",\"id\":\"k\",\"actions\":[${presses%,}]}]}" >/dev/null
}
cdp() { ask POST /goog/cdp/execute "{\"cmd\":\"$1\",\"params\":$2}" >/dev/null; }
colours() { cdp Emulation.setEmulatedMedia "{\"features\":[{\"name\":\"prefers-color-scheme\",\"value\":\"$1\"}]}"; }
size() { cdp Emulation.setDeviceMetricsOverride "{\"width\":$1,\"height\":$2,\"deviceScaleFactor\":${3:-1},\"mobile\":false}"; }
picture() { # picture NAME: what is seen now
  if [ -n "$pictures" ]; then ask GET /screenshot | base64 -d >"$pictures/$1.png"; fi
}
state_of() { printf 'document.querySelectorAll(".node .state")[%s].className.split(" ")[1]' "$(($1 - 1))"; }

step "A ring and a browser"
start_ring
eventually 20 curl -s -m 5 -o /dev/null "http://127.0.0.1:${PORTS[4]}/status" || die "chromedriver does not answer: $(tail -n 3 "$DATA_DIR/chromedriver.log")"
# Started by root, as in a container, Chromium needs --no-sandbox: it opens our own page alone.
started=$(curl -s -m 60 -X POST "$wire" -H 'Content-Type: application/json' -d "$(jq -n --arg binary "$chromium" '{capabilities: {alwaysMatch: {
  browserName: "chrome", "goog:loggingPrefs": {browser: "ALL"},
  "goog:chromeOptions": {binary: $binary, args: ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--hide-scrollbars"]}}}}')")
session=$(jq -r '.value.sessionId // empty' <<<"$started")
[ -n "$session" ] || skip "the browser does not start: $(jq -r '.value.message' <<<"$started" | head -n 1)"
wire="$wire/$session"
size 1200 1500
# Members are sorted by name, and ports were drawn: node i's place among the cards.
mapfile -t sorted < <(printf '%s\n' "${PORTS[@]:1:3}" | sort)
place() { local i; for i in 0 1 2; do [ "${sorted[i]}" != "${PORTS[$1]}" ] || printf '%s' "$((i + 1))"; done; }
for i in 1 2 3; do put "$i" "user:100$i" "Alice $i" >/dev/null; done
ask POST /url "{\"url\":\"${PAGE:-$(url 1)}/\"}" >/dev/null
check "it says that it is live and all nodes are up" 'document.getElementById("pill-text").textContent === "Live, all 3 nodes up"'
check "each node has a card" 'document.querySelectorAll(".node").length === 3'
check "the ring is drawn: a lane for each, all of it held" 'document.querySelectorAll("#lanes .lane").length === 3 && [...document.querySelectorAll("#lanes .first")].every((e) => e.getAttribute("d").length > 1000)'
check "and told as a table" 'document.querySelectorAll("#shares tbody tr").length === 3'
expect "nothing was asked of anybody else" 0 "$(js 'performance.getEntriesByType("resource").filter((e) => !e.name.startsWith(location.origin)).length')"

step "Under load"
# Reads find what the load itself wrote; rates and levels move.
"$BIN" bench --targets "$(url 1),$(url 2),$(url 3)" --connections 16 --duration 600s --read-percent 70 >/dev/null 2>&1 &
load=$!
number='Number(document.querySelectorAll(".tile .big")[0].textContent.replace(/[,k]/g, ""))'
check "reads are shown" "$number > 1"
check "latencies are shown" '/[µm]s/.test(document.querySelectorAll(".tile .big")[2].textContent)'
check "flushes are shown" 'Number(document.querySelector(".store dd").textContent) > 0' 60
check "and levels" 'document.querySelector(".levels .what").textContent.includes("table") || document.querySelectorAll(".levels .what")[1].textContent.includes("table")' 60
[ -z "$pictures" ] || sleep 45 # for lines that have something to show

step "A key, without a mouse"
js 'document.body.focus() || document.activeElement.blur()' >/dev/null
keys $'\uE004'
expect "the first stop of Tab is the way past the header" "skip" "$(js 'document.activeElement.className')"
reached=""
for _ in {1..30}; do
  keys $'\uE004'
  reached+=" $(js 'document.activeElement.id || document.activeElement.tagName')"
  case "$reached" in *" key") break ;; esac
done
expect_match "Tab reaches the nodes' buttons" "* BUTTON*" "$reached"
expect_match "and then the box" "* key" "$reached"
keys u s e r : 1 0 0 2 $'\uE006'
check "Enter looks the key up" 'document.getElementById("found").textContent.includes("It is there.")'
expect "one replica wins" 1 "$(js 'document.querySelectorAll("#found td.wins").length')"
check "every replica agrees" 'document.querySelectorAll("#found tbody tr").length === 3 && document.querySelectorAll("#found .behind, #found .gone").length === 0'
check "its place is marked in the ring" 'document.querySelectorAll("#marker line").length === 1'
js 'document.querySelector(".node button").focus()' >/dev/null
keys $'\uE006'
check "Enter on a node shows its ranges" 'document.getElementById("ring").classList.contains("picked") && document.querySelector(".node button").getAttribute("aria-pressed") === "true" && document.getElementById("ring-text").textContent.includes("holds")'
keys $'\uE006'
check "and again all of them" '!document.getElementById("ring").classList.contains("picked")'
expect "every control has a name" 0 "$(js '[...document.querySelectorAll("input, button, a, [role=img], [role=region], svg:not([aria-hidden])")].filter((e) => !(e.textContent.trim() || e.getAttribute("aria-label") || (e.labels && e.labels.length))).length')"

step "Dark and light, on a desk and on a phone"
# The least contrast of any visible text against what it stands on.
contrast='(() => {
  const rgb = (c) => c.match(/[\d.]+/g).map(Number), lum = (c) => { const [r, g, b] = c.map((v) => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4); return .2126 * r + .7152 * g + .0722 * b; };
  let worst = 99;
  for (const e of document.querySelectorAll("body *")) {
    if (!e.offsetParent || e.closest("svg") || ![...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim())) continue;
    let under = e; while (under && rgb(getComputedStyle(under).backgroundColor)[3] === 0) under = under.parentElement;
    const [a, b] = [lum(rgb(getComputedStyle(e).color)), lum(rgb(getComputedStyle(under || document.documentElement).backgroundColor))];
    worst = Math.min(worst, (Math.max(a, b) + .05) / (Math.min(a, b) + .05));
  }
  return worst >= 4.5 || "only " + worst.toFixed(2);
})()'
for theme in light dark; do
  colours "$theme"
  size 1200 1500
  expect "$theme: every text has a contrast of 4.5 or more" true "$(js "$contrast")"
  sleep 1.2; picture "desk-$theme"
  size 390 844 2
  expect "$theme, on a phone: nothing sticks out" true "$(js 'document.documentElement.scrollWidth <= innerWidth || [...document.querySelectorAll("body *")].filter((e) => e.getBoundingClientRect().right > innerWidth + 1).map((e) => e.className || e.tagName).join()')"
  sleep 1.2; picture "phone-$theme"
done
colours light
size 1200 1500

step "A node goes down and comes back"
third=$(place 3)
kill_node 3
check "it is shown as down" "$(state_of "$third") === \"down\""
check "and told to who cannot see" 'document.getElementById("said").textContent.endsWith("is down")'
check "the line at the top counts two of three" 'document.getElementById("pill-text").textContent === "Live, 2 of 3 nodes up"'
check "hints wait for it" 'Number(document.querySelectorAll(".tile .big")[4].textContent.replace(/,/g, "")) > 0'
sleep 1.2; picture "down"
start_node 3
wait_ready 3
check "it is shown as up again" "$(state_of "$third") === \"up\""
kill "$load" 2>/dev/null || true
wait "$load" 2>/dev/null || true
load=""
check "and its hints are delivered" 'document.querySelectorAll(".tile .big")[4].textContent === "0"' 60

step "The node behind the page goes down and comes back"
kill_node 1
check "the page says so" '!document.getElementById("lost").hidden && document.getElementById("lost").textContent.includes("does not answer")'
expect "and names others" 2 "$(js 'document.querySelectorAll("#lost a").length')"
expect "in its title too" "No answer · kvstore" "$(js document.title)"
expect "what is old looks old" true "$(js 'document.body.classList.contains("stale")')"
picture "lost"
start_node 1
wait_ready 1
check "it reconnects by itself" 'document.getElementById("lost").hidden && document.getElementById("pill").className === "pill live" && document.getElementById("pill-text").textContent === "Live, all 3 nodes up"'
stop_node 1
check "a graceful stop ends the stream, and the page says so" '!document.getElementById("lost").hidden'
start_node 1
wait_ready 1
check "and reconnects again" 'document.getElementById("lost").hidden'
mistakes=$(ask POST /se/log '{"type":"browser"}' | jq -r '[.[] | select(.level == "SEVERE" and (.message | test("ERR_CONNECTION|ERR_INCOMPLETE|ERR_EMPTY|503") | not)) | .message] | join("; ")')
expect "the browser has nothing to complain about" "" "$mistakes"
finish
