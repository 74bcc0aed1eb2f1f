from __future__ import annotations

import ctypes
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mudreamer_fast.config import ConfigError
from mudreamer_fast.envs import EnvError, graphics
from tests.simulators import EACH, needs

ROOT = str(Path(__file__).parents[2])


@pytest.fixture(autouse=True)
def _forgotten_answers() -> Iterator[None]:
    caches = graphics.load_egl, graphics.renderer_name, graphics._announce_light_profile
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


def run_python(program: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": ROOT, **variables}
    return subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )


def test_renderer_name_says_what_draws() -> None:
    assert len(graphics.renderer_name()) > 3


def test_a_missing_library_names_the_packages_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str, **options: object) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    with pytest.raises(EnvError, match=r"libEGL\.so\.1.*Debian/Ubuntu packages libegl1") as caught:
        graphics.prepare("auto")
    assert "\n" not in str(caught.value)
    assert not graphics.try_to_load_egl()


@pytest.mark.parametrize("device", ["99", "-1", "first", ""])
def test_a_device_that_is_not_there_is_refused(
    monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    monkeypatch.setenv(graphics.DEVICE_VARIABLE, device)
    with pytest.raises(ConfigError, match=f"{graphics.DEVICE_VARIABLE} must be.*got '{device}'"):
        graphics.prepare("light")


def test_the_simulators_are_pointed_to_the_first_device_that_works(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Machine:
        working = (2, 3)

        def __init__(self, library: object) -> None: ...

        def devices(self) -> dict[int, int]:
            return dict(enumerate(range(4)))

        def renderer_of(self, device: int) -> str:
            if device not in self.working:
                raise EnvError("does not start")
            return f"GPU {device}"

    monkeypatch.setattr(graphics, "_Egl", Machine)
    monkeypatch.setenv(graphics.DEVICE_VARIABLE, "to be restored")
    monkeypatch.delenv(graphics.DEVICE_VARIABLE)
    assert graphics.renderer_name() == "GPU 2"
    assert os.environ[graphics.DEVICE_VARIABLE] == "2"
    graphics.renderer_name.cache_clear()
    Machine.working = ()
    with pytest.raises(EnvError, match=r"device 0 does not start; device 1 does not start;"):
        graphics.renderer_name()


class Egl(graphics._Egl):
    """EGL with one device, whose functions give `answers` where these name them."""

    answers: dict[str, Any]
    calls: list[str]

    def _function(self, name: str, *signature: Any) -> Any:
        def call(*arguments: Any) -> Any:
            self.calls.append(name)
            if name in ("eglQueryDevicesEXT", "eglChooseConfig"):
                arguments[-1]._obj.value = self.answers.get(f"count of {name}", 1)
            return self.answers.get(name, b"a renderer" if name == "glGetString" else 1)

        return call


@pytest.fixture
def egl(monkeypatch: pytest.MonkeyPatch) -> type[Egl]:
    library = SimpleNamespace(eglGetProcAddress=lambda name: None)
    monkeypatch.setattr(graphics, "load_egl", lambda: library)
    monkeypatch.setattr(graphics, "_Egl", Egl)
    monkeypatch.setattr(Egl, "answers", {}, raising=False)
    monkeypatch.setattr(Egl, "calls", [], raising=False)
    monkeypatch.delenv(graphics.DEVICE_VARIABLE, raising=False)
    return Egl


@pytest.mark.parametrize(
    ("function", "answer", "reason"),
    [
        ("eglQueryDevicesEXT", 0, "none was found"),
        ("count of eglQueryDevicesEXT", 0, "none was found"),
        ("eglGetPlatformDisplayEXT", None, "device 0 does not start"),
        ("eglInitialize", 0, "device 0 does not start"),
        ("eglChooseConfig", 0, "device 0 offers no off-screen OpenGL"),
        ("count of eglChooseConfig", 0, "device 0 offers no off-screen OpenGL"),
        ("eglBindAPI", 0, "device 0 offers no off-screen OpenGL"),
        ("eglCreateContext", None, "device 0 makes no OpenGL context"),
        ("eglMakeCurrent", 0, "device 0 draws nothing without a window"),
    ],
)
def test_a_device_that_cannot_draw_is_named_with_the_reason(
    egl: type[Egl], function: str, answer: int | None, reason: str
) -> None:
    egl.answers = {function: answer}
    with pytest.raises(EnvError) as caught:
        graphics.renderer_name()
    assert str(caught.value) == (f"no EGL device can render ({reason}): {graphics.INSTALL_HINT}")
    made, ended = (egl.calls.count(f"egl{verb}Context") for verb in ("Create", "Destroy"))
    assert made - ended == (function == "eglCreateContext")


def test_a_renderer_without_a_name_is_unknown(egl: type[Egl]) -> None:
    assert graphics.renderer_name() == "a renderer"
    graphics.renderer_name.cache_clear()
    egl.answers = {"glGetString": None}
    assert graphics.renderer_name() == "unknown"


def test_a_libegl_that_is_too_old_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    library = SimpleNamespace(eglGetProcAddress=lambda name: None)
    monkeypatch.setattr(graphics, "load_egl", lambda: library)
    with pytest.raises(EnvError, match=r"this libEGL has no eglQueryDevicesEXT: install the"):
        graphics.renderer_name()


@pytest.mark.parametrize("backend", EACH)
def test_a_machine_without_drivers_gets_one_line_instead_of_an_abort(backend: str) -> None:
    program = f"""
from mudreamer_fast.config import EnvConfig
from mudreamer_fast.envs import EnvError, make_env
try:
    make_env(EnvConfig("dmc/cartpole_balance", backend={backend!r}), 1, 0)
except EnvError as error:
    print(error)
env = make_env(EnvConfig("dmc/cartpole_balance", "vector", backend={backend!r}), 1, 0)
print(env.reset().observation["vector"].shape)
try:
    env.render()
except EnvError as error:
    print(error)
"""
    # glvnd finds no vendor's library
    done = run_python(program, __EGL_VENDOR_LIBRARY_FILENAMES="/nowhere.json")
    assert done.returncode == 0, done.stderr
    first, shape, last = done.stdout.splitlines()
    reason = "no EGL device can render"
    assert first[first.index(reason) :] == last[last.index(reason) :]
    assert "libgl1-mesa-dri" in first
    assert shape == "(1, 5)"


@needs("envpool")
def test_an_earlier_import_of_envpool_does_not_break_rendering() -> None:
    program = """
import envpool
from mudreamer_fast.config import EnvConfig
from mudreamer_fast.envs import make_env
env = make_env(EnvConfig(task="dmc/cartpole_balance", backend="envpool"), 1, 0)
print(env.reset().observation["image"].std() > 10)
"""
    done = run_python(program)
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr


@needs("envpool")
@needs("dm_control")
def test_a_game_first_and_gymnasiums_mujoco_then_do_not_break_envpools_pictures() -> None:
    pytest.importorskip("gymnasium")
    program = """
from mudreamer_fast.config import EnvConfig
from mudreamer_fast.envs import make_env
for task in ("atari/pong", "gym:HalfCheetah-v5", "dmc/cartpole_balance"):
    env = make_env(EnvConfig(task), 1, 0)
    print(env.reset().observation["image"].std() > 10)
    env.close()
"""
    done = run_python(program)
    assert (done.returncode, done.stdout) == (0, "True\n" * 3), done.stderr


@pytest.mark.parametrize("backend", EACH)
def test_triton_can_be_imported_after_a_picture_was_drawn(backend: str) -> None:
    pytest.importorskip("triton")
    done = run_python(
        "import sys\n"
        "from mudreamer_fast.config import EnvConfig\n"
        "from mudreamer_fast.envs import make_env\n"
        f"env = make_env(EnvConfig('dmc/cartpole_balance', backend={backend!r}), 1, 0)\n"
        "env.reset()\n"
        "import triton\n"
        "env.close()\n"
        "print('still here')\n"
    )
    assert (done.returncode, done.stdout) == (0, "still here\n"), done.stderr


def test_auto_takes_the_light_profile_in_software_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(graphics, "renderer_name", lambda: "llvmpipe (LLVM 15.0.6, 256 bits)")
    with caplog.at_level(logging.INFO):
        assert graphics.prepare("auto") == "light"
        assert graphics.prepare("auto") == "light"
        assert graphics.prepare("reference") == "reference"
    assert len(caplog.messages) == 1
    assert "light render profile" in caplog.messages[0]


@pytest.mark.parametrize(
    ("profile", "before", "after"),
    [("auto", None, "0"), ("flat", None, "0"), ("light", "2", "2"), ("reference", None, None)],
)
def test_cheap_profiles_leave_drawing_to_the_calling_thread_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch, profile: str, before: str | None, after: str | None
) -> None:
    seen = []

    def renderer() -> str:
        seen.append(os.environ.get("LP_NUM_THREADS"))
        return "llvmpipe (LLVM 15.0.6, 256 bits)"

    monkeypatch.setattr(graphics, "renderer_name", renderer)
    monkeypatch.setenv("LP_NUM_THREADS", "to be restored")
    if before is None:
        monkeypatch.delenv("LP_NUM_THREADS")
    else:
        monkeypatch.setenv("LP_NUM_THREADS", before)
    graphics.prepare(profile)  # type: ignore[arg-type]
    assert seen == [after], "it is read when the first context is made"


def test_auto_takes_the_reference_profile_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(graphics, "renderer_name", lambda: "NVIDIA H100 80GB HBM3/PCIe/SSE2")
    assert graphics.prepare("auto") == "reference"
    assert graphics.prepare("flat") == "flat"
    assert not caplog.messages


def test_video_profile_needs_no_renderer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphics, "renderer_name", lambda: pytest.fail("asked for"))
    assert graphics.video_profile("auto") == "light"
    assert graphics.video_profile("reference") == "reference"


def test_the_device_that_the_user_names_is_the_only_one_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def query(most: int, handles: Any, count: Any) -> int:
        handles[0], handles[1], count._obj.value = 11, 22, 2
        return 1

    egl = graphics._Egl.__new__(graphics._Egl)
    egl._query_devices = query
    monkeypatch.delenv(graphics.DEVICE_VARIABLE, raising=False)
    assert [device.value for device in egl.devices().values()] == [11, 22]
    monkeypatch.setenv(graphics.DEVICE_VARIABLE, "1")
    assert {number: device.value for number, device in egl.devices().items()} == {1: 22}
