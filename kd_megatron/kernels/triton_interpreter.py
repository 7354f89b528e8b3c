"""Triton's interpreter as far as versions of it have to be mended: for the tests and dry runs of kernels on a CPU."""

from typing import Any

from triton.runtime import interpreter


def mend() -> None:
    """Let scalars of a kernel be the bounds of its loops with NumPy 2.5 and later.

    The interpreter holds a scalar as an array of one element. Triton 3.6 makes an index of it by ``int(array)``, which
    NumPy 2.5 refuses unless the array has no dimensions.
    """
    patch = interpreter._patch_lang_tensor
    if getattr(patch, "is_mended", False):
        return

    def mended(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda scalar: int(scalar.handle.data.item()))

    mended.is_mended = True  # type: ignore[attr-defined]
    interpreter._patch_lang_tensor = mended
