"""Which rank this process is, told without torch: what only reads and writes files needs no more of a group."""

import os
import sys


def rank() -> int:
    """This process's rank, 0 when alone."""
    group = sys.modules.get("torch.distributed")  # whoever joined a group has imported it
    return int(group.get_rank()) if group and group.is_initialized() else int(os.environ.get("RANK", 0))


def is_main() -> bool:
    """Whether this is rank 0, which alone writes files and talks."""
    return rank() == 0
