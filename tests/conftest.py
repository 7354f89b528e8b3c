"""Puts this directory on the import path: every test can write ``from tolerances import NAME``."""

import os

# Triton reads it when a kernel is decorated: every kernel of this process runs in its interpreter, on CPU tensors.
# Compiling for a GPU is tested in processes of their own.
os.environ["TRITON_INTERPRET"] = "1"
