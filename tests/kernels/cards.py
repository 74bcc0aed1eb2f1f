"""What cards allow a kernel, by compute capability."""

from __future__ import annotations

CARDS = {
    80: "A100, A30",
    86: "RTX 3060 to 3090, A10, A40",
    89: "RTX 4060 to 4090, L4, L40S",
    90: "H100, H200, GH200",
    100: "B100, B200, GB200",
    120: "RTX 5060 to 5090, RTX PRO 6000",
}
"""Cards of each compute capability."""

SHARED_BYTES = {80: 166_912, 86: 101_376, 89: 101_376, 90: 232_448, 100: 232_448, 120: 101_376}
"""The most shared memory that a block may ask for (CUDA C++ programming guide, technical
specifications per compute capability: 163, 99, 99, 227, 227 and 99 KB)."""

BLOCK_REGISTERS = 65_536
"""Of a block, on all of them."""
