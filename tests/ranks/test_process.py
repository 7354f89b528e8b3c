"""The beginning and the end of a process."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import atexit, threading
from kd_megatron.ranks.process import exit_process

atexit.register(lambda: print("handler ran"))
threading.Thread(target=threading.Event().wait).start()  # would keep `sys.exit` waiting for ever
print("work done")
exit_process(7)
"""


def test_output_and_handlers_survive_and_threads_do_not_hold_it():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (7, "work done\nhandler ran\n", "")


FAULTS = """
import resource, sys, torch
from kd_megatron.ranks.process import keep_freed_memory

if sys.argv[1] == "kept":
    keep_freed_memory()
for step in range(30):
    if step == 20:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [torch.ones(12 * 2**20) for _ in range(2)]  # 48 MiB each: over 32, glibc gives them back by itself
    del blocks
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif("CS_GNU_LIBC_VERSION" not in os.confstr_names, reason="not glibc")
def test_freed_blocks_are_kept_for_the_next_step():
    plain = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    faults = {
        how: int(subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, env=plain).stdout)
        for how in ("given_back", "kept")
    }
    num_pages = 10 * 2 * 48 * 2**20 // os.sysconf("SC_PAGE_SIZE")
    assert faults["kept"] < num_pages / 20
    assert faults["given_back"] > num_pages / 2
