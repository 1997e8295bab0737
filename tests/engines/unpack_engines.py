"""Puts into the engines' environment what pip cannot install there whole; run by its Python.

    .venv-engines/bin/python tests/engines/unpack_engines.py

vLLM: its wheel is 840 MB unpacked, nearly all of it CUDA code. Its Python files and the one C
extension that reads and writes files (60 MB) are taken as they are. LMCache: its own tests, which
only its source distribution carries. CUDA's libraries: stand-ins that say "no GPU" (no_cuda.c).
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

VLLM = "vllm==0.33.0"
LMCACHE = "lmcache==0.5.6"
CUDA_LIBRARIES = ("libcudart.so.12", "libnvrtc.so.13", "libc10_cuda.so", "libtorch_cuda.so")
NO_CUDA = Path(sys.prefix) / "no-cuda"
"""Stand-ins for CUDA's libraries, a file for each name."""
LMCACHE_SOURCE = Path(sys.prefix) / "lmcache-source"
"""LMCache's source distribution: `tests/` is what is run."""


def main() -> None:
    build_no_cuda()
    with tempfile.TemporaryDirectory() as folder:
        unpack_vllm(download(Path(folder), "--only-binary=:all:", VLLM))
    with tempfile.TemporaryDirectory() as folder:
        # Only its version is asked of its setup, which builds nothing and needs no CUDA then.
        os.environ["NO_CUDA_EXT"] = "1"
        arguments = ("--no-build-isolation", "--no-binary=lmcache", LMCACHE)
        unpack_lmcache_tests(download(Path(folder), *arguments))


def download(folder: Path, *arguments: str) -> Path:
    """Return the one file that pip downloads."""
    pip = [sys.executable, "-m", "pip", "download", "-qq", "--no-deps", "--dest", str(folder)]
    subprocess.run([*pip, *arguments], check=True)
    (path,) = folder.iterdir()
    return path


def unpack_vllm(wheel: Path) -> None:
    site = sysconfig.get_path("purelib")
    with zipfile.ZipFile(wheel) as archive:
        wanted = (name for name in archive.namelist() if is_wanted_of_vllm(name))
        archive.extractall(site, wanted)


def is_wanted_of_vllm(name: str) -> bool:
    return name.endswith((".py", "/METADATA")) or name.startswith("vllm/fs_io_C.")


def unpack_lmcache_tests(source: Path) -> None:
    with tarfile.open(source) as archive:
        archive.extractall(LMCACHE_SOURCE, members_below_top(archive))


def members_below_top(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the files of the tests, and their settings, without the folder named by version."""
    for member in archive:
        _, _, name = member.name.partition("/")
        if member.isfile() and (name.startswith("tests/") or name == "pyproject.toml"):
            member.name = name
            yield member


def build_no_cuda() -> None:
    """Build one library for each name; each has all functions and the version tag of its name."""
    NO_CUDA.mkdir(exist_ok=True)
    source = Path(__file__).with_name("no_cuda.c")
    for name in CUDA_LIBRARIES:
        versions = NO_CUDA / f"{name}.map"
        versions.write_text(f"{name} {{ *; }};\n")
        command = ["gcc", "-shared", "-fPIC", "-O1", f"-Wl,-soname,{name}"]
        command += [f"-Wl,--version-script,{versions}", "-o", str(NO_CUDA / name), str(source)]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
