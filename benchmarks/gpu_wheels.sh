#!/usr/bin/env bash
# Fill benchmarks/wheels (ignored by git) for gpu_check.sh on a machine that reaches no package index: what whole training
# steps need beyond torch, triton and numpy, for Python 3.12 on Linux, x86-64. Needs any Python with pip, and the index.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
readonly list=benchmarks/gpu_wheels.txt wheels=benchmarks/wheels most_mib=60
read -ra more <<< "${KD_PIP_ARGS:-}"
pip=("${KD_PYTHON:-python3}" -m pip --disable-pip-version-check --quiet)

aside=$(mktemp -d "$PWD/benchmarks/wheels.XXXXXX")
trap 'rm -rf "$aside"' EXIT
# The two that are published as source alone; without DeepSpeed's compiled operators both are pure Python.
grep -E '^(deepspeed|hjson)==' "$list" \
    | DS_BUILD_OPS=0 xargs "${pip[@]}" wheel "${more[@]}" --no-deps --wheel-dir "$aside"
platforms=()
for version in 2_5 2_12 2_17 2_24 2_27 2_28; do platforms+=(--platform "manylinux_${version}_x86_64"); done
"${pip[@]}" download "${more[@]}" --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
    "${platforms[@]}" --platform manylinux1_x86_64 --platform manylinux2010_x86_64 --platform manylinux2014_x86_64 \
    --find-links "$aside" --dest "$aside" --requirement "$list"

num_bytes=$(cat "$aside"/*.whl | wc -c)
mib=$(((num_bytes + 1048575) / 1048576))
if ((mib > most_mib)); then
    echo "the wheels take $mib MiB; at most $most_mib MiB may be carried: shorten $list" >&2
    exit 1
fi
git rev-parse HEAD > "$aside/COMMIT" 2> /dev/null || rm -f "$aside/COMMIT"  # for a copy without .git
rm -rf "$wheels"
chmod 755 "$aside"
mv "$aside" "$wheels"
echo "$wheels: $(find "$wheels" -name '*.whl' | wc -l) wheels, $mib MiB"
