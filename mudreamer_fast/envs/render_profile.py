"""How much work the renderer puts into a picture, on both simulators alike.

Software rendering spends nearly all its time on shadow maps and multisampling that a 64x64 image
hardly shows: of walker, EnvPool renders about 40 frames a second with the reference profile, 900
with the light one and 1900 with the flat one (two cores, llvmpipe).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

from mudreamer_fast.config import EnvConfig

ProfileName = Literal["reference", "light", "flat"]

ASSETS = Path("mujoco/assets_dmc")
"""Where EnvPool keeps the models of DeepMind Control, below its base path."""


@dataclass(frozen=True)
class Quality:
    """Settings of MuJoCo's renderer (the XML's `visual/quality`)."""

    shadowsize: int
    """Width of the shadow map in pixels; 0 draws no shadows."""
    offsamples: int
    """Samples per pixel of the off-screen buffer; 0 turns multisampling off."""
    numslices: int
    """Slices of curved shapes, around."""
    numstacks: int
    """Stacks of curved shapes, along."""


BEHIND = ("skybox", "grid", "background")
"""Textures and materials of what is behind the robots: sky, floor, and a wall."""

PROFILES: dict[ProfileName, Quality | None] = {
    "reference": None,
    "light": Quality(shadowsize=64, offsamples=0, numslices=8, numstacks=4),
    "flat": Quality(shadowsize=0, offsamples=0, numslices=8, numstacks=4),
}
"""What each profile changes; the reference profile leaves the models as they are."""


def draws_green(config: EnvConfig) -> bool:
    """Whether sky and floor are to be told from the robot by their colour."""
    return config.background != "none" and config.background_mask == "chroma"


def apply_to_model(model: Any, profile: ProfileName, green: bool = False) -> None:
    """Sets the profile in a loaded MuJoCo model, before its first render.

    Args:
        model: MuJoCo's MjModel, or dm_control's wrapper of one, changed in place.
        profile: what to set.
        green: whether sky and floor are drawn in nothing but green.
    """
    quality = PROFILES[profile]
    if green:
        _draw_green(model)
    if quality is None:
        return
    for name, value in vars(quality).items():
        setattr(model.vis.quality, name, value)
    model.mat_reflectance[:] = 0


def _draw_green(model: Any) -> None:
    for texture in range(model.ntex):
        if model.id2name(texture, "texture") in BEHIND:
            start, channels = model.tex_adr[texture], model.tex_nchannel[texture]
            size = model.tex_height[texture] * model.tex_width[texture] * channels
            model.tex_data[start : start + size].reshape(-1, channels)[:, :3] = 0, 255, 0
    for material in range(model.nmat):
        if model.id2name(material, "material") in BEHIND:
            model.mat_specular[material] = 0


def write_assets(
    base_path: Path, domain: str, profile: ProfileName, target: Path, green: bool = False
) -> None:
    """Copies the model of a domain with the profile's settings written into it.

    Args:
        base_path: EnvPool's assets.
        domain: such as walker.
        profile: what to write.
        target: folder to be handed to EnvPool as `base_path`.
        green: whether sky and floor are drawn in nothing but green.
    """
    quality = PROFILES[profile]
    models = base_path / ASSETS
    for source in [models / f"{domain}.xml", *(models / "common").iterdir()]:
        document = ElementTree.parse(source)
        if quality is not None:
            for element in document.iter("quality"):
                element.attrib.update({name: str(value) for name, value in vars(quality).items()})
            for element in document.iter("material"):
                if "reflectance" in element.attrib:
                    element.set("reflectance", "0")
        if green:
            _write_green(document)
        copy = target / source.relative_to(base_path)
        copy.parent.mkdir(parents=True, exist_ok=True)
        document.write(copy)


def _write_green(document: Any) -> None:
    for element in document.iter("texture"):
        if element.get("name") in BEHIND:
            element.attrib.update(builtin="flat", rgb1="0 1 0", rgb2="0 1 0", mark="none")
    for element in document.iter("material"):
        if element.get("name") in BEHIND:
            element.set("specular", "0")
