"""Compiles Triton kernels for GPUs that need not be there, and reports what came out: one line of JSON a kernel.

A script, because ``TRITON_INTERPRET``, which the tests set, decides for a whole process. A case of aot_cases.py calls a
launch function with CPU tensors; the kernels it launches are recorded, not run, and compiled as they were launched: the
same block sizes, dtypes, strides, warps and stages.

    env -u TRITON_INTERPRET python tests/kernels/aot_compile.py [CASE ...]
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import triton
from aot_cases import CAPABILITIES, CASES
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from kd_megatron.kernels import triton_tools

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion", "maxnreg")
INSTRUCTIONS = ("HMMA", "HGMMA", "UTCHMMA", "MUFU.EX2", "LDL", "STL", "LDG", "LDGSTS")
ELEMENT_TYPES = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.int64: "i64",
    torch.bool: "i1",
}


@dataclass(frozen=True)
class Launch:
    """A kernel and what it was launched with, by name."""

    kernel: JITFunction
    arguments: dict[str, Any]


def recorded(case: Callable[[], None], capability: int) -> list[Launch]:
    """The launches that ``case()`` asks for on a GPU of this capability."""
    launches = []

    def record(kernel, *arguments, grid, warmup, **named):
        launches.append(Launch(kernel, {**dict(zip(kernel.arg_names, arguments, strict=False)), **named}))

    with patch.object(JITFunction, "run", record), patch.object(triton_tools, "capability", lambda _: capability):
        case()
    return launches


def compiled(launch: Launch, capability: int) -> Any:
    """The kernel as this launch would have it compiled on a GPU of this capability."""
    signature, constants, attributes = {}, {}, {}
    for position, parameter in enumerate(launch.kernel.params):
        value = launch.arguments[parameter.name]
        if parameter.is_constexpr:
            constants[(position,)] = value
        signature[parameter.name] = (
            "constexpr" if parameter.is_constexpr else type_of(value, (position,), constants, attributes)
        )
    source = ASTSource(fn=launch.kernel, signature=signature, constexprs=constants, attrs=attributes)
    options = {name: launch.arguments[name] for name in OPTIONS if name in launch.arguments}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def type_of(value: Any, path: tuple[int, ...], constants: dict, attributes: dict) -> Any:
    """The type of the argument at ``path``; None and 1 become constants and multiples of 16 are noted, as in Triton."""
    if isinstance(value, tuple):
        return tuple(type_of(item, (*path, place), constants, attributes) for place, item in enumerate(value))
    if value is None or (isinstance(value, int) and value == 1):
        constants[path] = value
        return "constexpr"
    address = value if isinstance(value, int) else value.data_ptr()
    if address % 16 == 0:
        attributes[path] = [["tt.divisibility", 16]]
    return "i32" if isinstance(value, int) else "*" + ELEMENT_TYPES[value.dtype]


def measured(binary: Any) -> dict[str, int]:
    """What a thread and a block of the compiled kernel take, and how often each of `INSTRUCTIONS` stands in it."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        usage = output("cuobjdump", "-res-usage", file.name)
        assembly = output("nvdisasm", "-c", file.name)  # of code alone: a fifth of the lines
    registers, stack, local = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage).groups()
    return {
        "registers": int(registers),
        "stack_bytes": int(stack),  # where registers are spilled to
        "local_bytes": int(local),
        "shared_bytes": binary.metadata.shared,
        **{name: len(re.findall(rf"\s{re.escape(name)}\b", assembly)) for name in INSTRUCTIONS},
    }


def output(tool: str, *arguments: str) -> str:
    return subprocess.run([TOOLS / tool, *arguments], capture_output=True, text=True, check=True).stdout


def reports(names: list[str]) -> list[dict[str, Any]]:
    """Of every kernel of these cases. Each is taken apart, by programs of their own, while the next is compiled."""
    with ThreadPoolExecutor(2) as pool:
        begun = [
            (facts(name, launch, capability), pool.submit(measured, compiled(launch, capability)))
            for name in names
            for capability in CAPABILITIES
            for launch in recorded(CASES[name].call, capability)
        ]
    return [known | found.result() for known, found in begun]


def tile_of(arguments: dict[str, Any]) -> dict[str, int]:
    """Of scores, or of one row of logits; 0 where a kernel has neither."""
    if "TILE" in arguments:
        return {"rows": 1, "columns": arguments["TILE"]}
    return {size: arguments.get(size.upper(), 0) for size in ("rows", "columns")}


def facts(name: str, launch: Launch, capability: int) -> dict[str, Any]:
    return {
        "case": name,
        "kernel": launch.kernel.fn.__name__,
        "capability": capability,
        **tile_of(launch.arguments),
        "num_warps": launch.arguments["num_warps"],
    }


if __name__ == "__main__":
    for report in reports(sys.argv[1:] or list(CASES)):
        print(json.dumps(report), flush=True)
