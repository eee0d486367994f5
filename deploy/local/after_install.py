"""What `make setup` does after pip: refuses a build of PyTorch for GPUs that are not there, and compiles to bytecode.

pip compiles one file at a time; here all cores do it, and only packages that the mesh imports at run time, so that the
first start is as fast as the second.
"""

from __future__ import annotations

import compileall
import importlib.util
import os
import sys
import sysconfig
from pathlib import Path

SITE = Path(sysconfig.get_paths()["purelib"])
# Packages that only tests, linters and the documentation of the demo read.
NOT_COMPILED = {"statsmodels", "polars", "ruff", "schemathesis", "hypothesis", "sympy"}


def cuda_version() -> str | None:
    """The CUDA version that the installed PyTorch was built for; None: a CPU build. Does not import torch (seconds)."""
    spec = importlib.util.spec_from_file_location("torch_version", SITE / "torch" / "version.py")
    if spec is None or spec.loader is None:
        raise SystemExit("torch is not installed; remove .venv and run `make setup` again")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.cuda


def has_gpu() -> bool:
    """Whether the NVIDIA driver shows a device."""
    return Path("/dev/nvidia0").exists()


def compile_packages() -> None:
    """Writes bytecode for the packages under site-packages."""
    for entry in sorted(SITE.iterdir()):
        if entry.name in NOT_COMPILED or not (entry.is_dir() or entry.suffix == ".py"):
            continue
        if entry.is_dir():
            # Test folders of packages hold files that are wrong on purpose.
            compileall.compile_dir(entry, quiet=2, workers=os.cpu_count() or 1, rx=TESTS)
        else:
            compileall.compile_file(entry, quiet=2)


class _Tests:
    """Stands for a regular expression: compile_dir skips what `search` finds."""

    def search(self, path: str) -> bool:
        return "/tests/" in path or "/test/" in path or "/testing/_internal/" in path


TESTS = _Tests()


_CPU_BUILD = """PyTorch is locked to its CPU build, torch 2.13.0+cpu. PyPI does not carry it: name a source that does.
PyTorch's own index has it (pytorch.org, "Get started", compute platform CPU, shows its address):
  .venv/bin/pip config set global.extra-index-url ADDRESS
  make setup"""


def main() -> None:
    if sys.argv[1:] == ["--failed"]:
        print(
            f"[setup] pip could not install what is locked. If it complains about torch:\n{_CPU_BUILD}", file=sys.stderr
        )
        return
    cuda = cuda_version()
    if cuda is not None and not has_gpu():
        sys.exit(f"PyTorch was installed for CUDA {cuda}, but this machine has no NVIDIA GPU.\n{_CPU_BUILD}")
    compile_packages()


if __name__ == "__main__":
    main()
