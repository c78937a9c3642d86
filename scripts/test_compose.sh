#!/usr/bin/env bash
# The ring of docker-compose.yml, really started: written to, one container killed, one cut off from its network, all
# taken down, and whole again each time. Two minutes, most of them the first build of the base image.
#
# Runs wherever a Docker engine is; otherwise it says that it was skipped, and why, and succeeds. The image is made from
# the binary that was built here. A base image that is neither here nor to be had from a registry is made by
# debootstrap, under the name that the Dockerfile uses, and kept as a file in target/; all that this script makes in the
# engine it removes, and nothing else.
#
#   REQUIRE_DOCKER=1   to be skipped is a failure
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

skip() {
  say "SKIPPED: the ring in containers was not tested: $*"
  [ -z "${REQUIRE_DOCKER:-}" ] || exit 1
  exit 0
}

command -v docker >/dev/null 2>&1 || skip "there is no docker command"
timeout 20 docker info >/dev/null 2>&1 || skip "no Docker engine answers"
if docker compose version >/dev/null 2>&1; then
  COMPOSE=(docker compose)
elif command -v docker-compose >/dev/null 2>&1; then
  COMPOSE=(docker-compose)
else
  skip "there is no docker compose"
fi

build
choose_ports
project="kvstore-test-$$"
image="$project:latest"
base=$(sed -n 's/^FROM \(.*\) AS runtime$/\1/p' Dockerfile)
base_tar="$PWD/target/$(tr -c 'a-z0-9\n' - <<<"$base").tar"
base_is_ours=""
work=$(mktemp -d "${TMPDIR:-/tmp}/kvstore-compose.XXXXXX")
export KVSTORE_IMAGE="$image" CLUSTER_SECRET="only-for-this-test-$RANDOM$RANDOM" PUBLISH=127.0.0.1
export NODE1_PORT="${PORTS[1]}" NODE2_PORT="${PORTS[2]}" NODE3_PORT="${PORTS[3]}"

compose() { "${COMPOSE[@]}" --project-name "$project" --file docker-compose.yml "$@"; }

clean_up() {
  status=$?
  trap - EXIT
  if [ "$status" != 0 ]; then compose logs --tail 20 2>/dev/null || true; fi
  compose down --volumes --timeout 5 >/dev/null 2>&1 || true
  docker image rm "$image" >/dev/null 2>&1 || true
  if [ -n "$base_is_ours" ]; then docker image rm "$base" >/dev/null 2>&1 || true; fi
  rm -rf "$work"
  exit "$status"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

# make_base: a small Debian of the release in the image's name, by debootstrap, as a file in target/.
make_base() {
  local release="${base#*:}" mirror
  release="${release%-slim}"
  command -v debootstrap >/dev/null 2>&1 || skip "$base is not here, no registry has it, and there is no debootstrap"
  [ "$(id -u)" = 0 ] || skip "$base is not here, no registry has it, and debootstrap needs root"
  # shellcheck disable=SC2016  # apt's variable
  mirror=$(apt-get indextargets --format '$(REPO_URI)' 2>/dev/null | head -n 1) || true
  # shellcheck disable=SC2086  # no mirror, no argument
  debootstrap --variant=minbase "$release" "$work/root" $mirror >"$work/debootstrap.log" 2>&1 ||
    skip "$base cannot be made: $(tail -n 1 "$work/debootstrap.log")"
  rm -rf "$work"/root/var/cache/apt/* "$work"/root/var/lib/apt/lists/* "$work"/root/usr/share/{doc,man,locale}/*
  tar -C "$work/root" -cf "$base_tar.part" . && mv "$base_tar.part" "$base_tar"
  rm -rf "$work/root"
}

step "The image"
if ! docker image inspect "$base" >/dev/null 2>&1 && ! timeout 20 docker pull --quiet "$base" >/dev/null 2>&1; then
  [ -e "$base_tar" ] || make_base
  docker import --change "CMD [\"bash\"]" "$base_tar" "$base" >/dev/null
  base_is_ours=1
fi
mkdir "$work/context"
cp Dockerfile "$work/context/"
cp "$BIN" "$work/context/kvstore"
strip --strip-debug "$work/context/kvstore" 2>/dev/null || true # smaller, when there is a strip
docker build --quiet --target from-host --build-arg BINARY=kvstore --tag "$image" "$work/context" >"$work/build.log" 2>&1 ||
  { cat "$work/build.log"; die "the image cannot be built"; }
docker run --rm --network none "$image" --version >/dev/null 2>"$work/run.log" ||
  skip "the binary built here does not run on $base: $(head -n 1 "$work/run.log")"
expect_match "it says its version" "kvstore *" "$(docker run --rm --network none "$image" --version)"
expect "nobody runs as root in it" 10001 "$(docker run --rm --network none --entrypoint id "$image" -u)"

container() { compose ps -q "node$1"; }
health() { docker inspect --format '{{.State.Health.Status}}' "$(container "$1")"; }
is_healthy() { [ "$(health "$1")" = healthy ]; }
# state I J: what node I believes of node J.
state() {
  curl -s -m 2 "$(url "$1")/cluster/status" | tr -d ' \n' | sed -n "s/.*\"name\":\"node$2:8081\",\"state\":\"\([a-z]*\)\".*/\1/p"
}
sees() { [ "$(state "$1" "$2")" = "$3" ]; }
ring_is_whole() {
  local i j
  for i in 1 2 3; do for j in 1 2 3; do sees "$i" "$j" up || return 1; done; done
}
no_hints() { [ "$(($(hints_of 1) + $(hints_of 2) + $(hints_of 3)))" = 0 ]; }
# inside I METHOD TARGET [BODY]: a request on node I's own loopback, for when it has no network.
inside() {
  docker exec -i "$(container "$1")" bash -s -- "${@:2}" <<'IN'
exec 3<>/dev/tcp/127.0.0.1/8081
printf '%s %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %s\r\n\r\n%s' "$1" "$2" "${#3}" "${3:-}" >&3
cat <&3
IN
}

step "Three containers"
compose up --detach --no-build >"$work/up.log" 2>&1 || { cat "$work/up.log"; die "the ring does not start"; }
for i in 1 2 3; do
  if eventually 60 is_healthy "$i"; then pass "node $i is healthy by its own healthcheck"; else fail "node $i is $(health "$i")"; fi
done
if eventually 30 ring_is_whole; then pass "each sees all"; else fail "they do not see each other"; fi
expect "put on node 1" "OK" "$(put 1 hello world)"
expect "get on node 3" "world" "$(get 3 hello)"
batch=$(for i in {1..100}; do printf '{"key":"item:%03d","value":"%d"}\n' "$i" "$i"; done | paste -sd, -)
expect "a batch of a hundred on node 2" "Batch Processed" "$(curl -s -m 10 -X POST "$(url 2)/batch" -d "{\"items\":[$batch]}")"
expect "scanned on node 1" 100 "$(curl -s -m 10 "$(url 1)/scan?prefix=item:" | grep -o '"item:' | wc -l)"

step "One container killed"
docker kill "$(container 2)" >/dev/null
if eventually 30 sees 1 2 down; then pass "node 1 has noticed"; else fail "node 1 believes node 2 $(state 1 2)"; fi
written=0
for i in {1..30}; do [ "$(put $((i % 2 * 2 + 1)) "killed:$i" "v$i")" != OK ] || written=$((written + 1)); done
expect "writes taken by the two others, of 30" 30 "$written"
expect "and reads" "v7" "$(get 3 killed:7)"
docker start "$(container 2)" >/dev/null
if eventually 60 ring_is_whole; then pass "it is back"; else fail "node 1 believes node 2 $(state 1 2)"; fi
if eventually 30 no_hints; then pass "what it missed was delivered"; else fail "hints are left"; fi
missing=0
for i in {1..30}; do local_has 2 "killed:$i" "v$i" || missing=$((missing + 1)); done
expect "missing on its own disk, of 30" 0 "$missing"

step "One container cut off from its network"
network="${project}_ring"
docker network disconnect "$network" "$(container 3)"
if eventually 30 sees 1 3 down; then pass "node 1 has noticed"; else fail "node 1 believes node 3 $(state 1 3)"; fi
written=0
for i in {1..30}; do [ "$(put $((i % 2 + 1)) "cut:$i" "v$i")" != OK ] || written=$((written + 1)); done
expect "writes taken by the two others, of 30" 30 "$written"
# The first moments after the cut it may still believe in the others: then a write is of unknown outcome, 504.
refuses() { [[ "$(inside 3 POST /put '{"key":"lonely","value":"x"}')" == "HTTP/1.1 503 "* ]]; }
if eventually 30 refuses; then pass "the lonely one takes no write: 503"; else fail "the lonely node: $(inside 3 POST /put '{"key":"lonely","value":"x"}' | head -n 1)"; fi
docker network connect --alias node3 "$network" "$(container 3)"
if eventually 60 ring_is_whole; then pass "it is back"; else fail "node 1 believes node 3 $(state 1 3)"; fi
if eventually 30 no_hints; then pass "what it missed was delivered"; else fail "hints are left"; fi
missing=0
for i in {1..30}; do local_has 3 "cut:$i" "v$i" || missing=$((missing + 1)); done
expect "missing on its own disk, of 30" 0 "$missing"

step "Taken down, and up again on the same volumes"
compose down --timeout 30 >/dev/null 2>&1
compose up --detach --no-build >"$work/up.log" 2>&1 || { cat "$work/up.log"; die "the ring does not start again"; }
if eventually 60 ring_is_whole; then pass "each sees all"; else fail "they do not see each other"; fi
expect "everything is still there" "world 100 v7 v9" \
  "$(get 2 hello) $(curl -s -m 10 "$(url 3)/scan?prefix=item:" | grep -o '"item:' | wc -l) $(get 1 killed:7) $(get 3 cut:9)"
finish
