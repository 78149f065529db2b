"""Builds the native kernels along with the package; without a compiler, or where the build fails, the package installs without
them and runs on PyTorch alone (``hasten doctor`` says so, ``python -m hasten.native.build`` tries again)."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from setuptools import Distribution, setup
from setuptools.command.build_py import build_py

NATIVE = Path(__file__).resolve().parent / "src" / "hasten" / "native"


def builder() -> ModuleType:
    """The package's own build script, run from its file because the package is not installed yet."""
    spec = importlib.util.spec_from_file_location("hasten_native_build", NATIVE / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


class BuildWithKernels(build_py):
    """Python files as always, and the shared library beside them."""

    def run(self) -> None:
        super().run()
        folder = NATIVE if self.editable_mode else Path(self.build_lib) / "hasten" / "native"
        script = builder()
        try:
            self.announce(f"built {script.build(folder)}", level=2)
        except script.BuildError as problem:
            self.warn(f"installing without native kernels. {problem}")
            if not self.editable_mode:
                (folder / script.LIBRARY).unlink(missing_ok=True)  # an older one that lay among the sources


class PlatformDistribution(Distribution):
    """A wheel with a compiled library belongs to one platform."""

    def has_ext_modules(self) -> bool:
        return True


setup(cmdclass={"build_py": BuildWithKernels}, distclass=PlatformDistribution)
