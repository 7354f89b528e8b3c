#!/usr/bin/env bash
# Everything that only a GPU can tell, in one call of at most ten minutes, without a network: the kernels on a machine
# that has nothing but Python, torch, triton and numpy; whole training steps where more is installed, or carried along in
# benchmarks/wheels (gpu_wheels.sh), or in the directory KD_WHEELS.
#   benchmarks/gpu_check.sh [--output DIRECTORY] [--minutes M] [--only kernels|steps] [--dry-run]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python="${KD_PYTHON:-python3}"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT

wheels=("${KD_WHEELS:-benchmarks/wheels}"/*.whl)
if [[ -f ${wheels[0]} ]] && ! "$python" benchmarks/gpu/gpu_check.py --has-packages; then
    # All of them, and before what the machine has: their versions go together.
    if "$python" -m pip install --quiet --disable-pip-version-check --root-user-action ignore --no-index --no-deps \
        --no-compile --target "$site" "${wheels[@]}"; then
        export PYTHONPATH="$PWD:$site${PYTHONPATH#"$PWD"}"
    else
        echo "${wheels[0]%/*} cannot be installed for $("$python" --version 2>&1)" >&2
    fi
fi
"$python" benchmarks/gpu/gpu_check.py "$@"
