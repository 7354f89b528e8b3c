"""Fills a teacher cache and reads it, in one process group; rank 0 writes curves and counts as JSON.

python cache_worker.py INPUTS OUTPUT
"""

import json
import sys
from pathlib import Path

from curves import curve
from test_teacher_cache import NUM_STEPS, POOL, Student, study

from kd_megatron.console import logs
from kd_megatron.ranks import dist
from kd_megatron.ranks.process import exit_process

if __name__ == "__main__":
    inputs, output = map(Path, sys.argv[1:])
    logs.quiet_libraries()
    dist.initialise()
    recipe = study(inputs, output.parent / "cache", training={"micro_batch_size": 4})
    found = {
        name: curve(recipe, "minilm", output.parent / name, inputs / "teacher", NUM_STEPS, rate=3e-3)
        for name in ("fill", "read")
    }
    student = Student(study(inputs, output.parent / "again", training={"micro_batch_size": 4}), "minilm", output.parent)
    student.learn(POOL // 8)
    facts = {key: value for key, value in student.close().items() if key.startswith("rows_")}
    if dist.is_main():
        output.write_text(json.dumps({**found, "facts": facts}), encoding="utf-8")
    dist.shut_down()
    exit_process(0)
