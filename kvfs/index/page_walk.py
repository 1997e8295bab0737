"""Touch every page of an LMDB index; run as a child process, which a bad index may kill.

Owns the walk; imports nothing of kvfs, so it runs by its path wherever lmdb does.
Run: python page_walk.py DIRECTORY. Exit status 0 = good, BAD (or death by a signal) = bad, anything
else = it could not look.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import lmdb

BAD = 3
VERIFY_UP_TO = 32 << 20
"""Full verification is pure Python: 13 s a million objects, 0.5 s for so many bytes. Larger files
get a compacting copy to nowhere, which reads every page in C: 0.75 s a million objects."""
TIMEOUT_S = 100.0


def walk(directory: Path) -> None:
    """Touch every page of the index; raises or dies if one is bad. Child process only."""
    environment = lmdb.open(
        str(directory), readonly=True, lock=False, max_dbs=32, map_size=64 << 30, create=False
    )
    with open(os.devnull, "wb") as nowhere:
        environment.copyfd(nowhere.fileno(), compact=True)
    with environment.begin() as txn:
        for name, _ in txn.cursor():
            table = environment.open_db(name, txn=txn, create=False)
            claimed = txn.stat(table)["entries"]
            if (directory / "data.mdb").stat().st_size <= VERIFY_UP_TO:
                counted = sum(1 for _ in txn.cursor(table))
                assert counted == claimed, "a table holds as many rows as it says"
    environment.close()


def main() -> int:
    """Probe the directory named on the command line."""
    directory = Path(sys.argv[1])
    if (directory / "data.mdb").stat().st_size <= VERIFY_UP_TO:
        done = subprocess.run(
            [sys.executable, "-m", "lmdb", "verify", "-e", str(directory)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=TIMEOUT_S,
            check=False,
        )
        if done.returncode != 0:
            return BAD
    try:
        walk(directory)
    except (lmdb.Error, AssertionError):
        return BAD
    return 0


if __name__ == "__main__":
    sys.exit(main())
