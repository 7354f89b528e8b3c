#!/usr/bin/env bash
# The one door: sets up .venv, picks one process, N processes or N nodes, and runs a command of kd_megatron.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

usage() {
    cat <<'TEXT'
usage: ./launch.sh [--procs N | --hosts FILE] [--debug] COMMAND [ARGUMENTS]
(all paths are relative to the directory of this script)

  demo       the whole study, small: corpus, teacher, four objectives, fine-tuning, report
  test       ruff and mypy, then pytest; arguments go to pytest
  prepare    corpus -> tokenizer -> verified .bin/.idx shards
  plan       what a study will cost, before it runs
  pretrain   one arm of a study
  finetune   fine-tune a model on its tasks
  study      every arm x seed -> fine-tuning -> report; resumes where it stopped
  report     tables, figures and the HTML page of a study
  bench      throughput and kernels
  inspect    verify a shard set or a teacher cache and show its statistics

  --procs N      N processes on this machine, through the deepspeed launcher (default 1)
  --hosts FILE   the nodes of a deepspeed hostfile, lines such as "node1 slots=8" (docs/multi_node.md)
  --debug        show the traceback of an error
  --help         this text; after a COMMAND: the options of the command

environment:
  DRY_RUN=1            print the commands instead of running them
  KD_PYTHON            the Python (3.11 or newer) that .venv is made from
  KD_PIP_ARGS          more arguments for pip, such as "--extra-index-url https://download.pytorch.org/whl/cpu"
  KD_LOCKED            1: only from a lock file with hashes; 0: requirements.txt (default: a lock file where one fits)
  OMP_NUM_THREADS      threads of each process (default: this machine's cores / processes on it; cores, not hardware threads)
  MASTER_PORT          the port at which ranks meet (default: a free one; 29500 with --hosts)
  GLOO_SOCKET_IFNAME   with --hosts: the network interface that joins the nodes
TEXT
}

say() { printf '%s\n' "$*" >&2; }
fail() { say "error: $1"; shift; for line in "$@"; do say "  $line"; done; exit 2; }
dry_run() { [[ ${DRY_RUN:-} == 1 ]]; }
show() { printf '%q ' "$@"; printf '\n'; }
run() { if dry_run; then show "$@"; else "$@"; fi; }
run_last() { if dry_run; then show "$@"; else exec "$@"; fi; }  # exec: signals reach the command itself

# --- the virtual environment ------------------------------------------------------------------------------

stamp=.venv/installed.sha256  # written last, so that an interrupted set-up is continued by the next call

installation_hash() { { pwd; cat requirements* pyproject.toml; } | sha256sum | cut -d ' ' -f 1; }

environment_is_ready() { [[ -x .venv/bin/python && -f $stamp && $(< "$stamp") == "$(installation_hash)" ]]; }

find_python() {
    local name candidates="${KD_PYTHON:-python3.11 python3.12 python3.13 python3}"
    for name in $candidates; do
        "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null && echo "$name" && return
    done
    fail "no Python 3.11 or newer was found (tried: $candidates)" \
        "to fix: install one (Debian, Ubuntu: apt install python3.11 python3.11-venv) or set KD_PYTHON to its path"
}

make_venv() {
    local python
    python=$(find_python) || exit 2
    if ! "$python" -c 'import ensurepip, venv' 2> /dev/null; then
        fail "$python cannot make virtual environments: its modules venv and ensurepip are missing" \
            "to fix: apt install $("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')" \
            "(Debian, Ubuntu), then run the same command again"
    fi
    say "set-up 1/3: making .venv with $python"
    run "$python" -m venv .venv
}

# What to install from: the lock file that has the torch which pip would choose, otherwise requirements.txt. Where an
# index offers a build of torch that no lock file has (such as 2.13.0+cu126), that build was wished for.
requirements_file() {
    local python=.venv/bin/python torch machine offered="" lock=""
    torch=$(sed -n 's/^torch==//p' requirements.txt)
    if [[ ${KD_LOCKED:-} != 0 ]]; then
        [[ -x $python ]] || python=$(find_python)
        machine=$("$python" -c 'import platform, sys; print(sys.platform, platform.machine(), *sys.version_info[:2])')
        dry_run || offered=$("$python" -m pip index versions torch "${more[@]}" 2> /dev/null) || offered=unknown
        case "$machine $offered " in
            "linux x86_64 3 1"[123]*" $torch+cpu"*) has_cuda || lock=requirements-cpu.lock ;;
            "linux x86_64 3 1"[123]*" $torch+"* | *unknown*) ;;
            "linux x86_64 3 1"[123]*) lock=requirements-cuda.lock ;;
        esac
    fi
    if [[ -f $lock ]]; then echo "$lock"; return; fi
    [[ ${KD_LOCKED:-} != 1 ]] || fail "KD_LOCKED=1, and no lock file fits this machine and the torch that pip would choose" \
        "expected: Linux on x86_64, Python 3.11 to 3.13, torch $torch+cpu (without CUDA) or PyPI's torch $torch" \
        "to fix: set KD_PIP_ARGS to an index that has it (./launch.sh --help), or unset KD_LOCKED"
    echo requirements.txt
}

install_environment() (  # a subshell: `set -e` holds in it and the lock goes with it
    exec 9< requirements.txt  # the lock: two calls at once must not install over each other
    if ! dry_run && command -v flock > /dev/null && ! flock --nonblock 9; then
        say "another launch.sh is setting up .venv: waiting for it"
        flock 9
        if environment_is_ready; then exit; fi
    fi
    .venv/bin/python -m pip --version > /dev/null 2>&1 || make_venv
    read -r -a more <<< "${KD_PIP_ARGS:-}"
    pip=(.venv/bin/python -m pip --disable-pip-version-check install "${more[@]}")
    file=$(requirements_file)
    hashes=()
    [[ $file != *.lock ]] || hashes=(--require-hashes)
    say "set-up 2/3: installing $file into .venv (once; minutes, as torch is large)"
    run "${pip[@]}" "${hashes[@]}" -r "$file" || fail "$file could not be installed (see above)" \
        "to fix: run the same command again; KD_LOCKED=0 installs requirements.txt, without hashes"
    say "set-up 3/3: installing kd_megatron itself"
    run "${pip[@]}" --quiet --no-deps -e .
    dry_run || installation_hash > "$stamp"
)

# --- one process, N processes, N nodes --------------------------------------------------------------------

has_cuda() { [[ -e /dev/nvidiactl && ${CUDA_VISIBLE_DEVICES-all} != "" ]]; }

free_port() {
    if dry_run; then echo FREE_PORT; return; fi
    .venv/bin/python -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])'
}

# Cores, not hardware threads: two threads of one core share its arithmetic units and only wait for each other.
physical_cores() {
    local per_core
    per_core=$(lscpu --parse=SOCKET,CORE 2> /dev/null | awk '!/^#/ {n++; if (!seen[$0]++) cores++} END {print cores ? int(n / cores) : 1}')
    echo $(($(nproc) / per_core))
}

threads_per_process() { local share=$(($(physical_cores) / $1)); echo "${OMP_NUM_THREADS:-$((share > 0 ? share : 1))}"; }

# Runs a command in a process group of its own, which ends with this script, even by kill -9: the keeper reads a pipe
# that this script alone holds open. A signal goes to the workers first, so that they save and leave with their own
# exit code: the launchers above them would pass it on to one rank after another, or not at all.
run_group() {
    if dry_run; then show "$@"; return; fi
    local group
    set -m
    "$@" &
    group=$!
    set +m
    exec {lifeline}> >(trap '' INT TERM HUP; read -r _ || kill -TERM -- "-$group" 2> /dev/null)
    trap 'signal_group INT "$group"' INT
    trap 'signal_group TERM "$group"' TERM HUP
    while kill -0 "$group" 2> /dev/null; do wait "$group" || true; done  # a trapped signal ends `wait` early
    trap - INT TERM HUP
    wait "$group"
}

signal_group() {
    pkill "-$1" -g "$2" -f -- '-m kd_megatron' 2> /dev/null || kill "-$1" -- "-$2" 2> /dev/null || true
}

start_processes() {
    run_group "${environment[@]}" .venv/bin/python -m deepspeed.launcher.runner --log_level critical --num_gpus "$procs" \
        --master_port "${MASTER_PORT:-$(free_port)}" --no_local_rank --module kd_megatron "$@"
}

start_hosts() {
    local first slots interface argument arguments=() node_environment
    read -r first slots < <(grep -E '^[^#[:space:]]' "$hosts") \
        || fail "hostfile $hosts is missing or empty" "expected: lines such as 'node1 slots=8'"
    dry_run || command -v pdsh > /dev/null || fail "pdsh is not installed" "to fix: apt install pdsh openssh-client"
    interface=${GLOO_SOCKET_IFNAME:-$(ip -o -4 route show default 2> /dev/null | awk '{print $5; exit}')}
    [[ -n $interface ]] || fail "this node has no default route, so the network interface is not known" \
        "to fix: set GLOO_SOCKET_IFNAME to the interface that joins the nodes"
    environment+=("OMP_NUM_THREADS=$(threads_per_process "${slots#slots=}")" "GLOO_SOCKET_IFNAME=$interface")
    node_environment=$(env "${environment[@]:1}" \
        | grep -E '^(OMP_NUM_THREADS|DS_ACCELERATOR|GLOO_[A-Z_]*|NCCL_[A-Z_]*|HF_HOME|HF_HUB_OFFLINE)=[^ ]*$')
    scratch=/tmp/TEMPORARY
    if ! dry_run; then
        scratch=$(mktemp -d)
        trap 'rm -rf "$scratch"' EXIT
        printf '%s\n' "$node_environment" > "$scratch/deepspeed_env"  # deepspeed exports these lines on every node
    fi
    for argument in "$@"; do  # a remote shell reads these again; deepspeed itself quotes only those with spaces
        [[ $argument == *' '* ]] || argument=$(printf '%q' "$argument")
        arguments+=("$argument")
    done
    run_group "${environment[@]}" "DS_ENV_FILE=$scratch/deepspeed_env" \
        "PDSH_SSH_ARGS_APPEND=${PDSH_SSH_ARGS_APPEND:-} -o ServerAliveInterval=5 -o ServerAliveCountMax=3" \
        .venv/bin/python -m deepspeed.launcher.runner --log_level critical --hostfile "$hosts" --force_multi --no_ssh_check \
        --venv_script "$PWD/.venv/bin/activate" --master_addr "${MASTER_ADDR:-$first}" \
        --master_port "${MASTER_PORT:-29500}" --no_local_rank --module kd_megatron "${arguments[@]}"
}

start() {
    if [[ -n $hosts ]]; then
        start_hosts "$@"
        return
    fi
    environment+=("OMP_NUM_THREADS=$(threads_per_process "$procs")")
    if ((procs > 1)); then
        start_processes "$@"
    elif [[ $command == demo ]]; then
        run_group "${environment[@]}" .venv/bin/python -m kd_megatron "$@"
    else
        run_last "${environment[@]}" .venv/bin/python -m kd_megatron "$@"
    fi
}

# --- commands of this script ------------------------------------------------------------------------------

run_demo() {
    start study recipes/demo.yaml "$@"
    local page=studies/demo/report/index.html opener
    dry_run && return
    say "The report: $PWD/$page"
    opener=$(command -v xdg-open || command -v open || true)
    if [[ -n $opener && -n ${DISPLAY:-}${WAYLAND_DISPLAY:-} ]]; then "$opener" "$page" > /dev/null 2>&1 || true; fi
}

run_tests() {
    run .venv/bin/python -m ruff check .
    run .venv/bin/python -m ruff format --check .
    run .venv/bin/python -m mypy
    # One thread: the tests' tensors are tiny, and with several processes more threads only wait for each other.
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
    run_last .venv/bin/python -m pytest "$@"
}

# --- the command line -------------------------------------------------------------------------------------

procs=1 hosts="" debug=()
while [[ ${1:-} == -* ]]; do
    case $1 in
        --procs | --hosts)
            (($# > 1)) || fail "$1 needs a value" "to fix: see ./launch.sh --help"
            if [[ $1 == --procs ]]; then procs=$2; else hosts=$2; fi
            shift ;;
        --debug) debug=(--debug) ;;
        -h | --help) usage; exit 0 ;;
        *) fail "unknown option $1" "to fix: see ./launch.sh --help" ;;
    esac
    shift
done
[[ $procs =~ ^[1-9][0-9]*$ ]] || fail "--procs $procs" "expected: a whole number, 1 or more"
[[ $procs == 1 || -z $hosts ]] || fail "--procs and --hosts are both given" "to fix: the hostfile's slots say how many processes"
if (($# == 0)); then usage >&2; exit 2; fi
command=$1
shift

case " $* " in
    *" -h "* | *" --help "*)
        procs=1 hosts=""
        case $command in
            demo) echo "usage: ./launch.sh [--procs N] demo [KEY=VALUE ...]   runs recipes/demo.yaml with these overrides"; exit ;;
            test) echo "usage: ./launch.sh test [PYTEST ARGUMENTS]   such as: tests/cli, -k NAME, -m long (the long ones)"; exit ;;
        esac ;;
esac
case $command in
    prepare | plan | report | inspect | test)
        [[ $procs == 1 && -z $hosts ]] || fail "$command runs as one process" "to fix: leave out --procs and --hosts" ;;
esac

environment_is_ready || install_environment
environment=(env KD_PROGRAM=./launch.sh PYTHONWARNINGS=ignore::FutureWarning)
has_cuda || environment+=(DS_ACCELERATOR=cpu)
case $command in
    demo) run_demo "$@" "${debug[@]}" ;;
    test) run_tests "$@" ;;
    *) start "$command" "$@" "${debug[@]}" ;;
esac
