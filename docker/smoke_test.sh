#!/usr/bin/env bash
# Does an image of kd_megatron work? No network: nothing may be fetched at run time.
#   docker/smoke_test.sh IMAGE          (DOCKER=podman for another engine)
set -euo pipefail
image=${1:?usage: docker/smoke_test.sh IMAGE}
container() { "${DOCKER:-docker}" run --rm --network none --cap-drop ALL --security-opt no-new-privileges "$@"; }
check() { printf '%s ... ' "$1"; shift; if "$@" > "$log" 2>&1; then echo ok; else echo FAILED; cat "$log"; exit 1; fi; }
log=$(mktemp)
trap 'rm -f "$log"' EXIT

check "the user is not root" container --entrypoint bash "$image" -c '[[ $(id -u) != 0 ]]'
check ".venv is there" container --entrypoint bash "$image" -c '[[ -x .venv/bin/python && -f .venv/installed.sha256 ]]'
check "no git history, no host keys" container --entrypoint bash "$image" -c '[[ ! -e .git ]] && ! ls /etc/ssh/ssh_host_*'
check "--help" container "$image" --help
grep -q '^usage: ./launch.sh' "$log"
check "plan recipes/debug.yaml" container "$image" plan recipes/debug.yaml
check "pretrain recipes/debug.yaml on two processes" \
    container --env GLOO_SOCKET_IFNAME=lo "$image" --procs 2 pretrain recipes/debug.yaml --arm minilm
echo "$image passes"
