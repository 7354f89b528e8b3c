"""``launch.sh --slurm``: the batch script of a run on many nodes, for ``sbatch``."""

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

SCRIPT = """\
#!/usr/bin/env bash
# Written by: ./launch.sh --slurm {call}
# Submit with sbatch; its options, such as --time, --partition and --gpus-per-node, win over the lines below.
#SBATCH --job-name=kd_megatron
#SBATCH --nodes={num_nodes}
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.out
set -uo pipefail
cd {directory}
export KD_GRACE_SECONDS=${{KD_GRACE_SECONDS:-240}}  # less than the 300 seconds of --signal above

restarts={restarts}  # how often a crash or a lost node puts the job back into the queue; the run resumes
master=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
master=$master:$((20000 + SLURM_JOB_ID % 10000))

# One launch.sh on each node, which starts its {procs} processes. srun passes signals on to them.
srun --ntasks-per-node=1 --kill-on-bad-exit=0 --wait=0 bash -c {task} launch.sh "$master" &
step=$!
limit=0
trap 'limit=1; kill -USR1 $step' USR1  # five minutes ahead of the time limit: save, and go on in the next job
trap 'kill -TERM $step' TERM
while kill -0 $step 2> /dev/null; do wait $step; done  # a trapped signal ends `wait` early
wait $step
code=$?

requeue() {{ echo "exit code $code: back into the queue, $1"; scontrol requeue "$SLURM_JOB_ID"; }}
crashes=.slurm-$SLURM_JOB_ID.restarts  # a line for each; SLURM_RESTART_COUNT has the requeues at time limits too
count=$(cat "$crashes" 2> /dev/null | wc -l)
if ((code == 75 || (limit && code >= 128))); then
    requeue "it is not finished"
elif ((count < restarts && (code == 1 || code == 9 || (code >= 128 && code != 130 && code != 141)))); then
    echo "$code" >> "$crashes"
    requeue "restart $((count + 1)) of $restarts"
else
    rm -f "$crashes"
fi
exit $code
"""


def main() -> int:
    """Print the script."""
    parser = argparse.ArgumentParser(prog="kd_megatron.launch.slurm")
    parser.add_argument("--num-nodes", type=int, required=True)
    parser.add_argument("--procs", type=int, required=True)
    parser.add_argument("--restarts", type=int, default=0)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    print(script(arguments.num_nodes, arguments.procs, arguments.restarts, arguments.command), end="")
    return 0


def script(num_nodes: int, procs: int, restarts: int, command: Sequence[str]) -> str:
    """The batch script that runs ``command`` with ``procs`` processes on each of ``num_nodes`` nodes."""
    options = ["--num-nodes", str(num_nodes), "--procs", str(procs)]
    call = shlex.join([*options, "--restarts", str(restarts), *command])
    task = f'exec ./launch.sh --node-rank "$SLURM_NODEID" --master "$1" {shlex.join([*options, *command])}'
    return SCRIPT.format(
        call=call,
        num_nodes=num_nodes,
        procs=procs,
        restarts=restarts,
        directory=shlex.quote(os.fspath(Path.cwd())),
        task=shlex.quote(task),
    )


if __name__ == "__main__":
    sys.exit(main())
