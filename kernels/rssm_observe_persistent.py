"""What both passes of the persistent `rssm_observe` share: one launch each, five phases a step.

In each phase a program computes columns of its own for all rows, from what all programs wrote in
the phases before; between two phases stands a barrier. Every element is written once, so that no
program can read an old one.

Forward, from the first step to the last:

| phase | reads | writes |
|---|---|---|
| input | z | columns of the input layer, before its norm |
| gates | the input layer, h | columns j of all three gates, and their part of the norm's sums |
| state | those sums | columns j of the next h |
| hidden | h | columns of the posterior's hidden layer, whose batch norm needs no other program |
| latents | the hidden layer | the logits of a group of latents, and its draw |

Backward, from the last step to the first, gradients of the same:

| phase | reads | writes |
|---|---|---|
| latents | what the next step asks of its input layer | a group's logits |
| hidden | those | columns of the posterior's hidden layer |
| state | the hidden layer's | columns j of h, and of the gates up to their norm's two sums |
| gates | those sums | columns j of all three gates |
| input | the gates' | columns of the input layer's output, and of the h before |

What needs no recurrence is left for all steps at once: the gradients of the weights, and of the
layer norms' scales and shifts.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from mudreamer_fast.kernels import tiles
from mudreamer_fast.kernels.device import INTERPRETED
from mudreamer_fast.ops.signatures import Linear, NormLinear

SLICES = 8
"""Warps of a program, each with a slice of a product's inner axis."""
NARROW = 512
"""Widest layers of which a program holds 32 elements of a slice at a time; of wider ones, 16."""
BLOCK = 16
"""Rows of a product: the least that tensor cores take."""
OPERANDS = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16}
COLUMNS = 8
"""Columns of a product: the least that they take, so that most programs have work."""
MAX_ROWS = 64
"""More of a column, for batch norm, does not fit a program's registers."""
OPTIONS = {**tiles.launch(SLICES), "num_stages": 1, "maxnreg": 255, "launch_cooperative_grid": True}
"""How the kernels are launched: the driver refuses a grid that can not be resident at once."""


class ObserveWeights(NamedTuple):
    """The weights of the recurrence."""

    input: NormLinear
    """Of the input layer."""
    gru: NormLinear
    """Of the cell."""
    hidden: NormLinear
    """Of the posterior's hidden layer, without the embedding's columns."""
    out: Linear
    """Of the posterior's output."""

    def tensors(self) -> list[Tensor]:
        """All eleven, in their order."""
        return [tensor for layer in self for tensor in layer]

    @classmethod
    def of(cls, tensors: Sequence[Tensor]) -> ObserveWeights:
        """What `tensors` gave, with names again."""
        return cls(
            NormLinear(*tensors[:3]),
            NormLinear(*tensors[3:6]),
            NormLinear(*tensors[6:9]),
            Linear(*tensors[9:]),
        )


class Inputs(NamedTuple):
    """What the recurrence reads of each step.

    In kernels this and the tuples that follow hold pointers in the tensors' places.
    """

    embed_part: Tensor
    """(B, T, U), the embeddings' share of the posterior's hidden layer."""
    action_part: Tensor
    """(B, T, U), the actions' share of the input layer."""
    is_first: Tensor
    """(B, T) bool."""
    uniforms: Tensor
    """(B, T, G)."""


class Sums(NamedTuple):
    """Sums by tile, of which layer norm's statistics are made."""

    input: Tensor
    """(T, B, 2, tiles), of the input layer."""
    gates: Tensor
    """(T, B, 2, tiles)."""
    hidden: Tensor
    """(T, B, 2, tiles), of the posterior's hidden layer; without meaning but under layer norm."""


class Saved(NamedTuple):
    """What the forward pass computes, step by step, and the backward pass needs."""

    buffer: Tensor
    """(T, B, U + D + G*C + A or more), `[u | h | z | a]` before each step; a is given."""
    input_pre: Tensor
    """(T, B, U), the input layer before its norm."""
    gates: Tensor
    """(T, B, 3D), before their norm."""
    deters: Tensor
    """(T, B, D), h after each step."""
    hidden_pre: Tensor
    """(T, B, U), the posterior's hidden layer before its norm."""
    acts: Tensor
    """(T, B, U), and behind it."""
    means: Tensor
    """(T, U), batch norm's, over the rows of a step; (T, 0) under layer norm."""
    variances: Tensor
    """(T, U), biased."""
    logits: Tensor
    """(T, B, G*C), the posterior's."""
    stochs: Tensor
    """(T, B, G*C), z after each step."""


class Gradients(NamedTuple):
    """Gradients by step, each (T, B, size)."""

    logits: Tensor
    """Of the posterior's logits."""
    acts: Tensor
    """Of the posterior's hidden layer's output."""
    hidden: Tensor
    """Of that layer before its batch norm; not filled in under layer norm."""
    affine: Tensor
    """(T, 2, U) float32, each step's share to the batch norm's scale and shift; likewise."""
    deter: Tensor
    """Of h after the step."""
    gates: Tensor
    """Of the gates before their norm."""
    input: Tensor
    """Of the input layer's output."""
    before: Tensor
    """Of the h that the step starts from, through the step."""

    @classmethod
    def like(cls, saved: Saved) -> Gradients:
        """Room for them."""
        steps, _, hidden = saved.input_pre.shape
        empty = torch.empty_like
        return cls(
            logits=empty(saved.logits),
            acts=empty(saved.acts),
            hidden=empty(saved.hidden_pre),
            affine=torch.empty(steps, 2, hidden, device=saved.deters.device),
            deter=empty(saved.deters),
            gates=empty(saved.gates),
            input=empty(saved.input_pre),
            before=empty(saved.deters),
        )


class Wanted(NamedTuple):
    """What is asked of a step's results but by later steps, each (T, B, size)."""

    deter: Tensor
    """Gradient of h after the step."""
    stoch: Tensor
    """Of z after it."""
    logits: Tensor
    """Of the posterior's logits."""


class Past(NamedTuple):
    """What the forward pass read and left, as in its `Inputs` and `Saved`."""

    buffer: Tensor
    is_first: Tensor
    input_pre: Tensor
    gates: Tensor
    hidden_pre: Tensor
    means: Tensor
    """(T, U), or (U,) of running statistics."""
    variances: Tensor
    """As the means."""
    logits: Tensor


class Between(NamedTuple):
    """What one phase leaves for another besides gradients."""

    kept: Tensor
    """(T, B, D), the share of h's gradient to the h before that passes the gates by."""
    raw_gates: Tensor
    """(T, B, 3D), the gradient of the normalised gates."""


class Layer(NamedTuple):
    """What a kernel knows of a layer that ends in a norm."""

    p_weight: Any
    """(out, in)."""
    s_weight: Any
    """Stride of its rows."""
    p_scale: Any
    """(out,), of the norm behind it."""
    p_shift: Any
    """(out,)."""


class Step(NamedTuple):
    """What a phase gets at run time besides pointers."""

    t: Any
    """The step."""
    start: Any
    """Rows of all steps before it, as int64."""
    STEPS: Any
    s_buffer: Any
    """Stride of the buffer's rows."""
    eps: Any


class Constants(NamedTuple):
    """What a phase is compiled for."""

    ROWS: tl.constexpr
    HIDDEN: tl.constexpr
    DETER: tl.constexpr
    GROUPS: tl.constexpr
    CLASSES: tl.constexpr
    LATENTS: tl.constexpr
    HIDDEN_TILES: tl.constexpr
    """Tiles of HIDDEN columns."""
    DETER_TILES: tl.constexpr
    UNIMIX: tl.constexpr
    NORM: tl.constexpr
    """The posterior's: "batch", "running" or "layer"."""
    BLOCK: tl.constexpr
    """Rows of a product."""
    ALL: tl.constexpr
    """ROWS, padded."""
    COLUMNS: tl.constexpr
    """Of a tile."""
    CLASS: tl.constexpr
    """CLASSES, padded."""
    SLICES: tl.constexpr
    Z_SLICE: tl.constexpr
    """Elements of a slice of z,"""
    U_SLICE: tl.constexpr
    """of a hidden layer,"""
    D_SLICE: tl.constexpr
    """of h and of the gates."""
    OPERAND: tl.constexpr
    PRECISION: tl.constexpr


@triton.jit
def columns(tile, SIZE: tl.constexpr, COLUMNS: tl.constexpr):
    """A tile's columns of a layer of SIZE, and which of them are there."""
    o_col = tile * COLUMNS + tl.arange(0, COLUMNS)
    return o_col, o_col < SIZE


@triton.jit
def classes(group, CLASSES: tl.constexpr, CLASS: tl.constexpr):
    """The classes of a group, their columns, and which of them are there."""
    o_class = tl.arange(0, CLASS)
    return o_class, group * CLASSES + o_class, o_class < CLASSES


@triton.jit
def inner(SLICES: tl.constexpr, SLICE: tl.constexpr):
    """Positions along a product's inner axis (SLICES, SLICE), a slice for each warp."""
    return tl.arange(0, SLICES)[:, None] * SLICE + tl.arange(0, SLICE)[None, :]


@triton.jit
def load_rows(p_x, s_x, i_row, o_k, ROWS: tl.constexpr, SIZE: tl.constexpr):
    """Elements (SLICES, rows, SLICE) of x (ROWS, SIZE)."""
    m_x = (i_row < ROWS)[None, :, None] & (o_k < SIZE)[:, None, :]
    return tl.load(p_x + i_row[None, :, None] * s_x + o_k[:, None, :], mask=m_x, other=0.0)


@triton.jit
def load_weight(
    p_weight, s_weight, o_col, m_col, o_k, SIZE: tl.constexpr, TRANSPOSED: tl.constexpr
):
    """Columns (SLICES, SLICE, columns) of a weight (SIZE, out), or with TRANSPOSED (out, SIZE)."""
    m_weight = m_col[None, None, :] & (o_k < SIZE)[:, :, None]
    if TRANSPOSED:
        p_weight += o_col[None, None, :] * s_weight + o_k[:, :, None]
    else:
        p_weight += o_k[:, :, None] * s_weight + o_col[None, None, :]
    return tl.load(p_weight, mask=m_weight, other=0.0)


@triton.jit
def dot(b_x, b_weight, b_sum, C: tl.constexpr):
    """Add a product to the sums (SLICES, rows, columns), each warp's of its slice."""
    return tl.dot(b_x.to(C.OPERAND), b_weight.to(C.OPERAND), b_sum, input_precision=C.PRECISION)


@triton.jit
def product(
    p_x,  # (ROWS, SIZE), row stride s_x
    s_x,
    i_row,
    p_weight,  # (out, SIZE) with TRANSPOSED, else (SIZE, out or more); row stride s_weight
    s_weight,
    o_col,
    m_col,
    b_kept,  # the weight's columns, or None
    SIZE: tl.constexpr,
    SLICE: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    C: tl.constexpr,
):
    """Rows and columns (rows, columns) of `x weight`, with TRANSPOSED `x weight^T`, as float32."""
    b_sum = tl.zeros((C.SLICES, i_row.shape[0], o_col.shape[0]), tl.float32)
    for k in range(0, SIZE, C.SLICES * SLICE):
        o_k = k + inner(C.SLICES, SLICE)
        b_x = load_rows(p_x, s_x, i_row, o_k, C.ROWS, SIZE)
        if b_kept is None:
            b_weight = load_weight(p_weight, s_weight, o_col, m_col, o_k, SIZE, TRANSPOSED)
        else:
            b_weight = b_kept
        b_sum = dot(b_x, b_weight, b_sum, C)
    return tl.sum(b_sum, axis=0)


def constants(
    rows: int, hidden: int, deter: int, groups: int, classes: int, dtype: torch.dtype
) -> dict[str, Any]:
    """What the kernels are compiled for: sizes, and how they multiply (as PyTorch does)."""
    return {
        "ROWS": rows,
        "HIDDEN": hidden,
        "DETER": deter,
        "GROUPS": groups,
        "CLASSES": classes,
        "BLOCK": BLOCK,
        "ALL": tiles.block(rows),
        "COLUMNS": COLUMNS,
        "CLASS": tiles.block(classes),
        "SLICES": SLICES,
        "OPERAND": OPERANDS[torch.float32 if INTERPRETED else dtype],
        "PRECISION": "tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee",
    }


def slice_of(*widths: int) -> int:
    """Elements of a slice that a program holds at a time, for layers of these widths."""
    return 32 if max(widths) <= NARROW else 16


def programs(wanted: int, device: torch.device) -> int:
    """Programs of a launch: as many as find work, and as are resident at once.

    The interpreter runs one after another, so that there is a single one.
    """
    if device.type != "cuda":
        return 1
    return min(wanted, torch.cuda.get_device_properties(device).multi_processor_count)


@functools.cache
def shared_bytes(device: torch.device) -> int:
    """The most shared memory that a program may ask for on a device, in bytes."""
    if device.type != "cuda":
        return 0
    index = torch.cuda.current_device() if device.index is None else device.index
    limits = triton.runtime.driver.active.utils.get_device_properties(index)
    return int(limits["max_shared_mem"])
