"""Compiles every kernel ahead of time, without a GPU, and prints what each needs as JSON.

Run as a program, without TRITON_INTERPRET: `python -m tests.kernels.compile_kernels 90`. The sizes
are those of size S; rows may be longer in larger sizes, which the launch shapes follow.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mudreamer_fast.kernels import tiles

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
U, D, GROUPS, CLASSES, BINS, ACTIONS, STEPS = 512, 512, 32, 32, 255, 6, 16
LAYER = {"WIDTH": U, "BLOCK": tiles.block(U)}
CELL = {"WIDTH": D, "BLOCK": tiles.block(D)}
BATCH = {"ROWS_ALL": 16, "CHUNKS": 1, "ROWS": 64, "COLUMNS": 16, "USE_BATCH": True}
START = {"DETER": D, "LATENTS": GROUPS * CLASSES, "TILE": 1024}
CLASS = {"CLASSES": CLASSES, "UNIMIX": 0.01}
LATENTS = CLASS | {"GROUPS": GROUPS}
GROUP = {"TILE": 32, "BLOCK": 32}
ROW = {"BINS": BINS, "BLOCK": tiles.block(BINS), "LIMIT": 20.0}
RETURN = {"STEPS": STEPS, "FIRST": True, "TILE": 64}
POLICY = {"SIZE": ACTIONS, "LOW": 0.1, "HIGH": 1.0, "SHIFT": 2.0, "TILE": 256}

# Module, kernel, its constants, its warps.
KERNELS: list[tuple[str, str, dict[str, Any], int]] = [
    ("linear_norm_act", "linear_norm_act_fwd", LAYER, tiles.warps(U)),
    (
        "linear_norm_act",
        "linear_norm_act_bwd",
        LAYER | {"ROWS": 32, "AFFINE": True},
        tiles.warps(U),
    ),
    ("layernorm_gru", "layernorm_gru_fwd", CELL, tiles.warps(3 * D)),
    ("layernorm_gru", "layernorm_gru_bwd", CELL | {"ROWS": 2, "AFFINE": True}, tiles.warps(6 * D)),
    ("batchnorm_posterior", "batchnorm_posterior_fwd", BATCH, 4),
    ("batchnorm_posterior", "batchnorm_posterior_bwd", BATCH, 4),
    ("categorical", "categorical_sample_fwd", LATENTS | GROUP, 4),
    ("categorical", "categorical_sample_bwd", LATENTS | GROUP, 4),
    ("categorical", "categorical_entropy_fwd", CLASS | GROUP, 4),
    ("categorical", "categorical_entropy_bwd", CLASS | GROUP, 4),
    ("categorical", "categorical_kl_fwd", LATENTS | GROUP, 4),
    ("categorical", "categorical_kl_bwd", LATENTS | GROUP | {"OF_Q": True, "OF_P": True}, 4),
    ("two_hot", "two_hot_loss_fwd", ROW, 1),
    ("two_hot", "two_hot_loss_bwd", ROW, 1),
    ("two_hot", "two_hot_mean_fwd", ROW, 1),
    ("two_hot", "two_hot_mean_bwd", ROW, 1),
    ("lambda_return", "lambda_return_fwd", RETURN, 2),
    ("lambda_return", "lambda_return_bwd", RETURN, 2),
    ("rssm_observe_by_step", "rssm_observe_reset", START, 4),
    ("rssm_imagine", "rssm_imagine_action_fwd", POLICY, 4),
    ("rssm_imagine", "rssm_imagine_action_bwd", POLICY | {"EXTRA": True}, 4),
]
FLOAT_SCALARS = ("eps", "discount", "lam")

POINTERS = {
    "p_arrived": "*i32",
    "p_first": "*i1",
    "p_affine": "*fp32",
    **{
        f"p_{layer}_{what}": "*fp32"
        for layer in ("input", "gate", "hidden")
        for what in ("sums", "statistics")
    },
}
"""Those that are not to the weights' type."""

# Rows, hidden units, state; type of the weights, precision of their products.
PERSISTENT: list[tuple[str, int, int, int, torch.dtype, str]] = [
    ("S", 16, 512, 512, torch.float32, "ieee"),
    ("S", 16, 512, 512, torch.float32, "tf32"),
    ("S", 16, 512, 512, torch.bfloat16, "ieee"),
    ("L", 64, 768, 2048, torch.bfloat16, "ieee"),
]


def signature(kernel: Any, constants: dict[str, Any], pointer: str = "*fp32") -> dict[str, str]:
    """Types of a kernel's arguments: pointers are to floats, other numbers are integers."""
    found = {}
    for name in kernel.arg_names:
        if name in constants:
            found[name] = "constexpr"
        elif name.startswith("p_"):
            found[name] = POINTERS.get(name, pointer)
        else:
            found[name] = "fp32" if name in FLOAT_SCALARS else "i32"
    return found


def needs(cubin: bytes) -> dict[str, int]:
    """Registers a thread, bytes of stack (spills) and of shared memory, from the binary."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run(
            [CUOBJDUMP, "--dump-resource-usage", file.name],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    found = {name.lower(): int(value) for name, value in re.findall(r"([A-Z]+):(\d+)", text)}
    return {name: found[name] for name in ("reg", "stack", "local", "shared")}


def compiled(
    kernel: Any, constants: dict[str, Any], options: dict[str, Any], architecture: int,
    pointer: str = "*fp32", attributes: dict[Any, Any] | None = None,
) -> tuple[Any, dict[str, Any]]:  # fmt: skip
    """A kernel for an architecture, and what it needs there."""
    source = ASTSource(
        fn=kernel,
        signature=signature(kernel, constants, pointer),
        constexprs=constants,
        attrs=attributes,
    )
    made = triton.compile(
        source,
        target=GPUTarget("cuda", architecture, 32),
        options={"enable_fp_fusion": True, **options},
    )
    return made, {
        "kernel": kernel.__name__,
        "architecture": architecture,
        "warps": options["num_warps"],
        "dynamic_shared": made.metadata.shared,
        **needs(made.asm["cubin"]),
    }


def row_kernels(architecture: int) -> Iterator[dict[str, Any]]:
    """The kernels that each need no other program."""
    for module, name, constants, warps in KERNELS:
        kernel = getattr(import_module(f"mudreamer_fast.kernels.{module}"), f"{name}_kernel")
        yield compiled(kernel, constants, {"num_warps": warps}, architecture)[1]


def persistent_kernels(architecture: int) -> Iterator[dict[str, Any]]:
    """The kernels whose programs wait for one another."""
    shared, forward, backward = (
        import_module(f"mudreamer_fast.kernels.rssm_observe_persistent{part}")
        for part in ("", "_fwd", "_bwd")
    )
    for direction, module in (("fwd", forward), ("bwd", backward)):
        kernel = getattr(module, f"rssm_observe_persistent_{direction}_kernel")
        # As the JIT finds them: memory and rows begin at multiples of 16.
        attributes = {
            (i,): [["tt.divisibility", 16]]
            for i, argument in enumerate(kernel.arg_names)
            if argument.startswith(("p_", "s_"))
        }
        for size, rows, hidden, deter, dtype, precision in PERSISTENT:
            constants = shared.constants(rows, hidden, deter, GROUPS, CLASSES, dtype)
            constants |= {"UNIMIX": 0.01, "NORM": "batch", "PRECISION": precision}
            if direction == "fwd":
                constants |= forward.keeping(rows, hidden, deter, GROUPS * CLASSES, dtype, True)
            else:
                constants["SLICE"] = shared.slice_of(hidden, deter)
            pointer = "*bf16" if dtype == torch.bfloat16 else "*fp32"
            made, row = compiled(
                kernel, constants, shared.OPTIONS, architecture, pointer, attributes
            )
            ptx = made.asm["ptx"]
            yield row | {
                "size": f"{size}, {dtype}, {precision}",
                "tensor_core_products": ptx.count("mma.sync"),
                "releases": len(re.findall(r"(?:atom|red)\.\S*release", ptx)),
                "acquires": len(re.findall(r"\S*acquire", ptx)),
                "cooperative": made.metadata.launch_cooperative_grid,
            }


def main() -> int:
    """Prints a row for each kernel, for the architecture that the command line names."""
    architecture = int(sys.argv[1])
    rows = [*row_kernels(architecture), *persistent_kernels(architecture)]
    json.dump({"triton": triton.__version__, "kernels": rows}, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
