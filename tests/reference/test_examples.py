"""The examples in the docstrings of the public operations give what they say."""

from __future__ import annotations

import doctest
import importlib
import inspect

import pytest
import torch

from mudreamer_fast import reference


@pytest.mark.parametrize("name", sorted(reference.__all__))
def test_example_gives_what_it_says(name: str) -> None:
    operation = getattr(reference, name)
    module = importlib.import_module(operation.__module__)
    names = {**vars(module), "torch": torch}
    source = inspect.getdoc(operation)
    assert source is not None
    example = doctest.DocTestParser().get_doctest(source, names, name, None, None)
    assert example.examples, f"{name} has no example"
    report: list[str] = []
    assert doctest.DocTestRunner().run(example, out=report.append).failed == 0, "".join(report)
