"""Who opens the store after an unclean stop, in which order: doubt stays doubt (I1)."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kvfs.errors import Corrupt, KvfsError
from kvfs.model import Durability, ObjectPath
from kvfs.open_store import init_store, open_store
from kvfs.store.store import Store
from kvfs.store.trust import read_ranges
from tests.crash.crew import Crew, ForkServer
from tests.crash.injection import Fault, missing, run_with_fault
from tests.crash.processes import abandon, descriptors

pytestmark = [pytest.mark.crash, pytest.mark.expects_warnings]

ROOT = Path(__file__).resolve().parents[2]
KEY = ObjectPath(b"kv", b"key")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "store"
    init_store(root, capacity_bytes=64 << 20)
    with open_store(root) as store:
        store.create_namespace(b"kv")
    return root


def tear(store: Store, key: ObjectPath = KEY) -> None:
    """Let the block file hold other bytes of the same length, as power loss does."""
    digest = store.stat(key).digest
    (path,) = (store.path / "blocks" / f"{digest[0]:02x}").glob(f"{digest.hex()}.*")
    path.write_bytes(bytes(path.stat().st_size))


def leave_torn(root: Path) -> None:
    store = open_store(root)
    store.put(KEY, b"x" * 5000)
    tear(store)
    abandon(store)


def is_served(store: Store) -> bool:
    try:
        return store.get(KEY) != b"x" * 5000
    except KvfsError:
        return False


def test_i1_a_writer_that_joins_a_reader_distrusts_what_the_unclean_stop_left(root: Path) -> None:
    """The reader was alone, the writer is not: the reader must have said what is in doubt."""
    leave_torn(root)
    with open_store(root, read_only=True):
        command = [sys.executable, "-c", _READ_AS_WRITER, str(root)]
        code = subprocess.run(command, cwd=ROOT, timeout=60, check=False).returncode
        assert code == 0, "the writer served torn bytes"


_READ_AS_WRITER = """
import sys
from pathlib import Path
from kvfs.errors import KvfsError
from kvfs.model import ObjectPath
from kvfs.open_store import open_store
store = open_store(Path(sys.argv[1]))
assert not (Path(sys.argv[1]) / "index" / "clean").exists()
try:
    data = store.get(ObjectPath(b"kv", b"key"))
except KvfsError:
    sys.exit(0)
sys.exit(1)
"""


def test_i1_a_reader_never_serves_a_torn_block_and_changes_nothing(root: Path) -> None:
    leave_torn(root)
    with open_store(root, read_only=True) as reader:
        with pytest.raises(Corrupt):
            reader.get(KEY)
        assert reader.find(KEY) is not None
    with open_store(root) as writer:
        assert not is_served(writer)
        assert writer.find(KEY) is None


def test_a_writer_beside_a_reader_is_not_clean_until_it_closes(root: Path) -> None:
    with open_store(root, read_only=True):
        assert (root / "index" / "clean").exists()
        command = [sys.executable, "-c", _WRITE_AND_DIE, str(root)]
        code = subprocess.run(command, cwd=ROOT, timeout=60, check=False).returncode
        assert code == -signal.SIGKILL
        assert not (root / "index" / "clean").exists()


_WRITE_AND_DIE = """
import os, signal, sys
from pathlib import Path
from kvfs.model import ObjectPath
from kvfs.open_store import open_store
store = open_store(Path(sys.argv[1]))
store.put(ObjectPath(b"kv", b"key"), b"x" * 5000)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_i1_what_a_killed_process_wrote_is_served_at_once(root: Path) -> None:
    store = open_store(root)
    store.put(KEY, b"x" * 5000)
    abandon(store)
    with open_store(root) as store:
        assert store.get(KEY) == b"x" * 5000


def test_opening_again_and_again_leaks_no_descriptor(root: Path) -> None:
    before = descriptors()
    for _ in range(3):
        store = open_store(root)
        store.put(KEY, b"x" * 5000)
        abandon(store)
        with open_store(root, read_only=True) as store:
            assert store.get(KEY) == b"x" * 5000
    assert descriptors() == before


def test_a_failed_open_leaves_the_store_to_be_opened(root: Path) -> None:
    (root / "leases").rename(root / "leases-away")
    with pytest.raises(KvfsError):
        open_store(root)
    (root / "leases-away").rename(root / "leases")
    with open_store(root) as store:
        store.put(KEY, b"x")


def test_a_file_replaced_while_in_doubt_keeps_no_name(root: Path) -> None:
    """A second put of suspect bytes takes a fresh file; the old one's label must not come back."""
    leave_torn(root)
    with open_store(root) as store:
        store.put(ObjectPath(b"kv", b"other"), b"x" * 5000)
        files = store.context.files
        labels = [files.read_label(digest, generation) for digest, generation in files.walk()]
        assert {label.path for label in labels if label is not None} <= {b"", b"other"}
        assert store.get(KEY) == b"x" * 5000


@pytest.mark.root
@pytest.mark.skipif(bool(missing()), reason=missing() or "usable")
def test_i1_a_failed_syncfs_puts_in_doubt_what_it_did_not_vouch_for(tmp_path: Path) -> None:
    """The error is reported once: the next syncfs would succeed and vouch for dropped pages."""
    server = ForkServer()
    try:
        crew = Crew(tmp_path / "store", server, keeps=True, durability=Durability.CACHE, seed=3)
        fault = Fault("syncfs", "error=EIO", 1)
        assert run_with_fault(crew, fault, tmp_path, steps=60, has_faults=True)
        with open_store(crew.root) as store, store.context.index.read() as txn:
            assert read_ranges(txn)
        crew.verify()
    finally:
        server.close()
