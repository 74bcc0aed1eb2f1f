"""What an update of size S asks of a GPU: launches, products and bytes, part by part, by count.

    python -m bench.launches bench/results/update-launches.json

An update runs on tensors without contents: operations of PyTorch give what shape and layout their
results have, kernels of Triton are noted and not run. So it takes a minute on any machine, and no
GPU. Every operation that writes memory counts as one launch, of multi-tensor operations and
convolutions too, of which a GPU may make several. The products are those of matrices and
convolutions, two for a multiplication with its sum; bytes are those of the tensors that a launch
reads and writes, each once. Counting sees neither caches nor how full a GPU is.

`tests/test_launches.py` holds the counts to FILE. The table in docs/kernels.md is what it prints.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("TRITON_INTERPRET", "1")  # read where kernels are defined

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import mudreamer_fast.agent as agent_module
from bench.profile_update import ACTIONS, batch
from bench.roofline import CARDS, Work, predicted_milliseconds, tensors
from mudreamer_fast.agent import Agent
from mudreamer_fast.config import Config
from mudreamer_fast.envs import ActionSpec, ArraySpec
from mudreamer_fast.kernels import tiles
from mudreamer_fast.run.folder import write_json

aten = torch.ops.aten

COUNTED = ("reference", "fused", "persistent")
WRITES_NOTHING = {
    aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten.new_empty_strided,
    aten._unsafe_view,
}  # fmt: skip
READS_NOT_WHAT_IT_WRITES = {aten.copy_, aten.fill_, aten.zero_}
PARTS = (
    "encoder", "observe", "heads and losses", "world model's gradients: heads",
    "world model's gradients: observe", "world model's gradients: encoder", "imagine",
    "returns and losses", "actor's gradients", "critic's gradients", "optimisers and averages",
)  # fmt: skip


@dataclass(frozen=True)
class Launch:
    """One launch."""

    part: str
    """Of the update."""
    name: str
    """Of the operation or kernel."""
    work: Work


class Counter(TorchDispatchMode):
    """Notes every launch, under the part that is current."""

    def __init__(self) -> None:
        super().__init__()
        self.launches: list[Launch] = []
        self.part = PARTS[-1]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        packet = func._overloadpacket
        if func.namespace in ("prim", "profiler") or packet in WRITES_NOTHING:
            return result
        fresh = any(spec.alias_info is None for spec in func._schema.returns)
        changed = func._schema.is_mutable and torch.Tag.inplace_view not in func.tags
        if not (fresh and tensors(result)) and not changed:
            return result  # a view
        flops = 0
        if packet in flop_registry:
            flops = int(flop_registry[packet](*args, **kwargs, out_val=result))
        given = [value for name, value in kwargs.items() if name != "out"]
        read = args[1:] if packet in READS_NOT_WHAT_IT_WRITES else args
        written = result if func._schema.returns else args[0]  # multi-tensor ones return nothing
        self.note(str(packet), Work(flops, _bytes((read, given)) + _bytes(written)))
        return result

    def note(self, name: str, work: Work) -> None:
        """Takes a launch down."""
        self.launches.append(Launch(self.part, name, work))

    def within(self, part: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """Work whose launches belong to a part."""

        @functools.wraps(work)
        def counted(*args: Any, **kwargs: Any) -> Any:
            before, self.part = self.part, part
            try:
                return work(*args, **kwargs)
            finally:
                self.part = before

        return counted

    def from_here_on(self, tree: Any, part: str) -> Any:
        """The same, with whatever runs once a gradient has come back to it belonging to a part."""

        def begin(_: Tensor) -> None:
            self.part = part

        for tensor in tensors(tree):
            if tensor.requires_grad and not tensor.is_leaf:
                tensor.register_hook(begin)
        return tree


def count_update(config: Config) -> list[Launch]:
    """The launches of one update.

    Args:
        config: sizes and backend; images of 64 x 64 and six continuous actions.
    """
    config = replace(config, train=replace(config.train, device="cpu", cuda_graph="off"))
    seen = {"image": ArraySpec((3, 64, 64), batch(config)["image"].dtype)}
    agent = Agent(config, seen, ActionSpec(ACTIONS, continuous=True), torch.device("cpu"))
    agent.world_model.train()
    inputs = {name: torch.as_tensor(batch(config)[name]) for name in agent.batch_shapes}
    inputs |= agent._draw(config.replay.batch_size, config.replay.batch_length)
    for adam in agent.optimisers.values():  # their first steps make the moments
        adam.apply([torch.zeros_like(parameter) for parameter in adam.parameters])
    counter = Counter()
    with FakeTensorMode(allow_non_fake_inputs=True) as fake, counter, _parts(agent, counter):
        agent._learn({name: fake.from_tensor(tensor) for name, tensor in inputs.items()})
    return counter.launches


@contextmanager
def _parts(agent: Agent, counter: Counter) -> Iterator[None]:
    """Tells the counter which part of the update is running, and of kernels that are launched."""
    from torch.nn.utils import clip_grad
    from triton.runtime.interpreter import GridExecutor

    model, behaviour, adam = agent.world_model, agent.behaviour, agent.optimisers
    encode = counter.within("encoder", model.encoder.forward)
    observe = counter.within("observe", model.rssm.observe)
    gradients = "world model's gradients: "

    def launched(executor: GridExecutor, *args: Any, **kwargs: Any) -> None:
        options = tiles.launch(kwargs["num_warps"])
        assert kwargs.items() >= options.items(), "kernels are compiled ahead with these"
        counter.note(executor.fn.__name__, Work(0, _bytes((args, kwargs))))

    wrapped: list[tuple[Any, str, Callable[..., Any]]] = [
        (
            model.encoder,
            "forward",
            lambda *given: counter.from_here_on(encode(*given), f"{gradients}encoder"),
        ),
        (
            model.rssm,
            "observe",
            lambda *given: counter.from_here_on(observe(*given), f"{gradients}observe"),
        ),
        (model, "loss", counter.within("heads and losses", model.loss)),
        (agent_module, "imagine", counter.within("imagine", agent_module.imagine)),
        (behaviour, "loss", counter.within("returns and losses", behaviour.loss)),
        (GridExecutor, "__call__", launched),
        # as on a GPU, which takes the norms of many tensors at once
        (clip_grad, "_device_has_foreach_support", lambda device: True),
        (clip_grad, "_has_foreach_support", lambda tensors, device: True),
    ]
    for name, part in {
        "world_model": f"{gradients}heads",
        "actor": "actor's gradients",
        "critic": "critic's gradients",
    }.items():
        wrapped.append((adam[name], "gradients", counter.within(part, adam[name].gradients)))
    with ExitStack() as patches:
        for owner, name, work in wrapped:
            patches.enter_context(mock.patch.object(owner, name, work))
        yield


def with_products_of(launches: list[Launch], others: list[Launch]) -> list[Launch]:
    """The same, with the products that each part's persistent kernels take from its operations.

    Args:
        launches: of an update with persistent kernels, whose products do not show.
        others: of the same update without.
    """
    found = list(launches)
    for part in PARTS:
        own, all_of_it = (
            sum(launch.work.flops for launch in update if launch.part == part)
            for update in (launches, others)
        )
        kernels = [
            i for i, launch in enumerate(found) if launch.part == part and "persist" in launch.name
        ]
        if kernels:
            kernel = found[kernels[0]]
            work = kernel.work._replace(flops=all_of_it - own)
            found[kernels[0]] = replace(kernel, work=work)
    return found


def _bytes(tree: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors(tree))


Parts = dict[str, dict[str, float]]


def by_part(launches: list[Launch]) -> Parts:
    """Launches, GFLOP and MB of each part."""
    return {
        part: {
            "launches": len(own),
            "gflop": round(sum(launch.work.flops for launch in own) / 1e9, 3),
            "megabytes": round(sum(launch.work.bytes for launch in own) / 1e6, 1),
        }
        for part in PARTS
        if (own := [launch for launch in launches if launch.part == part])
    }


def whole(parts: Parts) -> dict[str, float]:
    """The sums over parts."""
    names = next(iter(parts.values()))
    return {name: sum(row[name] for row in parts.values()) for name in names}


def counts_table(counted: Mapping[str, Parts]) -> Iterator[str]:
    """Launches by part and backend, products and bytes of the fused update, as Markdown."""
    yield f"| part | {' | '.join(f'launches, {name}' for name in counted)} | GFLOP | MB, fused |"
    yield f"|---|{'---|' * (len(counted) + 2)}"
    with_sums = {name: {**parts, "whole": whole(parts)} for name, parts in counted.items()}
    for part in (*PARTS, "whole"):
        launches = [f"{parts[part]['launches']:,.0f}" for parts in with_sums.values()]
        fused = with_sums["fused"][part]
        yield (
            f"| {part} | {' | '.join(launches)} | {fused['gflop']:,.1f} | "
            f"{fused['megabytes']:,.0f} |"
        )


def predictions_table(predicted: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    """Predicted milliseconds by card and precision, as Markdown."""
    precisions = next(iter(predicted.values()))
    yield f"| card | {' | '.join(precisions)} |"
    yield f"|---|{'---|' * len(precisions)}"
    for card, times in predicted.items():
        yield f"| {card} | {' | '.join(f'{time:.1f}' for time in times.values())} |"


def main() -> int:
    """Counts, writes and prints."""
    if len(sys.argv) != 2:
        print("usage: python -m bench.launches FILE", file=sys.stderr)
        return 2
    config = Config()
    updates = {
        name: count_update(replace(config, train=replace(config.train, backend=name)))
        for name in COUNTED
    }
    updates["persistent"] = with_products_of(updates["persistent"], updates["fused"])
    counted = {name: by_part(launches) for name, launches in updates.items()}
    predicted = {
        name: {
            precision: round(
                predicted_milliseconds([each.work for each in updates["fused"]], card, precision), 2
            )
            for precision in ("float32", "tf32")
        }
        for name, card in CARDS.items()
    }
    found = {"torch": torch.__version__, "update": counted, "predicted_milliseconds": predicted}
    write_json(Path(sys.argv[1]), found)
    print("\n".join([*counts_table(counted), "", *predictions_table(predicted)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
