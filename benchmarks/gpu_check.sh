#!/usr/bin/env bash
# Everything that only a GPU can tell, in one call of at most ten minutes, without a network: the kernels on a machine
# that has nothing but Python, torch, triton and numpy; whole training steps where more is installed, or carried along in
# benchmarks/wheels (gpu_wheels.sh), or in the directory KD_WHEELS. Better two calls, each of its own nine minutes:
#   benchmarks/gpu_check.sh --minutes 9 --only kernels --output DIRECTORY1     vocabulary and the recipes' shapes first
#   benchmarks/gpu_check.sh --minutes 9 --only steps --output DIRECTORY2       targets, a profile and a trace
#   benchmarks/gpu_check.sh [--output DIRECTORY] [--minutes M] [--only kernels|steps] [--dry-run]
# A copy without .git says which commit it is of by KD_COMMIT, or by the file COMMIT that gpu_wheels.sh leaves beside the wheels.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python="${KD_PYTHON:-python3}"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
carried="${KD_WHEELS:-benchmarks/wheels}"
if [[ ! -e .git && -z ${KD_COMMIT:-} ]]; then
    if [[ -f $carried/COMMIT ]]; then
        KD_COMMIT=$(< "$carried/COMMIT")
        export KD_COMMIT
    else
        echo "no .git here: set KD_COMMIT, or the figures will not say which commit they are of" >&2
    fi
fi
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT

wheels=("$carried"/*.whl)
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
