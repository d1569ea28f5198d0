"""Compile native/cuda/kernels/kernels.cu to PTX with NVRTC, which needs no GPU.

    python tools/make_ptx.py            write kernels.ptx
    python tools/make_ptx.py --check    fail if kernels.ptx is not what the source compiles to

NVRTC comes from PyPI. The old version is on purpose: its PTX is accepted by every driver since
CUDA 12.0, and a newer one's is not.
"""

from __future__ import annotations

import argparse
import ctypes
import difflib
import importlib.util
import sys
from pathlib import Path

KERNELS = Path(__file__).parents[1] / "native" / "cuda" / "kernels"
OPTIONS = (b"--gpu-architecture=compute_70", b"--std=c++17")
PACKAGE = "nvidia.cuda_nvrtc"


class Unavailable(Exception):
    """NVRTC is not installed, or cannot be loaded."""


def library() -> ctypes.CDLL:
    try:
        found = importlib.util.find_spec(PACKAGE)
    except ModuleNotFoundError:
        found = None
    if found is None:
        raise Unavailable(f"{PACKAGE} is not installed")
    folder = Path(next(iter(found.submodule_search_locations or ()))) / "lib"
    try:
        ctypes.CDLL(str(next(folder.glob("libnvrtc-builtins.so*"))), mode=ctypes.RTLD_GLOBAL)
        return ctypes.CDLL(str(next(folder.glob("libnvrtc.so.*"))))
    except (OSError, StopIteration) as error:
        raise Unavailable(f"{PACKAGE} cannot be loaded: {error}") from error


def text_of(nvrtc: ctypes.CDLL, what: str, program: ctypes.c_void_p) -> str:
    size = ctypes.c_size_t()
    getattr(nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
    text = ctypes.create_string_buffer(size.value)
    getattr(nvrtc, f"nvrtcGet{what}")(program, text)
    return text.value.decode()


def compiled(nvrtc: ctypes.CDLL, source: Path) -> str:
    program = ctypes.c_void_p()
    arguments = source.read_bytes(), source.name.encode(), 0, None, None
    if nvrtc.nvrtcCreateProgram(ctypes.byref(program), *arguments) != 0:
        sys.exit("NVRTC makes no program")
    options = (ctypes.c_char_p * len(OPTIONS))(*OPTIONS)
    if nvrtc.nvrtcCompileProgram(program, len(OPTIONS), options) != 0:
        sys.exit(text_of(nvrtc, "ProgramLog", program))
    return text_of(nvrtc, "PTX", program)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    target = KERNELS / "kernels.ptx"
    try:
        made = compiled(library(), KERNELS / "kernels.cu")
    except Unavailable as error:
        print(f"kernels.ptx is not compared with its source here: {error}")
        return 0 if check else 1
    if not check:
        target.write_text(made)
        return 0
    known = target.read_text() if target.exists() else ""
    if known == made:
        return 0
    lines = difflib.unified_diff(
        known.splitlines(), made.splitlines(), str(target), "compiled", lineterm=""
    )
    sys.stderr.writelines(line + "\n" for line in list(lines)[:40])
    sys.stderr.write("kernels.ptx is stale: run 'make ptx'\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
