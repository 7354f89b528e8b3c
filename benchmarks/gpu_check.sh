#!/usr/bin/env bash
# Everything that only a GPU can tell of the kernels, in one call of at most ten minutes, on a machine that has nothing
# but Python, torch and triton: benchmarks/gpu_check.sh [--output DIRECTORY] [--minutes M] [--dry-run]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
exec "${KD_PYTHON:-python3}" benchmarks/gpu_check.py "$@"
