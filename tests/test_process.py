"""The end of a process."""

import subprocess
import sys

PROGRAM = """
import atexit, threading
from kd_megatron.process import exit_process

atexit.register(lambda: print("handler ran"))
threading.Thread(target=threading.Event().wait).start()  # would keep `sys.exit` waiting for ever
print("work done")
exit_process(7)
"""


def test_output_and_handlers_survive_and_threads_do_not_hold_it():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (7, "work done\nhandler ran\n", "")
