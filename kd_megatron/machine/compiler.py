"""How torch.compile behaves in a process of ours."""

import torch

MOST_KINDS = 64  # of one layer's code: sizes, with and without gradients, arms of one process


def allow_all_kinds_of_layers() -> None:
    """Compile a layer for every kind that comes, and raise past a limit.

    By itself torch.compile stops at 8 kinds and runs the rest uncompiled without a word: the arms that are built last
    would be the slow ones.
    """
    torch._dynamo.config.recompile_limit = MOST_KINDS
    torch._dynamo.config.fail_on_recompile_limit_hit = True
