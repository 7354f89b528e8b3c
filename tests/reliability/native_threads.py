"""Looks where the work is, over and over, while native threads enter Python and leave it, as those of gloo do.

python native_threads.py SECONDS      prints how many threads came and how many looks were taken
"""

import ctypes
import sys
import threading
import time

from kd_megatron.ranks import stages

libc = ctypes.CDLL(None)
ended = threading.Event()
num_looks = num_threads = 0


@ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)
def enter(_: int | None) -> None:
    """Run by a thread that Python does not know: a state of its own is made for it, and taken away."""


def come_and_go() -> None:
    global num_threads
    while not ended.is_set():
        thread = ctypes.c_ulong()
        libc.pthread_create(ctypes.byref(thread), None, enter, None)
        libc.pthread_join(thread, None)
        num_threads += 1


def look() -> None:
    global num_looks
    while not ended.is_set():
        stages._innermost_calls()
        num_looks += 1


if __name__ == "__main__":
    sys.setswitchinterval(1e-4)
    threads = [threading.Thread(target=work) for work in (look, come_and_go, come_and_go, come_and_go)]
    for thread in threads:
        thread.start()
    time.sleep(float(sys.argv[1]))
    ended.set()
    for thread in threads:
        thread.join()
    print(num_threads, num_looks)
