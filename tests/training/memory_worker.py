"""What a step takes on several processes, beside what was predicted; rank 0 writes both, for each case, as JSON.

python memory_worker.py INPUTS OUTPUT
"""

import json
import sys
from pathlib import Path

from small_shards import VOCAB_SIZE
from test_memory import SIZES_OF_STAGES, measured, point

from kd_megatron import dist, logs
from kd_megatron.engine.memory import predict
from kd_megatron.engine.simulate import simulate_arm
from kd_megatron.process import exit_process

if __name__ == "__main__":
    inputs, output = map(Path, sys.argv[1:])
    logs.quiet_libraries()
    dist.initialise()
    found = {}
    for ds_config in ("zero0", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload"):
        for name, (student, training) in SIZES_OF_STAGES.items():
            study = point(inputs, "scratch", ds_config, student, **training)
            taken = max(dist.gather(measured(study, inputs, output.parent / f"{ds_config}_{name}")))
            expected = predict(study, simulate_arm(study, "scratch", VOCAB_SIZE), ds_config, dist.world_size()).total
            found[f"{ds_config}, {name}"] = (expected, taken)
    if dist.is_main():
        output.write_text(json.dumps(found), encoding="utf-8")
    dist.shut_down()
    exit_process(0)
