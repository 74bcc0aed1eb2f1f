"""The manual: short where it must be, and nothing in it points to what is not there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from mudreamer_fast.config import PRESETS

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "kernels/README.md",
    ROOT / "bench/GPU_TODO.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "docs/results/README.md",
]
OURS = ("mudreamer_fast/", "tests/", "bench/", "kernels/", "csrc/", "docs/", "examples/")
MOST_WORDS = 800


def links(text: str) -> list[str]:
    """Targets of relative links and pictures."""
    found = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text)
    return [target for target in found if "://" not in target]


def programs(text: str) -> list[str]:
    """Modules of ours that a page runs with `python -m`, as paths without their suffix."""
    found = re.findall(r"-m ((?:bench|tests|mudreamer_fast)\.[\w.]+)", text)
    return [module.replace(".", "/") for module in found]


def places(text: str) -> list[str]:
    """Paths of ours in backticks, without those that stand for several or for files to come."""
    found = re.findall(r"`([\w./-]+)`", text)
    return [path for path in found if path.startswith(OURS) and "RUN" not in path]


def gpu_tests() -> dict[tuple[str, str], str]:
    """The first line of every test that is marked `gpu`, itself or with one of its arguments."""
    found = {}
    for file in sorted((ROOT / "tests").rglob("test_*.py")):
        lines, tree = file.read_text().splitlines(), ast.parse(file.read_text())
        marked = {"pytest.mark.gpu"}
        for node in tree.body:
            if isinstance(node, ast.Assign) and "pytest.mark.gpu" in ast.unparse(node.value):
                marked |= {ast.unparse(target) for target in node.targets}
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                words = " ".join(ast.unparse(each) for each in node.decorator_list)
                if any(re.search(rf"\b{re.escape(mark)}\b", words) for mark in marked):
                    body = node.body[ast.get_docstring(node) is not None :]
                    place = str(file.relative_to(ROOT)), node.name
                    found[place] = lines[body[0].lineno - 1].strip()
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_points_to_is_there(page: Path) -> None:
    text = page.read_text()
    missing = [target for target in links(text) if not (page.parent / target).exists()]
    missing += [path for path in places(text) if not (ROOT / path).exists()]
    missing += [path for path in programs(text) if not (ROOT / f"{path}.py").exists()]
    assert missing == []


def test_every_test_that_only_a_gpu_runs_is_listed_with_its_first_line() -> None:
    text = (ROOT / "bench/GPU_TODO.md").read_text()
    rows = re.findall(r"^\| `(tests/[\w/.]+)` `(test_\w+)` \| `([^`]+)` \|", text, re.MULTILINE)
    assert {(path, name): line for path, name, line in rows} == gpu_tests()


def test_code_on_the_page_about_python_is_taken_from_the_examples() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/python.md").read_text(), re.DOTALL)
    scripts = [path.read_text() for path in (ROOT / "examples").glob("*.py")]
    assert len(blocks) > 3
    assert [block for block in blocks if not any(block in script for script in scripts)] == []


def test_presets_are_all_explained() -> None:
    said = (ROOT / "docs/learning.md").read_text()
    assert [name for name in PRESETS if f"| `{name}` |" not in said] == []


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().split()) <= MOST_WORDS


def test_results_in_the_readme_stand_between_markers_of_their_own() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    begin, end = (f"<!-- results: {place} -->" for place in ("begin", "end"))
    assert lines.count(begin) == lines.count(end) == 1
    assert lines.index(begin) < lines.index(end)


def test_pages_are_reached_from_the_readme() -> None:
    reached = {(ROOT / target).resolve() for target in links((ROOT / "README.md").read_text())}
    pages = {path.resolve() for path in (ROOT / "docs").glob("*.md")}
    assert pages <= reached


def test_links_and_places_are_found() -> None:
    text = "[a](docs/x.md#part) ![b](y.png) [c](https://d.e) `tests/z.py` `--env.task` `csrc/`"
    assert links(text) == ["docs/x.md", "y.png"]
    assert places(text) == ["tests/z.py", "csrc/"]
    assert programs("python -m bench.probe RUN, python -m pytest bench") == ["bench/probe"]
