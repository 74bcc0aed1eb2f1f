"""Compiles every kernel ahead of time, without a GPU, and prints what each needs as JSON.

    python -m tests.kernels.compile_kernels 90                # size S, as the tests do
    python -m tests.kernels.compile_kernels 80 90 --sizes XS S M L XL --dtypes float32 bfloat16

Run as a program, without TRITON_INTERPRET. `tests/kernels/cards.py` says what cards allow.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mudreamer_fast.config import SIZES, SizeName
from mudreamer_fast.kernels import tiles
from tests.kernels.cards import SHARED_BYTES

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
ACTIONS, STEPS = 6, 16
CLASS = 32
"""Classes of a latent, and how many latents there are, in every size of the paper."""
BATCH = {"ROWS_ALL": 16, "CHUNKS": 1, "ROWS": 64, "COLUMNS": 16, "USE_BATCH": True}
RETURN = {"STEPS": STEPS, "FIRST": True, "TILE": 64}
POLICY = {"SIZE": ACTIONS, "LOW": 0.1, "HIGH": 1.0, "SHIFT": 2.0, "TILE": 256}


class Case(NamedTuple):
    """A kernel and what it is compiled for."""

    module: str
    kernel: str
    constants: dict[str, Any]
    warps: int


def sized_cases(hidden: int, deter: int) -> list[Case]:
    """Kernels that read whole rows of the model's layers."""
    layer = {"WIDTH": hidden, "BLOCK": tiles.block(hidden)}
    cell = {"WIDTH": deter, "BLOCK": tiles.block(deter)}
    affine = {"WIDTH": deter, "EACH": 64, "ROWS": 8, "COLUMNS": 64}
    start = {"DETER": deter, "LATENTS": CLASS * CLASS, "TILE": 1024}
    each = {"ROWS": 32, "AFFINE": True}
    return [
        Case("linear_norm_act", "linear_norm_act_fwd", layer, tiles.warps(hidden)),
        Case("linear_norm_act", "linear_norm_act_bwd", layer | each, tiles.warps(hidden)),
        Case("layernorm_gru", "layernorm_gru_fwd", cell, tiles.warps(3 * deter)),
        Case("layernorm_gru", "layernorm_gru_bwd", cell, tiles.warps(3 * deter)),
        Case("layernorm_gru", "layernorm_gru_affine", affine, 4),
        Case("rssm_observe_by_step", "rssm_observe_reset", start, 4),
        Case(
            "rssm_observe_by_step",
            "rssm_observe_carry",
            {"HIDDEN": hidden, "DETER": deter, "TILE": 1024},
            4,
        ),
    ]


def other_cases(classes: int, bins: int) -> list[Case]:
    """Kernels whose rows are as long in every size."""
    of_class = {"CLASSES": classes, "UNIMIX": 0.01}
    latents = of_class | {"GROUPS": classes}
    group = {"TILE": classes, "BLOCK": tiles.block(classes)}
    warps = tiles.warps(classes * tiles.block(classes))
    row = {"BINS": bins, "BLOCK": tiles.block(bins), "LIMIT": 20.0}
    return [
        Case("batchnorm_posterior", "batchnorm_posterior_fwd", BATCH, 4),
        Case("batchnorm_posterior", "batchnorm_posterior_bwd", BATCH, 4),
        Case("categorical", "categorical_sample_fwd", latents | group, warps),
        Case("categorical", "categorical_sample_bwd", latents | group, warps),
        Case("categorical", "categorical_sample_bwd", latents | group | {"p_more": None}, warps),
        Case("categorical", "categorical_entropy_fwd", of_class | group, warps),
        Case("categorical", "categorical_entropy_bwd", of_class | group, warps),
        Case("categorical", "categorical_kl_fwd", latents | group, warps),
        Case(
            "categorical",
            "categorical_kl_bwd",
            latents | group | {"OF_Q": True, "OF_P": True},
            warps,
        ),
        *(
            Case("two_hot", f"two_hot_{name}", row, tiles.warps(bins))
            for name in ("loss_fwd", "loss_bwd", "mean_fwd", "mean_bwd")
        ),
        Case("lambda_return", "lambda_return_fwd", RETURN, 2),
        Case("lambda_return", "lambda_return_bwd", RETURN, 2),
        Case("rssm_imagine", "rssm_imagine_action_fwd", POLICY, 4),
        Case("rssm_imagine", "rssm_imagine_action_bwd", POLICY | {"EXTRA": True}, 4),
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

ONES = ("rows", "groups", "elements", "width", "STEPS")
"""Numbers that the JIT compiles in where they are 1."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
POINTER = {"float32": "*fp32", "bfloat16": "*bf16"}
BATCH_ROWS = {"L": 64}
"""Rows of a batch for the persistent kernels, where not 16: the most they take."""


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
        options=options,
    )
    return made, {
        "kernel": kernel.__name__,
        "architecture": architecture,
        "warps": options["num_warps"],
        "dynamic_shared": made.metadata.shared,
        **needs(made.asm["cubin"]),
    }


def row_kernels(architecture: int, size: SizeName, dtype: str) -> Iterator[dict[str, Any]]:
    """The kernels that each need no other program; those alike in all sizes with size S."""
    dims = SIZES[size]
    cases = sized_cases(dims.hidden, dims.deter)
    if size == "S":
        cases += other_cases(CLASS, 255)
    for module, name, constants, warps in cases:
        kernel = getattr(import_module(f"mudreamer_fast.kernels.{module}"), f"{name}_kernel")
        yield _row(kernel, constants, warps, architecture, size, dtype)
        ones = {name: 1 for name in ONES if name in kernel.arg_names and name not in constants}
        if ones:
            yield _row(kernel, constants | ones, warps, architecture, size, dtype)


def _row(
    kernel: Any, constants: dict[str, Any], warps: int, architecture: int, size: str, dtype: str
) -> dict[str, Any]:
    found = compiled(kernel, constants, tiles.launch(warps), architecture, POINTER[dtype])[1]
    return found | {"size": size, "dtype": dtype}


def persistent_kernels(architecture: int, size: SizeName, dtype: str) -> Iterator[dict[str, Any]]:
    """The kernels whose programs wait for one another."""
    shared, forward, backward = (
        import_module(f"mudreamer_fast.kernels.rssm_observe_persistent{part}")
        for part in ("", "_fwd", "_bwd")
    )
    dims, rows = SIZES[size], BATCH_ROWS.get(size, 16)
    latents, kind = CLASS * CLASS, DTYPES[dtype]
    card_bytes = SHARED_BYTES[architecture]
    for direction, module in (("fwd", forward), ("bwd", backward)):
        kernel = getattr(module, f"rssm_observe_persistent_{direction}_kernel")
        # As the JIT finds them: memory and rows begin at multiples of 16.
        attributes = {
            (i,): [["tt.divisibility", 16]]
            for i, argument in enumerate(kernel.arg_names)
            if argument.startswith(("p_", "s_"))
        }
        for precision in ("ieee", "tf32") if dtype == "float32" else ("ieee",):
            constants = shared.constants(rows, dims.hidden, dims.deter, CLASS, CLASS, kind)
            constants |= {"UNIMIX": 0.01, "NORM": "batch", "PRECISION": precision}
            if direction == "fwd":
                constants |= forward.keeping(
                    rows, dims.hidden, dims.deter, latents, kind, True, card_bytes
                )
            else:
                constants["SLICE"] = shared.slice_of(dims.hidden, dims.deter)
            made, row = compiled(
                kernel, constants, shared.OPTIONS, architecture, POINTER[dtype], attributes
            )
            ptx = made.asm["ptx"]
            yield row | {
                "size": size,
                "dtype": dtype,
                "precision": precision,
                "keeps_weights": constants.get("KEEP", False),
                "tensor_core_products": ptx.count("mma.sync"),
                "releases": len(re.findall(r"(?:atom|red)\.\S*release", ptx)),
                "acquires": len(re.findall(r"\S*acquire", ptx)),
                "cooperative": made.metadata.launch_cooperative_grid,
            }


def main() -> int:
    """Prints a row for each kernel, for what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("architectures", nargs="+", type=int, choices=list(SHARED_BYTES))
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=["S"])
    parser.add_argument("--dtypes", nargs="+", choices=list(DTYPES), default=["float32"])
    wanted = parser.parse_args()
    rows = [
        row
        for architecture, size, dtype in itertools.product(
            wanted.architectures, wanted.sizes, wanted.dtypes
        )
        for kernels in (row_kernels, persistent_kernels)
        for row in kernels(architecture, size, dtype)
    ]
    json.dump({"triton": triton.__version__, "kernels": rows}, sys.stdout, indent=0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
