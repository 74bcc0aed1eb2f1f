"""The page as a reader has it: its words, and what a browser makes of it."""

from __future__ import annotations

import dataclasses
import html
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from mudreamer_fast.cli.main import main
from mudreamer_fast.config import ConfigError
from mudreamer_fast.report.page import write_report
from tests.report.folders import configuration, write_run

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
WIDTHS = (1280, 420)


def report(tmp_path: Path, *places: Path) -> str:
    """The page's text without its tags."""
    list(write_report(places, tmp_path / "report", "A title & more"))
    page = (tmp_path / "report" / "index.html").read_text()
    body = page.partition("<body>")[2]
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", body)).split())


@pytest.fixture
def places(tmp_path: Path) -> list[Path]:
    """Runs of two variants, with 3 seeds each, on two tasks; one of them was stopped."""
    return [
        write_run(
            tmp_path / norm / f"{task[4:]}-{seed}",
            configuration(task, seed, batch_norm=norm),
            (100.0 + seed, 200.0 + seed),
            finished=(norm, seed) != ("none", 2),
            pictures=seed == 0,
        )
        for norm in ("both", "none")
        for task in ("dmc/cheetah_run", "dmc/walker_walk")
        for seed in range(3)
    ]


def test_the_page_says_what_runs_came_to(tmp_path: Path, places: list[Path]) -> None:
    pytest.importorskip("rliable")
    text = report(tmp_path, *places)
    assert text.startswith("A title & more 12 runs of 2 tasks in 2 variants, 10 of them finished.")
    # Task, variant, seeds, steps, random, mean and deviation over seeds, ratio, DreamerV3's scores.
    assert "dmc/cheetah_run both 3 100,000 15.0 151.0 ± 1.0 10.1 661.5 836.3" in text
    # 150, 151, and 152 cut by half.
    assert "none 3 50,000 to 100,000 15.0 125.7 ± 43.0 8.4" in text
    assert "DreamerV3, 2023 paper, 1,000,000 steps" in text
    assert "Over 2 tasks (dmc/cheetah_run, dmc/walker_walk) with 3 seeds each" in text
    assert "MuDreamer 784.7 and 849.6" in text
    assert "both none 0.778 (" in text  # 6 of 9 pairs, and two ties
    missing = text.partition("what to bear in mind")[2]
    assert "none/walker_walk-2: not finished: 50,000 of 100,000 steps; its score is that" in missing
    assert "of the 20 tasks of the paper these were not run: acrobot_swingup, ball" in missing
    assert "12 of 12 runs have their score after fewer than the 1,000,000 steps" in missing
    assert "rendered in the profile light" in missing
    assert "no run has a film of what its model imagines" in missing
    for name in ("learning_curves", "diagnostics", "aggregates", "profiles"):
        assert (tmp_path / "report" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_the_page_of_runs_that_hardly_began(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", configuration(), finished=False)
    (folder / "metrics.jsonl").unlink()
    (tmp_path / "empty").mkdir()
    text = report(tmp_path, folder, tmp_path / "empty")
    assert "1 run of 1 task in 1 variant, 0 of them finished." in text
    assert "dmc/cheetah_run all runs 0 - - - - 661.5" in text
    for said in (
        "No run has been evaluated yet.",
        "No run has logged an update yet.",
        "No run has left a film or a picture.",
        "Settings that differ None.",
        "a: not begun: no line of metrics, 0 of 100,000 steps; it has no score",
        "empty is not a run folder: it has no config.json",
    ):
        assert said in text


def test_no_run_at_all_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="nothing to report on: expected run folders, got none"):
        list(write_report([], tmp_path / "report", ""))
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "report")]) == 2
    assert capsys.readouterr().err.endswith("is not a run folder: it has no config.json\n")
    assert not (tmp_path / "report").exists()


def test_names_are_text_and_no_code(tmp_path: Path) -> None:
    name = "<script>alert(1)<"
    text = report(tmp_path, write_run(tmp_path / name, configuration(), pictures=True))
    assert "<script>alert(1)<" in text
    assert "<script>" not in (tmp_path / "report" / "index.html").read_text()


def test_games_stand_beside_humans_and_published_scores(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / f"{seed}", configuration("atari/boxing", seed), [6.1], pictures=False)
        for seed in range(2)
    ]
    text = report(tmp_path, *runs)
    assert "ratio human-normalised DreamerV3, score files, last fifth, 400,000 steps" in text
    assert "atari/boxing all runs 2 100,000 15.0 6.1 ± 0.0 0.4 0.50 " in text
    assert "of the 26 games of Atari 100k these were not run: alien, amidar" in text
    assert "tasks of the paper" not in text
    assert "2 of 2 runs have their score after fewer than the 400,000 steps" in text


def test_runs_with_and_without_videos_have_both_kinds_of_columns(tmp_path: Path) -> None:
    plain = configuration()
    moving = dataclasses.replace(plain, env=dataclasses.replace(plain.env, background="video"))
    text = report(tmp_path, write_run(tmp_path / "a", plain), write_run(tmp_path / "b", moving))
    assert "DreamerPro, DreamerPro's runs, 1,000,000 steps" in text
    assert "DreamerV3, 2023 paper, 1,000,000 steps" in text


def test_runs_with_videos_behind_stand_beside_such_scores(tmp_path: Path) -> None:
    config = configuration()
    config = dataclasses.replace(config, env=dataclasses.replace(config.env, background="video"))
    text = report(tmp_path, write_run(tmp_path / "a", config))
    assert "DreamerPro, DreamerPro's runs, 1,000,000 steps" in text
    assert "DreamerV3, 2023 paper" not in text


class Tags(HTMLParser):
    """Collects what a page loads and which elements are left open."""

    VOID = ("meta", "link", "img", "br")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.loaded += [value or "" for name, value in attributes if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_loads_nothing_and_its_tags_match(tmp_path: Path, places: list[Path]) -> None:
    report(tmp_path, *places)
    tags = Tags()
    tags.feed((tmp_path / "report" / "index.html").read_text())
    assert not tags.open
    assert len(tags.loaded) > 20
    assert all(source.startswith(("data:", "#")) for source in tags.loaded)


@pytest.fixture
def browser() -> Iterator[Any]:
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("no Chromium with its driver")
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for flag in (
        "headless", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "no-first-run",
        "disable-background-networking", "disable-component-update", "disable-sync",
    ):  # fmt: skip
        options.add_argument(f"--{flag}")
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


LOOK = """
return {
    wide: document.documentElement.scrollWidth - window.innerWidth,
    broken: [...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.alt),
    images: document.images.length,
    films: [...document.querySelectorAll("video")].map(v => [v.videoWidth, v.error === null]),
    hidden: [...document.querySelectorAll("h1, h2, h3, p, li, table, img, video")]
        .filter(e => !e.offsetHeight || !e.offsetWidth).map(e => e.outerHTML.slice(0, 80)),
    targets: [...document.querySelectorAll("nav a")]
        .filter(a => !document.querySelector(a.getAttribute("href"))).map(a => a.textContent),
}
"""
"""What a reader would miss: content wider than the window, broken pictures, hidden elements."""


def test_a_browser_shows_all_of_it_at_two_widths(
    tmp_path: Path, places: list[Path], browser: Any
) -> None:
    report(tmp_path, *places)
    for width in WIDTHS:
        browser.set_window_size(width, 900)
        browser.get((tmp_path / "report" / "index.html").as_uri())
        browser.execute_async_script(
            "const done = arguments[0]; const wait = () => [...document.querySelectorAll('video')]"
            ".every(v => v.readyState > 0 || v.error) ? done() : setTimeout(wait, 50); wait()"
        )
        seen = browser.execute_script(LOOK)
        assert seen["wide"] <= 0
        assert seen["broken"] == seen["hidden"] == seen["targets"] == []
        assert seen["images"] == 4 + 4
        assert seen["films"] == [[64, True]] * 4
    assert browser.get_log("browser") == []
