"""Opening what is not, or not yet, or no longer a store: each refusal is a sentence of advice."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from kvfs.clock import ManualClock, SystemRandomness
from kvfs.errors import (
    Closed,
    Corrupt,
    Denied,
    KvfsError,
    NotAStore,
    NotFound,
    ReadOnly,
    StoreDamaged,
    StoreExists,
    Unavailable,
    UnsupportedFormat,
)
from kvfs.format import FILE_NAME, FORMAT_VERSION
from kvfs.model import (
    ROOT_INODE,
    AttributeChange,
    ChildName,
    Durability,
    ObjectPath,
    PutOptions,
)
from kvfs.open_store import (
    NETWORK_FILE_SYSTEMS,
    file_system_kind,
    init_store,
    kind_of_device,
    open_store,
    refuse_network_file_system,
)
from kvfs.store.store import Store
from tests.property.store_worker import Worker

PATH = ObjectPath(b"bucket", b"key")
NOBODY = 65_534


@pytest.fixture
def root(tmp_path: Path) -> Path:
    made = tmp_path / "store"
    init_store(made, capacity_bytes=16 << 20)
    with open_store(made) as store:
        store.create_namespace(b"bucket")
        store.put(PATH, b"payload")
    return made


@pytest.fixture
def worker() -> Iterator[Worker]:
    process = Worker()
    yield process
    process.stop()


def refusal(attempt: Callable[[], object], kind: type[KvfsError]) -> str:
    """Return the message with which `attempt` is refused; it must be one sentence with advice."""
    with pytest.raises(kind) as caught:
        attempt()
    assert type(caught.value) is kind
    message = caught.value.message
    assert ": " in message, "what is wrong, a colon, what to do"
    assert "\n" not in message
    return message


# -- not a store ---------------------------------------------------------------------------------


def test_an_absent_or_empty_directory_or_a_file_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    for name in ("absent", "empty", "file", "file/below"):
        message = refusal(partial(open_store, tmp_path / name), NotAStore)
        assert "kvfs init" in message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file"], "untouched"


@pytest.mark.parametrize(
    ("text", "kind", "word"),
    [
        ("", NotAStore, "format"),
        ("format = 0\n", NotAStore, "format"),
        ('format = "1"\n', NotAStore, "format"),
        ("format = 1\n", NotAStore, "capacity"),
        ("format = 1\ncapacity = -5\n", NotAStore, "capacity"),
        ('format = 1\ncapacity = 5\ndurability = "maybe"\n', NotAStore, "durability"),
        ("not = [toml", NotAStore, "backup"),
        (f"format = {FORMAT_VERSION + 1}\n", UnsupportedFormat, "upgrade kvfs"),
        ('format = 1\ndigest = "sha0"\ncapacity = 5\n', UnsupportedFormat, "upgrade kvfs"),
    ],
)
def test_a_store_file_that_is_damaged_or_newer_is_refused_untouched(
    root: Path, text: str, kind: type[KvfsError], word: str
) -> None:
    before = sorted(path.name for path in root.rglob("*"))
    (root / FILE_NAME).write_text(text)
    assert word in refusal(lambda: open_store(root), kind)
    assert sorted(path.name for path in root.rglob("*")) == before


def test_a_store_file_that_is_not_text_is_refused(root: Path) -> None:
    (root / FILE_NAME).write_bytes(b"\xff\xfe\0")
    refusal(lambda: open_store(root), NotAStore)


def test_a_store_without_its_blocks_is_damaged(root: Path) -> None:
    shutil.rmtree(root / "blocks")
    refusal(lambda: open_store(root), StoreDamaged)
    (root / "blocks").mkdir()
    refusal(lambda: open_store(root / "nowhere"), NotAStore)


def test_a_store_is_made_only_where_nothing_is(root: Path, tmp_path: Path) -> None:
    refusal(lambda: init_store(root), StoreExists)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").write_text("x")
    refusal(lambda: init_store(tmp_path / "full"), StoreExists)
    (tmp_path / "file").write_text("x")
    refusal(lambda: init_store(tmp_path / "file"), StoreExists)
    refusal(lambda: init_store(tmp_path / "file" / "below"), StoreExists)
    assert (tmp_path / "full" / "precious").read_text() == "x"
    with open_store(root) as store:
        assert store.get(PATH) == b"payload"


def test_a_path_that_no_file_system_holds_is_refused(tmp_path: Path) -> None:
    refusal(lambda: init_store(tmp_path / ("n" * 300)), Unavailable)
    refusal(lambda: open_store(tmp_path / ("n" * 300)), NotAStore)


def test_a_store_opened_twice_in_one_process_is_refused_and_stays_usable(root: Path) -> None:
    with open_store(root) as store:
        refusal(lambda: open_store(root), Unavailable)
        assert store.get(PATH) == b"payload"
    with open_store(root) as store:
        assert store.get(PATH) == b"payload"


# -- permissions ---------------------------------------------------------------------------------


def as_nobody(attempt: Callable[[], object]) -> BaseException | None:
    """Return what `attempt` raises when an unprivileged user makes it (in a forked child)."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        outcome: BaseException | None = None
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            attempt()
        except BaseException as error:
            outcome = error
        finally:
            os.write(writer, pickle.dumps(outcome))
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        raw = pipe.read()
    os.waitpid(child, 0)
    found: BaseException | None = pickle.loads(raw)
    return found


@pytest.fixture
def reachable(root: Path) -> Iterator[Path]:
    """The store under a path that everybody may pass."""
    passed = [path for path in (root.parent, *root.parents) if path.stat().st_uid == os.geteuid()]
    modes = {path: path.stat().st_mode & 0o7777 for path in passed}
    for path, mode in modes.items():
        path.chmod(mode | 0o711)
    yield root
    for path, mode in modes.items():
        path.chmod(mode)


@pytest.mark.parametrize(
    ("opened", "modes"),
    [
        ("nothing", {}),
        ("kvfs.toml", {"": 0o755, "kvfs.toml": 0o644}),
        ("all but the index", {"": 0o777, "kvfs.toml": 0o644, "alive": 0o666, "open.lock": 0o666}),
        (
            "the index's directory",
            {"": 0o777, "kvfs.toml": 0o644, "alive": 0o666, "open.lock": 0o666, "index": 0o777},
        ),
    ],
)
def test_another_user_is_told_whose_store_it_is(
    reachable: Path, opened: str, modes: dict[str, int]
) -> None:
    for name, mode in modes.items():
        (reachable / name).chmod(mode)
    error = as_nobody(lambda: open_store(reachable))
    assert isinstance(error, Denied), (opened, error)
    assert "owner" in error.message


def test_a_store_is_not_made_where_the_user_may_not_write(reachable: Path) -> None:
    for place in (reachable / "inside", reachable.parent / "beside"):
        error = as_nobody(partial(init_store, place))
        assert isinstance(error, Denied), error


# -- file systems --------------------------------------------------------------------------------

MOUNTS = """\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:45 / /mnt/share rw,relatime shared:9 master:2 - nfs4 server:/export rw,vers=4.2
31 22 0:46 / /mnt/with\\040space rw - fuse.sshfs user@host:/ rw
32 22 0:47 / /mnt/no-optional rw - xfs /dev/loop0 rw

garbage
"""


@pytest.mark.parametrize(
    ("device", "kind"),
    [((8, 1), "ext4"), ((0, 45), "nfs4"), ((0, 46), "fuse.sshfs"), ((0, 47), "xfs"), ((9, 9), "")],
)
def test_the_kind_of_a_file_system_is_read_from_mountinfo(
    device: tuple[int, int], kind: str
) -> None:
    assert kind_of_device(MOUNTS, os.makedev(*device)) == kind


def test_the_kind_of_a_real_file_system_is_known() -> None:
    assert file_system_kind(Path("/proc")) == "proc"


@pytest.mark.parametrize("kind", [*sorted(NETWORK_FILE_SYSTEMS), "fuse.sshfs"])
def test_a_network_file_system_is_refused(kind: str) -> None:
    message = refusal(
        lambda: refuse_network_file_system(Path("/mnt/share/store"), kind), UnsupportedFormat
    )
    assert kind in message
    assert "local disk" in message


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "tmpfs", "overlay", ""])
def test_a_local_file_system_is_not_refused(kind: str) -> None:
    refuse_network_file_system(Path("/store"), kind)


# -- read-only -----------------------------------------------------------------------------------


def test_a_reader_sees_everything_and_changes_nothing(root: Path) -> None:
    with open_store(root, read_only=True, background=True) as store:
        assert store.is_read_only
        assert store.get(PATH) == b"payload"
        assert [item.key for item in store.list_objects(b"bucket").objects] == [b"key"]
        bucket = store.stat(ChildName(ROOT_INODE, b"bucket")).inode
        for attempt in changes(store, bucket):
            with pytest.raises(ReadOnly):
                attempt()
        store.flush()
    with open_store(root) as store:
        assert store.get(PATH) == b"payload"


def changes(store: Store, bucket: int) -> list[Callable[[], object]]:
    name, other = ChildName(bucket, b"key"), ChildName(bucket, b"other")
    return [
        lambda: store.put(PATH, b"x"),
        lambda: store.put(PATH, b""),
        lambda: store.delete(PATH),
        lambda: store.copy(PATH, ObjectPath(b"bucket", b"copy")),
        lambda: store.create_namespace(b"new"),
        lambda: store.delete_namespace(b"bucket"),
        lambda: store.mkdir(other),
        lambda: store.symlink(other, b"x"),
        lambda: store.rename(name, other),
        lambda: store.unlink(name),
        lambda: store.set_attributes(bucket, AttributeChange(mode=0o700)),
        lambda: store.evict(1),
        lambda: store.expire(),
    ]


def test_a_reader_may_come_while_a_writer_is_there(root: Path, worker: Worker) -> None:
    worker.call("open", root, ManualClock().now_ns())
    with open_store(root, read_only=True) as store:
        worker.call("put", PATH, b"written meanwhile")
        assert store.get(PATH) == b"written meanwhile"
    worker.call("close")


def tear(root: Path) -> Path:
    """Change a byte of the one block file, as a power loss may; return the file."""
    (block,) = (root / "blocks").glob("??/*")
    block.write_bytes(b"X" + block.read_bytes()[1:])
    return block


@pytest.fixture
def crashed(root: Path) -> Path:
    """A store killed right after a put that no sync vouched for, whose block is torn."""
    process = Worker()
    process.call("open", root, ManualClock().now_ns())
    process.call("delete", PATH)
    process.call("flush")
    process.call("put", PATH, b"payload of the last second")
    process.kill()
    tear(root)
    return root


def test_i1_a_reader_after_an_unclean_stop_serves_no_torn_block(crashed: Path) -> None:
    with open_store(crashed, read_only=True) as store, pytest.raises(Corrupt):
        store.get(PATH)


@pytest.mark.expects_warnings
def test_i1_a_reader_does_not_hide_an_unclean_stop_from_the_writer_after_it(
    crashed: Path, worker: Worker
) -> None:
    with open_store(crashed, read_only=True):
        worker.call("open", crashed, ManualClock().now_ns())
        worker.call("flush")  # which would vouch for what it does not know to be suspect
        with pytest.raises(NotFound):
            worker.call("get", PATH)
        worker.call("close")


@pytest.mark.expects_warnings
def test_i1_a_reader_of_a_damaged_index_gets_a_rebuilt_one(crashed: Path) -> None:
    os.truncate(crashed / "index" / "data.mdb", 8192)
    with open_store(crashed, read_only=True) as store:
        assert [namespace.name for namespace in store.list_namespaces()] == [b"bucket"]
        with pytest.raises(Corrupt):
            store.get(PATH)


# -- closing -------------------------------------------------------------------------------------


def test_a_closed_store_says_so_and_its_views_stay_readable(root: Path) -> None:
    store = open_store(root)
    view, staging = store.open_read(PATH), store.stage(size_bytes=10)
    store.close()
    store.close()
    for attempt in (
        lambda: store.find(PATH),
        lambda: store.get(PATH),
        lambda: store.list_objects(b"bucket"),
        lambda: store.usage(),
        lambda: store.put(PATH, b"x"),
        lambda: store.delete(PATH),
        lambda: store.publish(staging, PATH),
    ):
        with pytest.raises(Closed):
            attempt()
    assert view.read_all() == b"payload"
    view.close()
    view.close()


# -- between two transactions --------------------------------------------------------------------


class Meddler(SystemRandomness):
    """Does something when a writer asks for the name of its block file: between its two looks."""

    def __init__(self) -> None:
        self.meddle: Callable[[], object] | None = None

    def token(self, length: int) -> bytes:
        action, self.meddle = self.meddle, None
        if action is not None:
            action()
        return super().token(length)


def test_i6_a_bucket_replaced_during_a_publish_gets_no_bytes_under_the_old_salt(
    root: Path,
) -> None:
    meddler = Meddler()
    with open_store(root, randomness=meddler) as store:
        store.delete(PATH)

        def replace_the_bucket() -> None:
            store.delete_namespace(b"bucket")
            store.create_namespace(b"bucket")

        staging = store.stage(size_bytes=10)
        staging.write(b"0123456789")
        meddler.meddle = replace_the_bucket
        with pytest.raises(Unavailable, match="retry"):
            store.publish(staging, PATH)
        assert store.list_objects(b"bucket").objects == ()
        store.put(PATH, b"0123456789")
        assert store.usage().block_count == 1
        report = store.sweep()
        assert report.orphan_files == 0


@pytest.mark.parametrize("durability", Durability)
def test_a_store_keeps_what_it_was_made_with(tmp_path: Path, durability: Durability) -> None:
    made = init_store(tmp_path / "store", capacity_bytes=5 << 20, durability=durability)
    with open_store(tmp_path / "store") as store:
        assert (store.durability, store.capacity_bytes) == (durability, made.capacity_bytes)
        assert store.path == tmp_path / "store"
        store.create_namespace(b"b")
        store.put(ObjectPath(b"b", b"k"), b"x" * 5000, PutOptions())
    with open_store(tmp_path / "store") as store:
        assert store.get(ObjectPath(b"b", b"k")) == b"x" * 5000
