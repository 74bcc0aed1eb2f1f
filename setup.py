"""Builds the extension mudreamer_fast._replay with CMake; all else stands in pyproject.toml."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext


class CMakeBuild(build_ext):
    """Has CMake put the module where setuptools expects it."""

    def build_extension(self, ext: Extension) -> None:
        """Configure, build, and leave the module at the extension's path."""
        import pybind11  # a build requirement: there only by the time something is built

        source = Path(__file__).resolve().parent
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        configure = [
            "cmake",
            # What a cache says of tools is stale when the last build environment is gone.
            "--fresh",
            f"-S{source}",
            f"-B{build}",
            "-GNinja",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target.parent}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        ]
        # An environment's tools count even where it has not been activated.
        path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])
        for command in (configure, ["cmake", "--build", str(build), "--target", "_replay"]):
            subprocess.run(command, check=True, env={**os.environ, "PATH": path})
        if not target.is_file():
            raise RuntimeError(f"CMake built no {target}")


setup(
    ext_modules=[Extension("mudreamer_fast._replay", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
