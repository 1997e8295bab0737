"""What every Store promises its callers, whatever its durability, with and without a background.

One store a variant for the whole module and a bucket of its own for each test: making a store costs
more than most tests.
"""

from __future__ import annotations

import array
import os
from collections.abc import Iterator
from dataclasses import replace

import pytest

from kvfs.clock import ManualClock
from kvfs.errors import (
    AlreadyExists,
    Closed,
    CrossNamespace,
    DirectoryNotEmpty,
    InvalidArgument,
    InvalidName,
    IsADirectory,
    NamespaceNotEmpty,
    NamespaceNotFound,
    NotADirectory,
    NotFound,
    PreconditionFailed,
    TooLarge,
)
from kvfs.model import (
    MAX_DEPTH,
    MAX_KEY_LENGTH,
    ROOT_INODE,
    AttributeChange,
    ChildName,
    Durability,
    Entry,
    Kind,
    ObjectPath,
    Pin,
    PutOptions,
    WriteCondition,
)
from kvfs.open_store import init_store, open_store
from kvfs.store.renames import RenameMode
from kvfs.store.store import Store

CAPACITY = 64 << 20
GRACE_S = 31
VARIANTS = [
    pytest.param((durability, background), id=f"{durability.value}-{name}")
    for durability in Durability
    for background, name in ((False, "alone"), (True, "background"))
]


@pytest.fixture(scope="module")
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture(scope="module", params=VARIANTS)
def store(
    request: pytest.FixtureRequest, clock: ManualClock, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Store]:
    durability, background = request.param
    root = tmp_path_factory.mktemp("contract") / "store"
    init_store(root, capacity_bytes=CAPACITY, durability=durability, clock=clock)
    with open_store(root, clock=clock, background=background) as opened:
        assert opened.durability is durability
        yield opened


_numbers = iter(range(1, 1_000_000))


@pytest.fixture
def bucket(store: Store) -> bytes:
    return store.create_namespace(b"bucket-%d" % next(_numbers)).name


@pytest.fixture
def inode(store: Store, bucket: bytes) -> int:
    """The bucket's inode, as the mount knows it."""
    return store.stat(ChildName(ROOT_INODE, bucket)).inode


def path(bucket: bytes, key: bytes = b"key") -> ObjectPath:
    return ObjectPath(bucket, key)


# -- bytes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, 1, 4095, 4096, 4097, 5_000_000])
def test_what_was_put_is_got(store: Store, bucket: bytes, length: int) -> None:
    data = os.urandom(length)
    entry = store.put(path(bucket), data)
    assert store.get(path(bucket)) == data
    assert store.stat(path(bucket)) == entry
    assert (entry.size, entry.kind, entry.nlink) == (length, Kind.FILE, 1)
    assert len(entry.digest) == (32 if length else 0)


def test_a_buffer_of_wide_items_is_stored_by_its_bytes(store: Store, bucket: bytes) -> None:
    numbers = array.array("d", range(5000))
    store.put(path(bucket), memoryview(numbers))
    assert store.get(path(bucket)) == numbers.tobytes()


def test_a_range_is_read_and_ends_with_the_object(store: Store, bucket: bytes) -> None:
    store.put(path(bucket), b"0123456789")
    with store.open_read(path(bucket)) as view:
        assert (view.pread(2, 3), view.pread(8, 100), view.pread(10, 1)) == (b"234", b"89", b"")
        assert os.pread(view.fd, 4, 0) == b"0123"
    with pytest.raises(Closed):
        view.pread(0, 1)


def test_i2_nothing_is_visible_before_it_is_published(store: Store, bucket: bytes) -> None:
    staging = store.stage()
    staging.write(b"half")
    assert store.find(path(bucket)) is None
    assert store.list_objects(bucket).objects == ()
    staging.write(b" and half")
    store.publish(staging, path(bucket))
    assert store.get(path(bucket)) == b"half and half"


def test_a_staging_file_that_is_closed_leaves_nothing(store: Store, bucket: bytes) -> None:
    before = store.usage()
    with store.stage(size_bytes=3_000_000) as staging:
        staging.write(b"x" * 100)
        assert store.usage().reserved_bytes >= 3_000_000
    after = store.usage()
    assert (after.object_count, after.resident_bytes) == (
        before.object_count,
        before.resident_bytes,
    )
    assert store.list_objects(bucket).objects == ()
    with pytest.raises(Closed):
        staging.write(b"more")


def test_a_refused_publish_consumes_its_staging_file(store: Store, bucket: bytes) -> None:
    store.put(path(bucket), b"first")
    staging = store.stage()
    staging.write(b"second")
    only_new = PutOptions(condition=WriteCondition(must_be_absent=True))
    with pytest.raises(AlreadyExists):
        store.publish(staging, path(bucket), only_new)
    with pytest.raises(Closed):
        store.publish(staging, path(bucket, b"other"))
    assert store.get(path(bucket)) == b"first"


def test_i3_an_open_view_keeps_its_bytes_after_replace_and_delete(
    store: Store, bucket: bytes
) -> None:
    store.put(path(bucket), b"old" * 5000)
    with store.open_read(path(bucket)) as first:
        store.put(path(bucket), b"new" * 5000)
        with store.open_read(path(bucket)) as second:
            store.delete(path(bucket))
            store.empty_trash()
            assert first.read_all() == b"old" * 5000
            assert second.read_all() == b"new" * 5000


def test_equal_bytes_in_one_bucket_are_stored_once(store: Store, bucket: bytes) -> None:
    data = os.urandom(100_000)
    store.empty_trash()
    before = store.usage()
    entries = [store.put(path(bucket, b"%d" % number), data) for number in range(3)]
    after = store.usage()
    assert len({entry.digest for entry in entries}) == 1
    assert after.block_count == before.block_count + 1
    assert after.resident_bytes == before.resident_bytes + 102_400
    assert after.logical_bytes == before.logical_bytes + 300_000
    for number in range(3):
        assert store.get(path(bucket, b"%d" % number)) == data
        store.delete(path(bucket, b"%d" % number))
    store.empty_trash()
    assert store.usage().resident_bytes == before.resident_bytes


def test_i6_equal_bytes_in_two_namespaces_have_different_digests(
    store: Store, bucket: bytes
) -> None:
    other = store.create_namespace(b"beside-%d" % next(_numbers)).name
    data = os.urandom(5000)
    entries = [store.put(path(name), data) for name in (bucket, other)]
    copied = store.copy(path(bucket), path(other, b"copied"))
    assert entries[0].digest != entries[1].digest
    assert entries[0].etag != entries[1].etag, "nor may an ETag tell that the bytes are equal"
    assert copied.digest == entries[1].digest
    store.delete(path(bucket))
    assert store.get(path(other, b"copied")) == data


def test_a_copy_within_a_bucket_adds_no_block(store: Store, bucket: bytes) -> None:
    options = PutOptions(mode=0o600, attributes={"user.s3.meta.a": b"b"}, ttl_s=500)
    source = store.put(path(bucket), b"payload", options)
    blocks = store.usage().block_count
    copied = store.copy(path(bucket), path(bucket, b"deep/er"))
    assert store.usage().block_count == blocks
    assert copied.inode != source.inode
    assert (copied.mode, copied.attributes, copied.ttl_s) == (0o600, options.attributes, 500)
    store.copy(path(bucket), path(bucket))
    assert store.get(path(bucket)) == store.get(path(bucket, b"deep/er")) == b"payload"


# -- conditions ----------------------------------------------------------------------------------


def test_a_conditional_put_sees_the_present_name(store: Store, bucket: bytes) -> None:
    def put_if(data: bytes, condition: WriteCondition) -> str:
        return store.put(path(bucket), data, PutOptions(condition=condition)).etag

    with pytest.raises(NotFound):
        put_if(b"0", WriteCondition(etag="*"))
    first = put_if(b"1", WriteCondition(must_be_absent=True))
    with pytest.raises(AlreadyExists):
        put_if(b"2", WriteCondition(must_be_absent=True))
    second = put_if(b"3", WriteCondition(etag=first))
    with pytest.raises(PreconditionFailed):
        put_if(b"4", WriteCondition(etag=first))
    put_if(b"5", WriteCondition(etag="*"))
    assert store.get(path(bucket)) == b"5"
    assert second != first


def test_a_conditional_put_may_demand_another_etag(store: Store, bucket: bytes) -> None:
    unlike = PutOptions(condition=WriteCondition(other_etag=store.put(path(bucket), b"1").etag))
    with pytest.raises(PreconditionFailed):
        store.put(path(bucket), b"2", unlike)
    store.put(path(bucket), b"3")
    store.put(path(bucket), b"4", unlike)
    store.put(path(bucket, b"absent"), b"5", unlike)
    assert store.get(path(bucket)) == b"4"


@pytest.mark.parametrize(
    "stale",
    [WriteCondition(etag="another"), WriteCondition(size=4), WriteCondition(mtime_s=1_000)],
)
def test_a_conditional_delete_spares_what_is_not_as_demanded(
    store: Store, bucket: bytes, stale: WriteCondition
) -> None:
    entry = store.put(path(bucket), b"123", PutOptions(mtime_ns=999_999_999_999))
    with pytest.raises(PreconditionFailed):
        store.delete(path(bucket), stale)
    assert store.get(path(bucket)) == b"123"
    holds = WriteCondition(etag=entry.etag, size=3, mtime_s=999)
    assert store.delete(path(bucket), holds) == entry
    for condition in (stale, holds, None):
        with pytest.raises(NotFound):
            store.delete(path(bucket), condition)


def test_an_etag_is_kept_as_given_and_derived_otherwise(store: Store, bucket: bytes) -> None:
    md5 = "0123456789abcdef" * 2
    assert store.put(path(bucket), b"a", PutOptions(etag=md5)).etag == md5
    assert store.put(path(bucket), b"a", PutOptions(etag="opaque-7")).etag == "opaque-7"
    derived = store.put(path(bucket), b"a")
    assert derived.etag == derived.digest[:16].hex() + "-1"
    assert store.put(path(bucket), b"").etag == "d41d8cd98f00b204e9800998ecf8427e"
    for bad in ("é", "x" * 256):
        with pytest.raises(InvalidArgument):
            store.put(path(bucket), b"a", PutOptions(etag=bad))


# -- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key",
    [b"a", b"a/b", b"a//b", b"/", b"//", b"d/", b"../x", b"a/./b", b"\xff\xfe", b"n" * 440,
     b"n" * 441, b"n" * 1024, b"n" * 600 + b"/" + b"m" * 423, b"/" * 255, b"sp ace", b"a\nb"],
)  # fmt: skip
def test_any_key_that_s3_allows_is_a_literal_name(store: Store, bucket: bytes, key: bytes) -> None:
    store.put(path(bucket, key), key)
    assert store.get(path(bucket, key)) == key
    assert [item.key for item in store.list_objects(bucket).objects] == [key]
    assert store.find_many([path(bucket, key), path(bucket, b"not there")])[1] is None
    store.delete(path(bucket, key))
    assert store.find(path(bucket, key)) is None
    store.delete_namespace(bucket)


@pytest.mark.parametrize(
    ("key", "word"),
    [(b"", "empty"), (b"a\0b", "NUL"), (b"n" * (MAX_KEY_LENGTH + 1), "at most 1024"),
     (b"a/" * (MAX_DEPTH + 1), "components")],
)  # fmt: skip
def test_a_key_that_cannot_be_held_is_refused_in_a_sentence(
    store: Store, bucket: bytes, key: bytes, word: str
) -> None:
    with pytest.raises(InvalidName, match=word):
        store.put(path(bucket, key), b"x")
    assert store.list_objects(bucket).objects == ()


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"a\0b", b"n" * 256, b"n" * 2000])
def test_a_name_that_no_directory_can_hold_is_refused(
    store: Store, inode: int, name: bytes
) -> None:
    place = ChildName(inode, name)
    store.put(ChildName(inode, b"file"), b"x")
    file = store.stat(ChildName(inode, b"file")).inode
    for attempt in (
        lambda: store.put(place, b"x"),
        lambda: store.mkdir(place),
        lambda: store.symlink(place, b"target"),
        lambda: store.link(file, place),
        lambda: store.rename(ChildName(inode, b"file"), place),
        lambda: store.create_namespace(name),
    ):
        with pytest.raises(InvalidName):
            attempt()
    assert [child.name for child in store.read_directory(inode)] == [b"file"]


def test_a_bucket_that_is_absent_is_named_in_the_error(store: Store) -> None:
    for name in (b"absent", b"", b"n" * 600):
        assert store.find_namespace(name) is None
        assert store.find(path(name)) is None
        for attempt in (
            lambda name=name: store.put(path(name), b"x"),
            lambda name=name: store.stat(path(name)),
            lambda name=name: store.list_objects(name),
            lambda name=name: store.delete_namespace(name),
        ):
            with pytest.raises(NamespaceNotFound):
                attempt()


def test_both_doors_see_one_tree(store: Store, bucket: bytes, inode: int) -> None:
    store.put(path(bucket, b"d/file"), b"from s3")
    directory = store.stat(ChildName(inode, b"d"))
    assert directory.is_directory
    assert store.get(ChildName(directory.inode, b"file")) == b"from s3"
    store.put(ChildName(directory.inode, b"other"), b"from the mount")
    assert store.get(path(bucket, b"d/other")) == b"from the mount"
    assert store.find(path(bucket, b"d")) is None, "a directory is no S3 key"
    with pytest.raises(IsADirectory):
        store.open_read(ChildName(inode, b"d"))


def test_a_directory_hides_a_file_of_its_name_from_the_mount_only(
    store: Store, bucket: bytes, inode: int
) -> None:
    store.put(path(bucket, b"f"), b"file")
    store.put(path(bucket, b"f/x"), b"below")
    assert store.get(path(bucket, b"f")) == b"file"
    assert [child.kind for child in store.read_directory(inode)] == [Kind.DIRECTORY]
    with pytest.raises(IsADirectory):
        store.put(ChildName(inode, b"f"), b"no")


def test_implied_directories_go_with_their_last_object_and_made_ones_stay(
    store: Store, bucket: bytes, inode: int
) -> None:
    store.put(path(bucket, b"implied/deep/x"), b"1")
    store.mkdir(ChildName(inode, b"made"))
    store.put(path(bucket, b"made/x"), b"1")
    store.delete(path(bucket, b"implied/deep/x"))
    store.delete(path(bucket, b"made/x"))
    assert [child.name for child in store.read_directory(inode)] == [b"made"]
    assert store.list_objects(bucket, delimiter=b"/").common_prefixes == ()
    with pytest.raises(AlreadyExists):
        store.mkdir(ChildName(inode, b"made"))
    store.rmdir(ChildName(inode, b"made"))


def test_a_first_directory_is_a_bucket(store: Store) -> None:
    name = b"made-%d" % next(_numbers)
    store.mkdir(ChildName(ROOT_INODE, name))
    assert name in [namespace.name for namespace in store.list_namespaces()]
    with pytest.raises(AlreadyExists):
        store.create_namespace(name)
    store.put(path(name), b"x")
    with pytest.raises(DirectoryNotEmpty):
        store.rmdir(ChildName(ROOT_INODE, name))
    with pytest.raises(NamespaceNotEmpty):
        store.delete_namespace(name)
    store.delete(path(name))
    store.rmdir(ChildName(ROOT_INODE, name))
    assert store.find_namespace(name) is None


def test_many_deletes_answer_each_for_itself(store: Store, bucket: bytes) -> None:
    paths = [ObjectPath(bucket, b"d/%04d" % number) for number in range(300)]
    for path in paths:
        store.put(path, path.key)
    kept, absent = paths[150], ObjectPath(bucket, b"d")
    wanted = [(path, WriteCondition()) for path in paths]
    wanted[150] = kept, WriteCondition(etag="another")
    wanted += [(absent, WriteCondition()), (paths[0], WriteCondition())]
    wanted.append((ObjectPath(b"no-such-bucket", b"k"), WriteCondition()))
    done = store.delete_many(wanted)
    assert len(done) == len(wanted)
    assert isinstance(done[150], PreconditionFailed)
    assert [type(answer) for answer in done[-3:]] == [NotFound, NotFound, NamespaceNotFound]
    went = [answer for answer in done if isinstance(answer, Entry)]
    assert len(went) == len(paths) - 1
    assert [store.find(path) is not None for path in paths] == [path is kept for path in paths]
    assert store.get(kept) == kept.key
    assert store.delete_many([]) == []


def test_a_revision_changes_what_it_wants_of_what_is_still_there(
    store: Store, bucket: bytes
) -> None:
    entries = [store.put(ObjectPath(bucket, b"%d" % number), b"x") for number in range(3)]
    store.delete(ObjectPath(bucket, b"1"))

    def decide(entry: Entry) -> AttributeChange | None:
        return AttributeChange(priority=7) if entry.inode != entries[2].inode else None

    assert store.revise([entry.inode for entry in entries], decide) == 1
    priorities = [entry and entry.priority for entry in map(store.stat_inode, (
        entries[0].inode, entries[1].inode, entries[2].inode
    ))]  # fmt: skip
    assert priorities == [7, None, 100]


def test_a_bucket_with_nothing_but_expired_objects_can_be_deleted(
    store: Store, clock: ManualClock
) -> None:
    store.create_namespace(b"fading")
    for number in range(300):
        options = PutOptions(ttl_s=60, is_sliding=False)
        store.put(ObjectPath(b"fading", b"d/%d" % number), b"x", options)
    store.put(ObjectPath(b"fading", b"live"), b"x")
    clock.advance(60)
    with pytest.raises(NamespaceNotEmpty):
        store.delete_namespace(b"fading")
    store.delete(ObjectPath(b"fading", b"live"))
    store.delete_namespace(b"fading")
    assert store.find_namespace(b"fading") is None


def test_a_bucket_with_nothing_but_directories_can_be_deleted(
    store: Store, bucket: bytes, inode: int
) -> None:
    store.put(path(bucket, b"implied/x"), b"1")
    implied = store.stat(ChildName(inode, b"implied")).inode
    store.mkdir(ChildName(implied, b"made"))
    store.delete(path(bucket, b"implied/x"))
    store.delete_namespace(bucket)
    assert store.find_namespace(bucket) is None


def test_a_renamed_bucket_keeps_its_objects_and_digests(store: Store, bucket: bytes) -> None:
    entry = store.put(path(bucket, b"a/b"), b"kept")
    name = b"renamed-%d" % next(_numbers)
    store.rename(ChildName(ROOT_INODE, bucket), ChildName(ROOT_INODE, name))
    assert store.find_namespace(bucket) is None
    assert store.stat(path(name, b"a/b")).digest == entry.digest
    assert store.put(path(name, b"again"), b"kept").digest == entry.digest


def test_a_hard_link_is_another_name_of_one_inode(store: Store, bucket: bytes, inode: int) -> None:
    entry = store.put(path(bucket), b"shared")
    assert store.link(entry.inode, ChildName(inode, b"second")).nlink == 2
    store.unlink(ChildName(inode, b"key"))
    left = store.stat(path(bucket, b"second"))
    assert (left.inode, left.nlink, left.name) == (entry.inode, 1, b"second")
    assert store.get(path(bucket, b"second")) == b"shared"
    with pytest.raises(CrossNamespace):
        store.link(entry.inode, ChildName(ROOT_INODE, b"outside"))
    with pytest.raises(IsADirectory):
        store.link(inode, ChildName(inode, b"loop"))


def test_a_symlink_belongs_to_the_mount_alone(store: Store, bucket: bytes, inode: int) -> None:
    entry = store.symlink(ChildName(inode, b"link"), b"../anywhere")
    assert (entry.kind, entry.target, entry.size) == (Kind.SYMLINK, b"../anywhere", 11)
    assert store.find(path(bucket, b"link")) is None
    assert store.list_objects(bucket).objects == ()
    for bad in (b"", b"a\0b", b"t" * 4096):
        with pytest.raises(InvalidArgument):
            store.symlink(ChildName(inode, b"bad"), bad)


def test_rename_replaces_refuses_or_exchanges(store: Store, bucket: bytes, inode: int) -> None:
    a, b = ChildName(inode, b"a"), ChildName(inode, b"b")
    store.put(a, b"1")
    store.put(b, b"2")
    with pytest.raises(AlreadyExists):
        store.rename(a, b, mode=RenameMode.NO_REPLACE)
    store.rename(a, b, mode=RenameMode.EXCHANGE)
    assert (store.get(a), store.get(b)) == (b"2", b"1")
    store.rename(a, b)
    assert store.find(a) is None
    assert store.get(path(bucket, b"b")) == b"2"
    with pytest.raises(NotFound):
        store.rename(a, b)


def test_rename_minds_what_is_a_directory(store: Store, bucket: bytes, inode: int) -> None:
    store.put(path(bucket, b"d/x"), b"1")
    store.put(path(bucket, b"f"), b"2")
    directory, file = ChildName(inode, b"d"), ChildName(inode, b"f")
    with pytest.raises(NotADirectory):
        store.rename(directory, file)
    with pytest.raises(IsADirectory):
        store.rename(file, directory)
    below = ChildName(store.stat(directory).inode, b"below")
    with pytest.raises(InvalidArgument):
        store.rename(directory, below)
    store.mkdir(ChildName(inode, b"full"))
    store.put(path(bucket, b"full/y"), b"3")
    with pytest.raises(DirectoryNotEmpty):
        store.rename(directory, ChildName(inode, b"full"))
    store.rename(directory, ChildName(inode, b"e"))
    assert store.get(path(bucket, b"e/x")) == b"1"
    store.rename(ChildName(inode, b"e"), file, mode=RenameMode.EXCHANGE)
    assert store.get(path(bucket, b"f/x")) == b"1"
    assert store.get(path(bucket, b"e")) == b"2"


def test_a_directory_may_replace_the_only_child_of_an_implied_one(
    store: Store, bucket: bytes, inode: int
) -> None:
    store.put(path(bucket, b"implied/x"), b"1")
    implied = store.stat(ChildName(inode, b"implied")).inode
    store.mkdir(ChildName(implied, b"empty"))
    store.delete(path(bucket, b"implied/x"))
    store.put(path(bucket, b"moving/y"), b"2")
    store.rename(ChildName(inode, b"moving"), ChildName(implied, b"empty"))
    assert [item.key for item in store.list_objects(bucket).objects] == [b"implied/empty/y"]


def test_an_exchange_never_overwrites_a_file_hidden_behind_a_directory(
    store: Store, bucket: bytes, inode: int
) -> None:
    store.put(path(bucket, b"d"), b"hidden")
    store.put(path(bucket, b"d/x"), b"below")
    store.put(path(bucket, b"f"), b"plain")
    with pytest.raises(AlreadyExists):
        store.rename(ChildName(inode, b"f"), ChildName(inode, b"d"), mode=RenameMode.EXCHANGE)
    keys = [item.key for item in store.list_objects(bucket).objects]
    assert keys == [b"d", b"d/x", b"f"]


def test_i8_directories_nest_only_so_deep(store: Store, inode: int) -> None:
    parent = inode
    for _ in range(MAX_DEPTH - 1):  # the bucket is the first level
        parent = store.mkdir(ChildName(parent, b"d")).inode
    with pytest.raises(InvalidName, match="deep"):
        store.mkdir(ChildName(parent, b"d"))
    store.mkdir(ChildName(inode, b"top"))
    store.mkdir(ChildName(store.stat(ChildName(inode, b"top")).inode, b"below"))
    with pytest.raises(InvalidName, match="deep"):
        store.rename(ChildName(inode, b"top"), ChildName(parent, b"moved"))


# -- attributes ----------------------------------------------------------------------------------


def test_attributes_change_one_by_one(store: Store, bucket: bytes) -> None:
    entry = store.put(path(bucket), b"x", PutOptions(attributes={"user.a": b"1"}))
    change = AttributeChange(
        mode=0o4711, uid=7, gid=8, mtime_ns=5, priority=3, ttl_class=2,
        set_attributes={"user.b": b"\0\xff"}, remove_attributes=("user.a",),
    )  # fmt: skip
    changed = store.set_attributes(entry.inode, change)
    assert store.stat(path(bucket)) == changed
    assert (changed.mode, changed.uid, changed.gid, changed.mtime_ns) == (0o4711, 7, 8, 5)
    assert (changed.priority, changed.ttl_class) == (3, 2)
    assert changed.attributes == {"user.b": b"\0\xff"}
    assert store.get(path(bucket)) == b"x"


def test_attribute_flags_and_limits_are_kept(store: Store, bucket: bytes) -> None:
    inode = store.put(path(bucket), b"x").inode
    new = AttributeChange(set_attributes={"user.a": b"1"}, attribute_must_exist=True)
    with pytest.raises(NotFound):
        store.set_attributes(inode, new)
    create = replace(new, attribute_must_exist=False, attribute_must_be_absent=True)
    store.set_attributes(inode, create)
    with pytest.raises(AlreadyExists):
        store.set_attributes(inode, create)
    with pytest.raises(NotFound):
        store.set_attributes(inode, AttributeChange(remove_attributes=("user.absent",)))
    with pytest.raises(InvalidArgument):
        store.set_attributes(inode, AttributeChange(set_attributes={"user.big": b"x" * 70_000}))
    with pytest.raises(InvalidArgument):
        store.put(path(bucket, b"b"), b"x", PutOptions(attributes={"user.big": b"x" * 70_000}))
    assert store.stat(path(bucket)).attributes == {"user.a": b"1"}


def test_times_and_lifetimes_beyond_the_row_are_brought_within(store: Store, bucket: bytes) -> None:
    century_s = 100 * 366 * 86_400
    far = store.put(path(bucket), b"x", PutOptions(ttl_s=century_s, priority=-5, mtime_ns=-1))
    assert far.expires_at_s > 4_000_000_000
    assert (far.priority, far.mtime_ns) == (0, 1), "0 would have meant now"
    change = AttributeChange(ttl_s=1 << 40, priority=1000, mtime_ns=-(1 << 60))
    changed = store.set_attributes(far.inode, change)
    assert changed.expires_at_s == (1 << 32) - 1
    assert (changed.priority, changed.mtime_ns) == (254, 0)
    with pytest.raises(InvalidArgument):
        store.set_attributes(far.inode, AttributeChange(uid=1 << 32))
    with pytest.raises(InvalidArgument):
        store.put(path(bucket), b"x", PutOptions(ttl_class=1 << 16))


def test_only_a_file_has_a_lifetime_and_a_pin(store: Store, inode: int) -> None:
    directory = store.mkdir(ChildName(inode, b"d")).inode
    for change in (AttributeChange(ttl_s=5), AttributeChange(pin=Pin.HARD)):
        with pytest.raises(InvalidArgument):
            store.set_attributes(directory, change)
    store.set_attributes(directory, AttributeChange(accessed_s=5, mtime_ns=6))


# -- lifetimes -----------------------------------------------------------------------------------


def test_a_fixed_lifetime_ends_on_time_and_is_removed_after_the_grace(
    store: Store, bucket: bytes, clock: ManualClock
) -> None:
    store.put(path(bucket, b"d/x"), b"x", PutOptions(ttl_s=60, is_sliding=False))
    clock.advance(59)
    assert store.get(path(bucket, b"d/x")) == b"x"
    clock.advance(1)
    assert store.find(path(bucket, b"d/x")) is None
    assert store.list_objects(bucket).objects == ()
    with pytest.raises(NotFound):
        store.open_read(path(bucket, b"d/x"))
    clock.advance(GRACE_S)
    store.expire()
    store.delete_namespace(bucket)


def test_a_sliding_lifetime_starts_anew_with_each_access(
    store: Store, bucket: bytes, clock: ManualClock
) -> None:
    options = PutOptions(ttl_s=60)
    store.put(path(bucket, b"read"), b"x", options)
    store.put(path(bucket, b"read empty"), b"", options)
    store.put(path(bucket, b"stat"), b"x", options)
    touched = store.put(path(bucket, b"touched"), b"x", options).inode
    store.put(path(bucket, b"left alone"), b"x", options)
    for _ in range(3):
        clock.advance(50)
        store.get(path(bucket, b"read"))
        store.get(path(bucket, b"read empty"))
        store.stat(path(bucket, b"stat"), touch=True)
        store.touch(touched)
    store.flush()
    names = [item.key for item in store.list_objects(bucket).objects]
    assert names == [b"read", b"read empty", b"stat", b"touched"]
    clock.advance(60)
    assert store.list_objects(bucket).objects == ()


def test_a_touch_does_not_bring_back_what_has_expired(
    store: Store, bucket: bytes, clock: ManualClock
) -> None:
    inode = store.put(path(bucket), b"x", PutOptions(ttl_s=60)).inode
    clock.advance(61)
    assert store.find(path(bucket)) is None
    store.touch(inode)
    assert store.find(path(bucket), touch=True) is None
    store.flush()
    assert store.find(path(bucket)) is None


def test_an_expired_name_is_free_for_anything_new(
    store: Store, bucket: bytes, inode: int, clock: ManualClock
) -> None:
    names = (b"mkdir", b"symlink", b"link", b"put")
    for name in names:
        store.put(path(bucket, name), b"old", PutOptions(ttl_s=10))
    source = store.put(path(bucket, b"source"), b"new")
    clock.advance(11)
    assert [child.name for child in store.read_directory(inode)] == [b"source"]
    store.mkdir(ChildName(inode, b"mkdir"))
    store.symlink(ChildName(inode, b"symlink"), b"x")
    store.link(source.inode, ChildName(inode, b"link"))
    only_new = PutOptions(condition=WriteCondition(must_be_absent=True))
    store.put(path(bucket, b"put"), b"new", only_new)
    assert {child.name for child in store.read_directory(inode)} == {*names, b"source"}


# -- space ---------------------------------------------------------------------------------------


def test_i5_pinned_is_not_evicted(store: Store, bucket: bytes) -> None:
    pinned = PutOptions(pin=Pin.HARD)
    store.put(path(bucket, b"pinned"), os.urandom(5000), pinned)
    store.put(path(bucket, b"soft"), os.urandom(5000), PutOptions(pin=Pin.SOFT))
    store.put(path(bucket, b"plain"), os.urandom(5000))
    while store.evict(CAPACITY):
        pass
    assert [item.key for item in store.list_objects(bucket).objects] == [b"pinned"]
    store.set_attributes(store.stat(path(bucket, b"pinned")).inode, AttributeChange(pin=Pin.NONE))
    assert store.evict(1) > 0
    assert store.list_objects(bucket).objects == ()


def test_i5_a_pin_outlasts_a_lifetime(store: Store, bucket: bytes, clock: ManualClock) -> None:
    inode = store.put(
        path(bucket), b"kept", PutOptions(ttl_s=10, is_sliding=False, pin=Pin.HARD)
    ).inode
    clock.advance(1000)
    store.expire()
    assert store.get(path(bucket)) == b"kept"
    store.set_attributes(inode, AttributeChange(pin=Pin.NONE))
    assert store.find(path(bucket)) is None
    store.expire()
    store.delete_namespace(bucket)


def test_eviction_takes_low_priority_then_least_recently_used(
    store: Store, bucket: bytes, clock: ManualClock
) -> None:
    for name, priority in ((b"low", 10), (b"a", 100), (b"b", 100), (b"soft", 0)):
        pin = Pin.SOFT if name == b"soft" else Pin.NONE
        options = PutOptions(priority=priority, pin=pin)
        store.put(path(bucket, name), os.urandom(4096), options)
        clock.advance(100)
    store.get(path(bucket, b"a"))
    clock.advance(GRACE_S)
    order: list[bytes] = []
    for _ in range(1000):  # what other tests left may go in between
        left = {item.key for item in store.list_objects(bucket).objects}
        order += {b"low", b"a", b"b", b"soft"} - left - set(order)
        if not left:
            break
        store.evict(1)
    assert order == [b"low", b"b", b"a", b"soft"]


def test_i4_a_full_store_evicts_for_a_writer_and_never_exceeds_its_capacity(
    store: Store, bucket: bytes, clock: ManualClock
) -> None:
    for number in range(24):
        store.put(path(bucket, b"%04d" % number), os.urandom(4 << 20))
        clock.advance(60)
        usage = store.usage()
        assert usage.resident_bytes + usage.reserved_bytes <= CAPACITY
    keys = [item.key for item in store.list_objects(bucket).objects]
    assert keys[-1] == b"0023"
    assert 8 <= len(keys) <= 16
    assert keys == [b"%04d" % number for number in range(24 - len(keys), 24)], "the oldest went"


def test_an_object_that_can_never_fit_is_refused_at_once(store: Store) -> None:
    with pytest.raises(TooLarge):
        store.stage(size_bytes=(5 << 40) + 1)


def test_sweeping_a_store_in_order_finds_nothing(store: Store, bucket: bytes) -> None:
    store.put(path(bucket), b"x" * 10_000)
    with store.stage(size_bytes=10_000):
        report = store.sweep()
    assert (report.orphan_files, report.staging_files) == (0, 0)
    assert store.get(path(bucket)) == b"x" * 10_000
