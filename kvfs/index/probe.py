"""Look at an index from a child process, because looking at a bad one can kill the looker.

Owns the question "may a daemon open this data.mdb?" after an unclean stop. A truncated or torn
LMDB file does not raise: it is a SIGBUS in whoever touches the page. So the meta pages are parsed
without LMDB first (a file shorter than they say is bad), and then a child (page_walk.py) reads
every page.
"""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path

from kvfs.errors import Unavailable
from kvfs.index import page_walk

TIMEOUT_S = 120.0

_META = struct.Struct("<IIQQ")
_MAGIC = 0xBEEFC0DE
_PAGE_HEADER = 16
# mm_magic u32, mm_version u32, mm_address u64, mm_mapsize u64, then two MDB_db of 48 bytes each
# (md_pad of the first holds the page size), then mm_last_pg u64, mm_txnid u64.
_DB_RECORD = 48


def is_index_readable(directory: Path) -> bool:
    """Return whether a daemon may open the index in `directory`; an absent one is good (empty).

    Raises: Unavailable (the child could not look at all; that says nothing about the index).
    """
    data = directory / "data.mdb"
    if not data.exists():
        return True
    if not metas_fit(data):
        return False
    # By path and with -P: the child needs lmdb alone, and no module of the caller's directory.
    command = [sys.executable, "-P", page_walk.__file__, str(directory)]
    try:
        done = subprocess.run(
            command,
            timeout=TIMEOUT_S,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
        )
    except (subprocess.TimeoutExpired, OSError) as error:
        raise Unavailable(f"the index could not be checked ({error}): retry") from error
    if done.returncode == 0:
        return True
    if done.returncode == page_walk.BAD or done.returncode < 0:
        return False
    raise Unavailable(f"the index could not be checked (status {done.returncode}): retry")


def metas_fit(data: Path) -> bool:
    """Return whether the newer meta page is sound and the file as long as it says."""
    with data.open("rb") as file:
        length = os.fstat(file.fileno()).st_size
        first = _read_meta(file.read(4096))
        if first is None:
            return False
        page_size = first[2]
        file.seek(page_size)
        second = _read_meta(file.read(4096))
    metas = [meta for meta in (first, second) if meta is not None]
    last_page, _, _ = max(metas, key=lambda meta: meta[1])
    # LMDB's file ends with the last page written, which may lie before the last page counted only
    # in a fresh, empty environment (two meta pages).
    return length >= min(last_page + 1, 2) * page_size and length >= (last_page + 1) * page_size


def _read_meta(page: bytes) -> tuple[int, int, int] | None:
    """Return (last page, transaction id, page size) of a meta page, or None if it is none."""
    body = page[_PAGE_HEADER:]
    if len(body) < _META.size + 2 * _DB_RECORD + 16:
        return None
    magic, _, _, _ = _META.unpack_from(body)
    if magic != _MAGIC:
        return None
    (page_size,) = struct.unpack_from("<I", body, _META.size)
    last_page, transaction = struct.unpack_from("<QQ", body, _META.size + 2 * _DB_RECORD)
    if page_size < 512 or page_size & (page_size - 1):
        return None
    return last_page, transaction, page_size
