#!/usr/bin/env bash
# Everything that only a GPU can tell, without a network, best in two calls of nine minutes:
#   benchmarks/gpu_check.sh --only kernels --output kernels
#   benchmarks/gpu_check.sh --only steps --output steps
# The kernels need nothing but Python, torch, triton and numpy, and a C compiler with Python's headers, as Triton does;
# whole training steps what is installed, or carried along in benchmarks/wheels (gpu_wheels.sh), or in the directory
# KD_WHEELS. A copy without .git is to be given KD_COMMIT, what `git rev-parse HEAD` says.
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
