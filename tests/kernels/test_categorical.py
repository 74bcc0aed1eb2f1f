from __future__ import annotations

import pytest
import torch

from mudreamer_fast import kernels, reference
from mudreamer_fast.ops.distributions import unimix_probs
from tests.kernels.agreement import DEVICE, assert_agrees

SHAPES = [((7,), 3, 5), ((2, 3), 4, 16), ((1,), 1, 1), ((3,), 32, 32), ((2,), 5, 65), ((0,), 2, 4)]


def logits(rows: tuple[int, ...], groups: int, classes: int) -> torch.Tensor:
    return 3 * torch.randn(*rows, groups, classes, dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("unimix", [0.01, 0.0])
@pytest.mark.parametrize(("rows", "groups", "classes"), SHAPES)
def test_categorical_kl_agrees(
    rows: tuple[int, ...], groups: int, classes: int, unimix: float, dtype: torch.dtype
) -> None:
    given = {"q": logits(rows, groups, classes), "p": logits(rows, groups, classes)}
    assert_agrees(
        lambda given: {"kl": kernels.categorical_kl(given["q"], given["p"], unimix)},
        lambda given: {"kl": reference.categorical_kl(given["q"], given["p"], unimix)},
        given,
        dtype,
    )


@pytest.mark.parametrize("of", ["q", "p"])
def test_categorical_kl_has_the_gradient_of_one_side_alone(of: str) -> None:
    given = {"q": logits((4,), 3, 5), "p": logits((4,), 3, 5)}

    def one_side(op, given):  # type: ignore[no-untyped-def]
        sides = [given[name] if name == of else given[name].detach() for name in "qp"]
        return {"kl": op(*sides, 0.01)}

    assert_agrees(
        lambda given: one_side(kernels.categorical_kl, given),
        lambda given: one_side(reference.categorical_kl, given),
        given,
    )


@pytest.mark.parametrize("unimix", [0.01, 0.0])
@pytest.mark.parametrize(("rows", "groups", "classes"), SHAPES)
def test_categorical_entropy_agrees(
    rows: tuple[int, ...], groups: int, classes: int, unimix: float
) -> None:
    assert_agrees(
        lambda given: {"entropy": kernels.categorical_entropy(given["logits"], unimix)},
        lambda given: {"entropy": reference.categorical_entropy(given["logits"], unimix)},
        {"logits": logits(rows, groups, classes)},
    )


@pytest.mark.parametrize("unimix", [0.01, 0.0])
@pytest.mark.parametrize(("rows", "groups", "classes"), SHAPES)
def test_categorical_sample_agrees(
    rows: tuple[int, ...], groups: int, classes: int, unimix: float
) -> None:
    uniforms = torch.rand(*rows, groups).to(DEVICE)
    given = {"logits": logits(rows, groups, classes)}
    # The seeds of the draws leave no margin below 1e-6, so that no rounding may change a class.
    probs = unimix_probs(given["logits"].float().double(), unimix).cumsum(-1)
    margin = (probs - uniforms.cpu().double().unsqueeze(-1))[..., :-1].abs()
    assert margin.numel() == 0 or margin.min() > 1e-6
    assert_agrees(
        lambda given: {"z": kernels.categorical_sample(given["logits"], uniforms, unimix)},
        lambda given: {
            "z": reference.categorical_sample(given["logits"], uniforms.to(given["logits"]), unimix)
        },
        given,
    )


def test_categorical_sample_gives_one_class_at_the_ends_of_the_interval() -> None:
    given = logits((50,), 2, 7).float().to(DEVICE)
    for edge in (0.0, 1 - 2**-24):
        z = kernels.categorical_sample(given, torch.full((50, 2), edge, device=DEVICE), 0.0)
        assert torch.equal(z.sum(-1), torch.ones(50, 2, device=DEVICE))
        assert set(z.unique().tolist()) <= {0.0, 1.0}


def test_categorical_operations_refuse_what_they_would_misread() -> None:
    given = logits((4,), 3, 5).float().to(DEVICE)
    with pytest.raises(ValueError, match=r"uniforms must end in shape \(4, 3\), got \(4, 5\)"):
        kernels.categorical_sample(given, torch.rand(4, 5, device=DEVICE), 0.01)
    with pytest.raises(ValueError, match=r"prior must end in shape \(4, 3, 5\)"):
        kernels.categorical_kl(given, given[:, :2].contiguous(), 0.01)
    with pytest.raises(ValueError, match="logits must be contiguous"):
        kernels.categorical_entropy(given.mT, 0.01)
