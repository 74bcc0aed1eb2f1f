from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest

from mudreamer_fast.envs.render_profile import ASSETS, PROFILES, apply_to_model, write_assets

DOMAIN_XML = """<mujoco model="robot">
  <include file="./common/visual.xml"/>
  <asset><material name="shiny" reflectance=".3"/><material name="dull"/></asset>
</mujoco>
"""
VISUAL_XML = """<mujoco><visual><quality shadowsize="2048"/></visual></mujoco>
"""


@pytest.fixture
def base_path(tmp_path: Path) -> Path:
    common = tmp_path / "installed" / ASSETS / "common"
    common.mkdir(parents=True)
    (common / "visual.xml").write_text(VISUAL_XML)
    (common.parent / "robot.xml").write_text(DOMAIN_XML)
    (common.parent / "other.xml").write_text("not to be read")
    return tmp_path / "installed"


def canonical(path: Path) -> str:
    return ElementTree.canonicalize(path.read_text())


def test_write_assets_leaves_the_reference_profile_as_it_is(
    base_path: Path, tmp_path: Path
) -> None:
    write_assets(base_path, "robot", "reference", tmp_path / "copy")
    for name in ("robot.xml", "common/visual.xml"):
        copy = tmp_path / "copy" / ASSETS / name
        assert canonical(copy) == canonical(base_path / ASSETS / name)
    assert not (tmp_path / "copy" / ASSETS / "other.xml").exists()


@pytest.mark.parametrize("profile", ["light", "flat"])
def test_write_assets_sets_quality_and_takes_reflections_away(
    base_path: Path, tmp_path: Path, profile: str
) -> None:
    write_assets(base_path, "robot", profile, tmp_path / "copy")  # type: ignore[arg-type]
    folder = tmp_path / "copy" / ASSETS
    quality = ElementTree.parse(folder / "common" / "visual.xml").find("visual/quality")
    assert quality is not None
    expected = vars(PROFILES[profile])  # type: ignore[index]
    assert {name: int(value) for name, value in quality.attrib.items()} == expected
    shiny, dull = ElementTree.parse(folder / "robot.xml").iter("material")
    assert shiny.attrib == {"name": "shiny", "reflectance": "0"}
    assert dull.attrib == {"name": "dull"}
    assert canonical(base_path / ASSETS / "common" / "visual.xml") == canonical_of(VISUAL_XML)


def canonical_of(text: str) -> str:
    return ElementTree.canonicalize(text)


def test_apply_to_model_sets_the_same_as_the_files() -> None:
    model = SimpleNamespace(
        vis=SimpleNamespace(quality=SimpleNamespace()), mat_reflectance=np.full(3, 0.2)
    )
    apply_to_model(model, "reference")
    assert vars(model.vis.quality) == {}
    assert (model.mat_reflectance == 0.2).all()
    apply_to_model(model, "light")
    assert vars(model.vis.quality) == vars(PROFILES["light"])
    assert (model.mat_reflectance == 0).all()
