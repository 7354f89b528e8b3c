"""Which line asked for an operation."""

import sys
import sysconfig
import traceback

STANDARD_LIBRARY = sysconfig.get_paths()["stdlib"]
NOT_ASKING = ("/benchmarks/model/", "/site-packages/torch/")  # who passes operations on


def place() -> str:
    """The innermost running line that is neither PyTorch's nor this package's, as ``file:line function``.

    Of a backward pass that PyTorch runs by itself this is the line that began it.
    """
    for frame, line in traceback.walk_stack(sys._getframe(1)):
        file, function = frame.f_code.co_filename, frame.f_code.co_name
        if _asks(file):
            folders = file.rpartition("/site-packages/")[2].split("/")
            return f"{'/'.join(folders[-3:])}:{line} {function}"
    return "the interpreter"


def _asks(file: str) -> bool:
    is_standard = file.startswith(STANDARD_LIBRARY) and "/site-packages/" not in file
    return not is_standard and not file.startswith("<") and not any(part in file for part in NOT_ASKING)
