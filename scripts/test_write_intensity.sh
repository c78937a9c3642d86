#!/usr/bin/env bash
# Load on a ring of three processes: writes. Prints rates and latencies, and fails if a request failed.
#
#   SECONDS_EACH=10   how long each round lasts
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

build
choose_ports
temporary_data
start_ring
load_rounds 0
finish
