"""Off-screen OpenGL through EGL: loading it, asking what draws, and failing in one sentence.

Both simulators draw on the device that MUJOCO_EGL_DEVICE_ID names, else on the first that works.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util
import logging
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from mudreamer_fast.config import ConfigError
from mudreamer_fast.envs.render_profile import ProfileName
from mudreamer_fast.envs.vector_env import EnvError

log = logging.getLogger(__name__)

DEVICE_VARIABLE = "MUJOCO_EGL_DEVICE_ID"
SOFTWARE_THREADS_VARIABLE = "LP_NUM_THREADS"
"""Of Mesa's llvmpipe, which reads it when the first context is made."""
INSTALL_HINT = "install the Debian/Ubuntu packages libegl1 and libgl1-mesa-dri"
SOFTWARE_RENDERERS = ("llvmpipe", "softpipe", "swrast", "software rasterizer")

_MAX_DEVICES = 64
_EGL_PLATFORM_DEVICE = 0x313F
_EGL_OPENGL_API = 0x30A2
_EGL_OPENGL_BIT = 0x0008
_EGL_PBUFFER_BIT = 0x0001
_EGL_SURFACE_TYPE = 0x3033
_EGL_RENDERABLE_TYPE = 0x3040
_EGL_NONE = 0x3038
_GL_RENDERER = 0x1F01


def try_to_load_egl() -> bool:
    """Loads EGL where there is one; to be called before EnvPool is first imported.

    EnvPool brings an EGL of its own, but finds OpenGL's functions through whichever was loaded
    first for all to see. Only the system's, loaded first, serves both purposes; two different ones
    end the process at the first picture.

    Returns:
        Whether EGL is there; without it, an environment can still give vectors.
    """
    try:
        load_egl()
    except EnvError:
        return False
    return True


@functools.cache
def load_egl() -> ctypes.CDLL:
    """Loads libEGL for the whole process, so that its functions are found by EnvPool as well.

    Raises:
        EnvError: the library is missing; names the packages that bring it.
    """
    _import_triton_first()
    # dm_control would otherwise look for a display first and fail on a server
    os.environ.setdefault("MUJOCO_GL", "egl")
    name = "libEGL.so.1"
    if "envpool" in sys.modules and not _is_loaded(name):
        # too late for the system's: EnvPool is bound to its own, which others must now see
        name = _envpools_own_egl() or name
    try:
        return ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
    except OSError:
        raise EnvError(
            f"images need the library libEGL.so.1, which is missing: {INSTALL_HINT}"
        ) from None


def _import_triton_first() -> None:
    """Triton brings an LLVM of its own, and the process ends where Mesa's was loaded before it.

    PyTorch imports it at moments of its own choosing, in child processes as well.
    """
    if importlib.util.find_spec("triton"):
        with contextlib.suppress(ImportError):
            importlib.import_module("triton")


def _is_loaded(name: str) -> bool:
    try:
        ctypes.CDLL(name, mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
    except OSError:
        return False
    return True


def _envpools_own_egl() -> str | None:
    maps = Path("/proc/self/maps").read_text() if sys.platform == "linux" else ""
    match = re.search(r"/\S.*envpool\.libs/libEGL\S+", maps)
    return match[0] if match else None


def video_profile(profile: ProfileName | Literal["auto"]) -> ProfileName:
    """The profile where pictures are for videos alone, settled without asking for a renderer."""
    return "light" if profile == "auto" else profile


def prepare(profile: ProfileName | Literal["auto"]) -> ProfileName:
    """Makes rendering ready in this process and settles the render profile.

    Args:
        profile: a profile's name, or "auto": reference on a GPU, light in software.

    Raises:
        EnvError: EGL is missing or nothing can be rendered with it.
        ConfigError: MUJOCO_EGL_DEVICE_ID names no device.
    """
    if profile != "reference":
        # a small, cheap image is drawn sooner than the threads of the software renderer wake up
        os.environ.setdefault(SOFTWARE_THREADS_VARIABLE, "0")
    name = renderer_name()
    if profile != "auto":
        return profile
    if not any(word in name.lower() for word in SOFTWARE_RENDERERS):
        return "reference"
    _announce_light_profile(name)
    return "light"


@functools.cache
def _announce_light_profile(renderer: str) -> None:
    """Says once what changes the images that an agent learns from."""
    log.warning("rendering in software (%s): taking the light render profile", renderer)


def can_render() -> bool:
    """Whether a device draws images; without one, an environment can still give vectors."""
    try:
        renderer_name()
    except EnvError:
        return False
    return True


@functools.cache
def renderer_name() -> str:
    """What draws the images, such as "llvmpipe (LLVM 15.0.6, 256 bits)".

    A context is made and dropped again, so that a renderer that cannot be used is found here and
    not inside a simulator, some of which end the process over it.

    Raises:
        EnvError: nothing can be rendered here.
        ConfigError: MUJOCO_EGL_DEVICE_ID names no device.
    """
    egl = _Egl(load_egl())
    reasons = []
    for number, device in egl.devices().items():
        try:
            name = egl.renderer_of(device)
        except EnvError as reason:
            reasons.append(f"device {number} {reason}")
            continue
        if reasons:  # left to themselves, the simulators need not get past the first device
            os.environ.setdefault(DEVICE_VARIABLE, str(number))
        return name
    raise EnvError(
        f"no EGL device can render ({'; '.join(reasons) or 'none was found'}): {INSTALL_HINT}"
    )


class _Egl:
    """The few calls of EGL that the question takes."""

    def __init__(self, library: ctypes.CDLL) -> None:
        pointer, integer = ctypes.c_void_p, ctypes.c_int
        array = ctypes.POINTER(integer)
        self._address: Callable[..., Any] = library.eglGetProcAddress
        library.eglGetProcAddress.restype = pointer
        library.eglGetProcAddress.argtypes = [ctypes.c_char_p]
        self._query_devices = self._function(
            "eglQueryDevicesEXT", integer, integer, ctypes.POINTER(pointer), array
        )
        self._platform_display = self._function(
            "eglGetPlatformDisplayEXT", pointer, integer, pointer, array
        )
        self._initialize = self._function("eglInitialize", integer, pointer, array, array)
        self._choose_config = self._function(
            "eglChooseConfig", integer, pointer, array, ctypes.POINTER(pointer), integer, array
        )
        self._bind_api = self._function("eglBindAPI", integer, integer)
        self._create_context = self._function(
            "eglCreateContext", pointer, pointer, pointer, pointer, array
        )
        self._destroy_context = self._function("eglDestroyContext", integer, pointer, pointer)
        self._make_current = self._function(
            "eglMakeCurrent", integer, pointer, pointer, pointer, pointer
        )
        self._get_string = self._function("glGetString", ctypes.c_char_p, integer)

    def _function(self, name: str, *signature: Any) -> Callable[..., Any]:
        address = self._address(name.encode())
        if not address:
            raise EnvError(f"this libEGL has no {name}: {INSTALL_HINT}")
        return ctypes.CFUNCTYPE(*signature)(address)

    def devices(self) -> dict[int, ctypes.c_void_p]:
        """The devices to try by number, in order."""
        handles, count = (ctypes.c_void_p * _MAX_DEVICES)(), ctypes.c_int()
        if not self._query_devices(_MAX_DEVICES, handles, ctypes.byref(count)):
            return {}
        devices = {i: ctypes.c_void_p(handles[i]) for i in range(count.value)}
        chosen = os.environ.get(DEVICE_VARIABLE)
        if chosen is None:
            return devices
        if not chosen.isdecimal() or int(chosen) >= len(devices):
            raise ConfigError(
                f"{DEVICE_VARIABLE} must be a number from 0 to {len(devices) - 1} "
                f"(EGL finds {len(devices)} devices), got {chosen!r}"
            )
        return {int(chosen): devices[int(chosen)]}

    def renderer_of(self, device: ctypes.c_void_p) -> str:
        """GL_RENDERER of a context on the device."""
        display = self._platform_display(_EGL_PLATFORM_DEVICE, device, None)
        if not display or not self._initialize(display, None, None):
            raise EnvError("does not start")
        wanted = (ctypes.c_int * 5)(
            _EGL_SURFACE_TYPE, _EGL_PBUFFER_BIT, _EGL_RENDERABLE_TYPE, _EGL_OPENGL_BIT, _EGL_NONE
        )
        config, count = ctypes.c_void_p(), ctypes.c_int()
        chosen = self._choose_config(display, wanted, ctypes.byref(config), 1, ctypes.byref(count))
        if not chosen or not count.value or not self._bind_api(_EGL_OPENGL_API):
            raise EnvError("offers no off-screen OpenGL")
        context = self._create_context(display, config, None, None)
        if not context:
            raise EnvError("makes no OpenGL context")
        try:
            if not self._make_current(display, None, None, context):
                raise EnvError("draws nothing without a window")
            name = self._get_string(_GL_RENDERER)
            self._make_current(display, None, None, None)
        finally:
            # the display stays: terminating it would take it from the simulators as well
            self._destroy_context(display, context)
        return name.decode() if name else "unknown"
