#!/usr/bin/env bash
# The one door: sets up .venv, picks one process, N processes or N nodes, and runs a command of kd_megatron.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

usage() {
    cat <<'TEXT'
usage: ./launch.sh [--procs N | --hosts FILE] [--restarts N] [--debug] COMMAND [ARGUMENTS]
       ./launch.sh --node-rank R --num-nodes N --master ADDR[:PORT] [--procs N] COMMAND [ARGUMENTS]
       ./launch.sh --slurm --num-nodes N [--procs N] [--restarts N] COMMAND [ARGUMENTS] > job.sbatch
(all paths are relative to the directory of this script)

  demo       the whole study, small: corpus, teacher, four objectives, fine-tuning, report
  test       ruff and mypy, then pytest; --all: the long tests too; other arguments go to pytest
  prepare    corpus -> tokenizer -> verified .bin/.idx shards
  plan       what a study will cost, before it runs
  calibrate  time every arm's training step in turn: what a budget in hours buys on this machine
  sweep      a study's tuning trials alone: as many for every arm, at the same small budget
  pretrain   one arm of a study
  finetune   fine-tune a model on its tasks
  study      every arm x seed -> fine-tuning -> report; resumes where it stopped
  report     tables, figures and the HTML page of a study
  prune      free disk: remove the checkpoints of finished runs
  bench      throughput and kernels
  inputs     texts, models and tasks that recipes need from elsewhere: what is here, licences, how to get the rest
  inspect    verify a shard set or a teacher cache and show its statistics
  preflight  code, versions, data, disk of this machine; with --hosts: that all nodes agree and reach each other

  --procs N      N processes on this machine, through the deepspeed launcher (default 1)
  --hosts FILE   the nodes of a deepspeed hostfile, lines such as "node1 slots=8", over ssh (docs/multi_node.md)
  --restarts N   after a crash or a lost node, run the command again up to N times; it resumes (docs/exit_codes.md)
  --node-rank R  this machine is node R of --num-nodes, called so on each of them: Slurm, Kubernetes, no ssh
  --num-nodes N  how many nodes there are (also --nodes)
  --master ADDR  node 0 as the others reach it, with :PORT or at 29500
  --slurm        print a batch script for sbatch instead of running the command
  --debug        show the traceback of an error
  --help         this text; after a COMMAND: the options of the command

environment:
  DRY_RUN=1            print the commands instead of running them
  KD_PYTHON            the Python (3.11 or newer) that .venv is made from
  KD_PIP_ARGS          more arguments for pip, such as "--extra-index-url https://download.pytorch.org/whl/cpu"
  KD_LOCKED            1: only from a lock file with hashes; 0: requirements.txt (default: a lock file where one fits)
  KD_DATA              the home of real inputs, which recipes name as $KD_DATA (default: data; ./launch.sh inputs)
  OMP_NUM_THREADS      threads of each process (default: cores, not hardware threads, that others leave free / processes)
  MASTER_PORT          the port at which ranks meet (default: a free one; 29500 with --hosts)
  MASTER_ADDR          with --hosts: where ranks meet (default: the hostfile's first node)
  GLOO_SOCKET_IFNAME   the network interface that joins the nodes (default: the one on the way to the first node)
  KD_GRACE_SECONDS     how long processes may take to save after a signal, before they are killed (default 60)
  KD_RETURN_SECONDS    with --hosts --restarts: how long a lost node may take to answer again (default 300)
  KD_SSH_ARGS          with --hosts: more options for ssh, such as "-F ssh_config"
TEXT
}

say() { printf '%s\n' "$*" >&2; }
fail() { say "error: $1"; shift; for line in "$@"; do say "  $line"; done; exit 2; }
dry_run() { [[ ${DRY_RUN:-} == 1 ]]; }
show() { { printf '%q ' "$@"; printf '\n'; } | sed -E 's#://[^/@ ]+@#://***@#g'; }  # credentials of an index
run() { if dry_run; then show "$@"; else "$@"; fi; }
run_last() { if dry_run; then show "$@"; else exec "$@"; fi; }  # exec: signals reach the command itself

# --- the virtual environment ------------------------------------------------------------------------------

stamp=.venv/installed.sha256  # written last, so that an interrupted set-up is continued by the next call

installation_hash() { { pwd; cat requirements* pyproject.toml; } | sha256sum | cut -d ' ' -f 1; }

environment_is_ready() { [[ -x .venv/bin/python && -f $stamp && $(< "$stamp") == "$(installation_hash)" ]]; }

find_python() {
    local name candidates=(python3.11 python3.12 python3.13 python3)
    if [[ -n ${KD_PYTHON:-} ]]; then candidates=("$KD_PYTHON"); fi
    for name in "${candidates[@]}"; do
        "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null && echo "$name" && return
    done
    fail "no Python 3.11 or newer was found (tried: ${candidates[*]})" \
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
    .venv/bin/python -m kd_megatron.ranks.ports
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
    local group reader="" code=0
    set -m
    (trap '' USR1; exec "$@") < /dev/null &  # the workers catch SIGUSR1, the launchers above them would die of it
    group=$!
    set +m
    exec {lifeline}> >(exec > /dev/null 2>&1; keep_group "$group")  # exec: whoever reads our output waits for none but us
    if [[ ${KD_STDIN_SIGNALS:-} == 1 ]]; then
        (exec > /dev/null 2>&1; obey_stdin "$group") <&0 &
        reader=$!
    fi
    trap 'pass_signal INT "$group"' INT
    trap 'pass_signal TERM "$group"' TERM HUP
    trap 'pass_signal USR1 "$group"' USR1
    while kill -0 "$group" 2> /dev/null; do { wait "$group" || true; } 2> /dev/null; done  # a signal ends `wait` early
    trap - INT TERM HUP USR1
    { wait "$group" || code=$?; } 2> /dev/null
    tell_keeper ended
    exec {lifeline}>&-
    if [[ -n $reader ]]; then kill "$reader" 2> /dev/null || true; fi
    return "$code"
}

pass_signal() {
    stopped=1
    signal_group "$1" "$2"
    tell_keeper stopping
}

tell_keeper() { (trap '' PIPE; echo "$1" >&"$lifeline") 2> /dev/null || true; }  # it may have ended, its work done

signal_group() {
    pkill "-$1" -g "$2" -f -- '-m kd_megatron' 2> /dev/null || kill "-$1" -- "-$2" 2> /dev/null || true
}

# The lifeline's other end. "ended": all is done. "stopping", or the end of the pipe (this script was killed): the
# group may take its grace to save, then it is killed.
keep_group() {
    local word="" seconds grace=${KD_GRACE_SECONDS:-60}
    trap '' INT TERM HUP USR1
    read -r word || signal_group TERM "$1"
    if [[ $word == ended ]]; then return; fi
    if [[ -n $hosts ]]; then grace=$((grace + 30)); fi  # the nodes count their own grace
    for ((seconds = 0; seconds < grace; seconds++)); do
        sleep 1
        kill -0 -- "-$1" || return
    done
    kill -KILL -- "-$1"
}

# On a node that --hosts started: the ssh connection brings signals, one a line, and a sign of life every few seconds.
# Its end, or silence, ends this node.
obey_stdin() {
    local word
    while read -r -t "${KD_LOST_SECONDS:-60}" word; do
        case $word in
            ALIVE) ;;
            KILL) kill -KILL -- "-$1" ;;
            *) kill "-$word" $$ ;;
        esac
    done
    kill -TERM $$
}

start_node() {  # NODE SLOTS MASTER COMMAND...; slots: the processes of each node, such as 8,8
    local per_node
    IFS=, read -r -a per_node <<< "$2"
    run_group "${environment[@]}" "${accelerator[@]}" "OMP_NUM_THREADS=$(threads_per_process "${per_node[$1]}")" \
        .venv/bin/python -m kd_megatron.launch.node --rank "$1" --slots "$2" --master "$3" "${@:4}"
}

start_hosts() {
    local more=()
    if dry_run; then more=(--dry-run); fi
    set -- "${environment[@]}" .venv/bin/python -m kd_megatron.launch.hosts --hostfile "$hosts" --run "$run_name" \
        --attempt "$attempt" "${more[@]}" "$@"
    if dry_run; then "$@"; else run_group "$@"; fi
}

start() {
    if [[ -n $hosts ]]; then
        start_hosts "$@"
    elif [[ -n $node_rank ]]; then
        start_node "$node_rank" "$slots" "$master" "$@"
    elif ((procs > 1)); then
        start_node 0 "$procs" "127.0.0.1:${MASTER_PORT:-$(free_port)}" "$@"
    else
        set -- "${environment[@]}" "${accelerator[@]}" .venv/bin/python -m kd_megatron "$@"  # sees itself which cores are free
        if [[ $command == demo ]] || ((restarts > 0)); then run_group "$@"; else run_last "$@"; fi
    fi
}

# A crash (1, 128 and more), a lost rank (9) or a lost connection (255) may pass; what a user has to mend, and a stop
# that was asked for (75, Ctrl-C, a reader that has seen enough), does not.
may_pass() { (($1 == 1 || $1 == 9 || ($1 >= 128 && $1 != 130 && $1 != 141))); }

start_again() {
    local code
    while true; do
        code=0
        start "$@" || code=$?
        if ((attempt >= restarts || stopped)) || ! may_pass "$code"; then return "$code"; fi
        attempt=$((attempt + 1))
        say "restart $attempt of $restarts: the run ended with exit code $code (docs/exit_codes.md); it resumes"
    done
}

# --- commands of this script ------------------------------------------------------------------------------

run_demo() {
    start_again study recipes/demo.yaml "$@"
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
    # Files side by side, on at most four cores; but timings want the machine for themselves.
    local cores side_by_side=()
    cores=$(env -u OMP_NUM_THREADS nproc)  # which would answer with that variable
    [[ " $* " == *" throughput "* ]] || side_by_side=(-n $((cores < 4 ? cores : 4)) --dist loadfile)
    if [[ ${1:-} == --all ]]; then set -- -m "not throughput" "${@:2}"; fi
    run_last .venv/bin/python -m pytest --durations=10 "${side_by_side[@]}" "$@"
}

# --- the command line -------------------------------------------------------------------------------------

procs=1 hosts="" restarts=0 node_rank="" num_nodes="" master="" slurm="" debug=()
attempt=0 stopped=0 run_name="$(uname -n)-$$-$(date +%s)"
while [[ ${1:-} == -* ]]; do
    case $1 in
        --procs | --hosts | --restarts | --node-rank | --num-nodes | --nodes | --master)
            (($# > 1)) || fail "$1 needs a value" "to fix: see ./launch.sh --help"
            name=${1#--} name=${name//-/_} name=${name/#nodes/num_nodes}
            printf -v "$name" %s "$2"
            shift ;;
        --slurm) slurm=1 ;;
        --debug) debug=(--debug) ;;
        -h | --help) usage; exit 0 ;;
        *) fail "unknown option $1" "to fix: see ./launch.sh --help" ;;
    esac
    shift
done
[[ $procs =~ ^[1-9][0-9]*$ || ($procs =~ ^[1-9][0-9]*(,[1-9][0-9]*)+$ && -n $node_rank) ]] \
    || fail "--procs $procs" "expected: a whole number, 1 or more"
for name in KD_GRACE_SECONDS KD_LOST_SECONDS KD_RETURN_SECONDS; do
    [[ ${!name:-60} =~ ^(0|[1-9][0-9]*)$ ]] || fail "$name=${!name}" "expected: whole seconds"
done
[[ ${MASTER_PORT:-1} =~ ^[0-9]{1,5}$ ]] && ((10#${MASTER_PORT:-1} > 0 && 10#${MASTER_PORT:-1} < 65536)) \
    || fail "MASTER_PORT=$MASTER_PORT" "expected: a whole number from 1 to 65535"
[[ $restarts =~ ^[0-9]+$ ]] || fail "--restarts $restarts" "expected: a whole number, 0 or more"
[[ $procs == 1 || -z $hosts ]] || fail "--procs and --hosts are both given" "to fix: the hostfile's slots say how many processes"
check_nodes() {
    [[ -z $hosts ]] || fail "--hosts and --node-rank, --num-nodes, --master or --slurm are both given" "to fix: choose one way"
    [[ $num_nodes =~ ^[1-9][0-9]*$ ]] || fail "--num-nodes ${num_nodes:-is missing}" "expected: a whole number, 1 or more"
    [[ -z $slurm ]] || return 0
    [[ $node_rank =~ ^[0-9]+$ ]] && ((node_rank < num_nodes)) \
        || fail "--node-rank ${node_rank:-is missing}" "expected: a whole number from 0 to $((num_nodes - 1))"
    [[ $master =~ ^[A-Za-z0-9._-]+(:[0-9]+)?$ ]] \
        || fail "--master ${master:-is missing}" "expected: the address of node 0, such as node1 or 10.0.0.1:29500"
    slots=$procs
    if [[ $procs != *,* ]]; then slots=$(printf ",$procs%.0s" $(seq "$num_nodes")) slots=${slots#,}; fi
    local commas=${slots//[^,]/}
    ((${#commas} + 1 == num_nodes)) || fail "--procs $procs" "expected: one number, or one for each of the $num_nodes nodes"
}
if [[ -n $node_rank$num_nodes$master$slurm ]]; then check_nodes; fi
if (($# == 0)); then usage >&2; exit 2; fi
command=$1
shift

case " $* " in
    *" -h "* | *" --help "*)
        procs=1 hosts="" node_rank="" slurm=""
        case $command in
            demo) echo "usage: ./launch.sh [--procs N] demo [KEY=VALUE ...]   runs recipes/demo.yaml with these overrides"; exit ;;
            test) echo "usage: ./launch.sh test [--all] [PYTEST ARGUMENTS]   --all: the long ones too; arguments such as: tests/cli, -k NAME"; exit ;;
        esac ;;
esac
case $command in
    prepare | plan | report | prune | inspect | inputs | test)
        [[ $procs == 1 && -z $hosts$node_rank$slurm ]] \
            || fail "$command runs as one process" "to fix: leave out --procs, --hosts, --node-rank and --slurm" ;;
esac

environment_is_ready || install_environment
accelerator=() environment=(env KD_PROGRAM=./launch.sh PYTHONWARNINGS=ignore::FutureWarning)
has_cuda || accelerator=("DS_ACCELERATOR=${DS_ACCELERATOR:-cpu}")  # of processes here; each node sees for itself
if [[ -n $slurm ]]; then
    run_last .venv/bin/python -m kd_megatron.launch.slurm --num-nodes "$num_nodes" --procs "$procs" --restarts "$restarts" \
        "$command" "$@" "${debug[@]}"
fi
case $command in
    demo) run_demo "$@" "${debug[@]}" ;;
    test) run_tests "$@" ;;
    *) start_again "$command" "$@" "${debug[@]}" ;;
esac
