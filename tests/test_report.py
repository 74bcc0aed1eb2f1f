"""The table of what benchmarks came to."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.report import duration, main

STATS = {"median": 0.002, "min": 0.0015, "max": 0.003, "rounds": 7}
MACHINE = {
    "machine": "x86_64",
    "python_version": "3.11.9",
    "cpu": {"brand_raw": "A CPU", "count": 2},
}
COMMIT = {"id": "0123456789abcdef0123", "dirty": True}


def one(name: str, **extra_info: Any) -> dict[str, Any]:
    return {"name": name, "stats": STATS, "extra_info": extra_info}


def saved(tmp_path: Path, *benchmarks: Any, **others: Any) -> str:
    path = tmp_path / "found.json"
    whole = {"machine_info": MACHINE, "commit_info": COMMIT, "benchmarks": benchmarks}
    path.write_text(json.dumps(whole | others))
    return str(path)


def printed(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(5.88, "5.88 s"), (0.0015625, "1.56 ms"), (7.8e-6, "7.8 us"), (4e-8, "40 ns"), (1.0, "1 s")],
)
def test_duration_has_three_digits_and_a_unit_that_fits(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_report_names_machine_versions_and_commit_above_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([saved(tmp_path, one("bench_sample[16]"))]) == 0
    assert printed(capsys) == [
        "A CPU, 2 cores; Python 3.11.9; commit 0123456789ab-dirty",
        "",
        "| benchmark | median | spread | rounds |",
        "| --- | --- | --- | --- |",
        "| bench_sample[16] | 2 ms | 1.5 ms to 3 ms | 7 |",
    ]


def test_report_names_the_gpu_and_the_commit_that_a_benchmark_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    extra = {"device": "A GPU", "torch": "2.13.0", "cuda": "13.0", "commit": "feed"}
    assert main([saved(tmp_path, one("a"), one("b", **extra))]) == 0
    assert printed(capsys)[0] == "A GPU; Python 3.11.9, torch 2.13.0, cuda 13.0; commit feed"


def test_report_gives_each_part_and_contender_a_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    times = {"median": 3.0, "min": 2.0, "max": 4.0}
    over = {"median": 1.5, "quartiles": [1.25, 1.75]}
    figures = {"milliseconds": 0.06, "batches/s": 1e4, "over memcpy": over}
    update = one("update", seconds={"whole": times, "encoder": times})
    observe = one("observe", microseconds={"fused": times})
    step = one("act", milliseconds_per_step={"render": times})
    turns = one("sample", contenders={"one ahead": figures})
    assert main([saved(tmp_path, update, observe, step, turns)]) == 0
    assert printed(capsys)[4:] == [
        "| update: whole | 3 s | 2 s to 4 s | 7 |",
        "| update: encoder | 3 s | 2 s to 4 s | 7 |",
        "| observe: fused | 3 us | 2 us to 4 us | 7 |",
        "| act: render | 3 ms | 2 ms to 4 ms | 7 |",
        "| sample: one ahead | 60 us | 1.5 (1.25 to 1.75) over memcpy | 7 |",
    ]


def test_report_says_what_was_left_out_and_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    times = {"reference": {"median": 3.0, "min": 2.0, "max": 4.0}}
    why = {"fused": "needs a CUDA device"}
    both = [one(name, microseconds=times, left_out=why, device="CPU") for name in ("a", "b")]
    assert main([saved(tmp_path, *both)]) == 0
    lines = printed(capsys)
    assert lines[0].startswith("A CPU, 2 cores; ")
    assert lines[-1] == "fused: left out of a, b: needs a CUDA device"


def updates(tmp_path: Path, name: str, milliseconds: float) -> str:
    def times(factor: float) -> dict[str, float]:
        middle = factor * milliseconds
        return {"median": middle, "min": 0.5 * middle, "max": 2 * middle, "rounds": 10}

    way = {"finite": True, "milliseconds": times(1), "acting_milliseconds": {"4": times(0.1)}}
    whole = {
        "device": "A GPU", "python": "3.11.7", "torch": "2.13.0", "driver": "580.1",
        "commit": "feed",
        "update": {
            "fused": way, "agreement": {"compared": 20, "disagree": []},
            "persistent": {"error": "ended after 60 s"},
        },
    }  # fmt: skip
    path = tmp_path / name
    path.write_text(json.dumps(whole))
    return str(path)


def test_report_reads_updates_by_backend(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([updates(tmp_path, "a.json", 5.0)]) == 0
    assert printed(capsys) == [
        "A GPU; Python 3.11.7, torch 2.13.0, driver 580.1; commit feed",
        "",
        "| benchmark | median | spread | rounds |",
        "| --- | --- | --- | --- |",
        "| update: fused | 5 ms | 2.5 ms to 10 ms | 10 |",
        "| acting in 4: fused | 500 us | 250 us to 1 ms | 10 |",
        "",
        "agreement: 20 operations compared, all agree with the reference",
        "persistent: ended after 60 s",
    ]


def test_report_compares_two_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new, old = updates(tmp_path, "new.json", 4.0), updates(tmp_path, "old.json", 8.0)
    assert main([new, "--against", old]) == 0
    lines = printed(capsys)
    assert [line.split(":")[0] for line in lines[:2]] == ["new.json", "against old.json"]
    assert lines[3:] == [
        "| benchmark | median | against | ratio | spread of the ratio |",
        "| --- | --- | --- | --- | --- |",
        "| update: fused | 4 ms | 8 ms | 2 | 0.5 to 8 |",
        "| acting in 4: fused | 400 us | 800 us | 2 | 0.5 to 8 |",
    ]


def test_report_names_what_only_one_file_has(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([saved(tmp_path, one("a")), "--against", updates(tmp_path, "b.json", 1.0)]) == 0
    assert printed(capsys)[-1] == "in one file alone: a, acting in 4: fused, update: fused"


def test_report_reads_what_pytest_benchmark_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "test_it.py").write_text(
        "def test_it(benchmark): benchmark.pedantic(sum, ([1, 2],), rounds=3)"
    )
    command = [sys.executable, "-m", "pytest", "-q", "--benchmark-json=it.json", "test_it.py"]
    # As a worker of pytest-xdist, which this may run in, pytest-benchmark would time nothing.
    alone = {name: value for name, value in os.environ.items() if "PYTEST_" not in name}
    subprocess.run(command, cwd=tmp_path, env=alone, check=True, capture_output=True)
    assert main([str(tmp_path / "it.json")]) == 0
    machine, _, *_, row = printed(capsys)
    assert re.fullmatch(r".+; Python 3\.[\d.]+; commit \S+", machine)
    assert re.fullmatch(r"\| test_it \| \S+ \ws \| \S+ \ws to \S+ \ws \| 3 \|", row)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '"benchmarks"', '{"machine_info": {}, "benchmarks": [{"name": "a"}]}'],
)
def test_report_of_another_file_is_one_clear_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    assert main([str(path)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"error: {path}: expected ")
    assert said.err.count("\n") == 1


def test_report_of_no_file_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "none.json")]) == 2
    assert (
        capsys.readouterr().err == f"error: {tmp_path / 'none.json'}: No such file or directory\n"
    )
    assert main([]) == 2
