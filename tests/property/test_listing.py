"""Listings against the plainest oracle there is: sort the keys, walk them, roll up.

The index alone, inside a write transaction that is undone: no block files, no sync, so thousands of
keys cost little.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kvfs.index import tree
from kvfs.index.listing import MAX_STEPS, list_page, read_children
from kvfs.index.lmdb_index import LmdbIndex, ReadTransaction, WriteTransaction
from kvfs.index.schema import InodeRow, split_key
from kvfs.model import (
    MAX_KEY_LENGTH,
    ROOT_INODE,
    DirectoryChild,
    Durability,
    Kind,
    ListPage,
    NamespaceId,
)

NAMESPACE = NamespaceId(1)
DEAD_SIZE = 1
"""A row of this size counts as expired here; the walk only asks `is_live`."""

ALPHABET = b"ab!.0\x01\xfe\xff"
"""Bytes below and above "/", the highest two, and a few to meet each other often."""
LONG_LENGTHS = (254, 255, 256, 439, 440, 441, 442, 500, 879, 880, 881, 882, 1000, 1023, 1024)

short_segments = st.lists(st.sampled_from(ALPHABET), max_size=3).map(bytes)
long_segments = st.builds(
    lambda filler, length, tail: (bytes([filler]) * length)[: length - len(tail)] + tail,
    st.sampled_from(b"a\xff"),
    st.sampled_from(LONG_LENGTHS),
    st.lists(st.sampled_from(ALPHABET), max_size=2).map(bytes),
)
segments = st.one_of(short_segments, short_segments, short_segments, long_segments)


def _cut(key: bytes) -> bytes:
    return key[:MAX_KEY_LENGTH] or b"a"


fresh_keys = st.lists(segments, min_size=1, max_size=5).map(lambda parts: _cut(b"/".join(parts)))


@st.composite
def key_sets(draw: st.DrawFn) -> list[bytes]:
    """Keys that crowd together: `f` beside `f/` and `f/x`, a name beside its own beginning."""
    keys = draw(st.lists(fresh_keys, min_size=1, max_size=12))
    for _ in range(draw(st.integers(0, 6))):
        near = draw(st.sampled_from(keys))
        tail = draw(st.sampled_from([b"/", b"/a", b"//", b"a", b"\xff", b"!", b"0", b"/\xff/"]))
        cut = draw(st.integers(1, len(near)))
        keys.append(_cut(draw(st.sampled_from([near + tail, near[:cut], near[:cut] + tail]))))
    return list(dict.fromkeys(keys))


@st.composite
def slices_of(draw: st.DrawFn, keys: list[bytes]) -> bytes:
    key = draw(st.sampled_from(keys))
    start = draw(st.sampled_from([0, 0, 0, len(key) // 2]))
    return key[start : draw(st.integers(0, len(key)))]


@st.composite
def delimiters(draw: st.DrawFn, keys: list[bytes]) -> bytes:
    fixed = [b"/", b"/", b"", b"//", b"a", b"/a", b"a/", b"\xff", b"\xff\xff"]
    return draw(st.one_of(st.sampled_from(fixed), slices_of(keys)))


@st.composite
def starting_points(draw: st.DrawFn, keys: list[bytes]) -> bytes:
    tails = [b"", b"", b"\0", b"/", b"\xff", b"a"]
    return draw(slices_of(keys)) + draw(st.sampled_from(tails))


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LmdbIndex]:
    opened = LmdbIndex(tmp_path_factory.mktemp("index"), durability=Durability.CACHE)
    opened.write(_make_root)
    yield opened
    opened.close()


def _make_root(txn: WriteTransaction) -> None:
    txn.create_inode(ROOT_INODE, InodeRow(Kind.DIRECTORY, NamespaceId(0), parent=ROOT_INODE))


class _Undone(Exception):
    """Ends a transaction without a commit."""


def undone(index: LmdbIndex, body: Callable[[WriteTransaction], None]) -> None:
    """Run `body` in a write transaction and undo it."""

    def work(txn: WriteTransaction) -> None:
        body(txn)
        raise _Undone

    with suppress(_Undone):
        index.write(work)


def make_bucket(txn: WriteTransaction) -> int:
    row = InodeRow(Kind.DIRECTORY, NAMESPACE)
    return tree.make_directory(txn, ROOT_INODE, b"bucket/", row, 1)


def bucket_of(txn: WriteTransaction, keys: Iterable[bytes]) -> int:
    bucket = make_bucket(txn)
    for key in keys:
        add_key(txn, bucket, key)
    return bucket


def add_key(txn: WriteTransaction, bucket: int, key: bytes, *, is_live: bool = True) -> None:
    names = split_key(key)
    parent = tree.make_parents(txn, bucket, names, NAMESPACE, 1)
    inode = txn.allocate_inode()
    row = InodeRow(Kind.FILE, NAMESPACE, parent=parent, name=names[-1])
    row.size = 0 if is_live else DEAD_SIZE
    txn.create_inode(inode, row)
    tree.attach(txn, parent, names[-1], inode, Kind.FILE, True, 1)


def remove_key(txn: WriteTransaction, bucket: int, key: bytes) -> None:
    names = split_key(key)
    parent = tree.lookup_parent(txn, bucket, names)
    assert parent is not None
    found = tree.lookup(txn, parent, names[-1])
    assert found is not None
    row = txn.inode(found[0])
    assert row is not None
    tree.detach(txn, parent, names[-1], True, 2)
    txn.delete_inode(found[0], row)


def _is_live(inode: int, row: InodeRow) -> bool:
    return row.size != DEAD_SIZE


def oracle(
    keys: Iterable[bytes], prefix: bytes, delimiter: bytes, after: bytes
) -> list[tuple[bytes, bool]]:
    """Return (key or common prefix, is a common prefix) of a whole listing, in order."""
    listed: list[tuple[bytes, bool]] = []
    for key in sorted(keys):
        if not key.startswith(prefix):
            continue
        at = key.find(delimiter, len(prefix)) if delimiter else -1
        row = (key, False) if at < 0 else (key[: at + len(delimiter)], True)
        if row[0] > after and (not listed or listed[-1] != row):
            listed.append(row)
    return listed


def merged(page: ListPage) -> list[tuple[bytes, bool]]:
    """Return a page's rows in the one order that objects and prefixes share."""
    keys = [item.key for item in page.objects]
    assert keys == sorted(keys), "objects come in byte order"
    assert list(page.common_prefixes) == sorted(page.common_prefixes), "and so do prefixes"
    return sorted([(key, False) for key in keys] + [(key, True) for key in page.common_prefixes])


def list_to_the_end(
    txn: ReadTransaction, bucket: int, prefix: bytes, delimiter: bytes, after: bytes, limit: int
) -> list[tuple[bytes, bool]]:
    """Return all pages' rows; every page but the last must be full."""
    rows: list[tuple[bytes, bool]] = []
    for _ in range(10_000):
        page = list_page(
            txn, bucket, prefix=prefix, delimiter=delimiter, after=after, limit=limit,
            is_live=_is_live,
        )  # fmt: skip
        rows += merged(page)
        if not page.is_truncated:
            assert page.next_after == b""
            return rows
        assert len(page.objects) + len(page.common_prefixes) == limit
        assert page.next_after > after, "paging makes progress"
        after = page.next_after
    raise AssertionError("the listing does not end")


@given(data=st.data())
@settings(max_examples=settings().max_examples * 4)
def test_pages_of_any_size_together_are_the_sorted_keys(
    index: LmdbIndex, data: st.DataObject
) -> None:
    keys = data.draw(key_sets(), label="keys")
    gone = set(data.draw(st.lists(st.sampled_from(keys), max_size=4), label="deleted"))
    left = [key for key in keys if key not in gone]

    def body(txn: WriteTransaction) -> None:
        bucket = bucket_of(txn, keys)
        for key in gone:
            remove_key(txn, bucket, key)
        for _ in range(4):
            prefix = data.draw(st.one_of(st.just(b""), slices_of(keys)), label="prefix")
            delimiter = data.draw(delimiters(keys), label="delimiter")
            after = data.draw(st.one_of(st.just(b""), starting_points(keys)), label="after")
            limit = data.draw(st.sampled_from([1, 2, 3, 1000]), label="limit")
            found = list_to_the_end(txn, bucket, prefix, delimiter, after, limit)
            assert found == oracle(left, prefix, delimiter, after)

    undone(index, body)


@given(data=st.data())
def test_expired_keys_are_in_no_page(index: LmdbIndex, data: st.DataObject) -> None:
    keys = data.draw(key_sets(), label="keys")
    dead = set(data.draw(st.lists(st.sampled_from(keys)), label="expired"))
    # Not with "/": a directory stays a common prefix until its expired rows are removed.
    delimiter = data.draw(st.sampled_from([b"", b"a", b"//", b"!"]), label="delimiter")
    limit = data.draw(st.sampled_from([1, 2, 1000]), label="limit")

    def body(txn: WriteTransaction) -> None:
        bucket = make_bucket(txn)
        for key in keys:
            add_key(txn, bucket, key, is_live=key not in dead)
        found = list_to_the_end(txn, bucket, b"", delimiter, b"", limit)
        assert found == oracle([key for key in keys if key not in dead], b"", delimiter, b"")

    undone(index, body)


@given(keys=key_sets())
def test_directories_that_keys_implied_vanish_with_the_last_of_them(
    index: LmdbIndex, keys: list[bytes]
) -> None:
    def body(txn: WriteTransaction) -> None:
        bucket = make_bucket(txn)
        before = txn.count("inodes"), txn.count("dirents")
        for key in keys:
            add_key(txn, bucket, key)
        assert live_children(txn, bucket) > 0
        for key in reversed(keys):
            remove_key(txn, bucket, key)
        assert (txn.count("inodes"), txn.count("dirents")) == before
        assert live_children(txn, bucket) == 0
        assert list_to_the_end(txn, bucket, b"", b"/", b"", 10) == []

    undone(index, body)


def live_children(txn: ReadTransaction, directory: int) -> int:
    return tree.directory_row(txn, directory).size


def shown(keys: Iterable[bytes]) -> list[bytes]:
    """Return the names that the mount shows in the bucket: a directory hides a file beside it."""
    directories = {key.split(b"/")[0] for key in keys if b"/" in key}
    files = {key for key in keys if b"/" not in key} - directories
    ordered = [(name + b"/", name) for name in directories] + [(name, name) for name in files]
    hidden = (b"", b".", b"..")
    return [name for _, name in sorted(ordered) if len(name) <= 255 and name not in hidden]


@given(keys=key_sets(), limit=st.sampled_from([1, 2, 3, 1000]))
@example(keys=[b"f", b"f/x", b".", b"..", b"../x", b"/x", b"d/"], limit=1)
def test_a_directory_is_read_page_by_page_without_loss_or_repetition(
    index: LmdbIndex, keys: list[bytes], limit: int
) -> None:
    def body(txn: WriteTransaction) -> None:
        bucket = bucket_of(txn, keys)
        rows: list[DirectoryChild] = []
        after = b""
        while page := read_children(txn, bucket, after=after, limit=limit, is_live=_is_live):
            rows += page
            after = page[-1].cursor
            assert len(rows) <= len(keys)
        assert [row.name for row in rows] == shown(keys)
        directories = {key.split(b"/")[0] for key in keys if b"/" in key}
        assert {row.name for row in rows if row.kind is Kind.DIRECTORY} <= directories

    undone(index, body)


@pytest.mark.parametrize("length", LONG_LENGTHS)
@pytest.mark.parametrize("tail", [b"", b"/", b"/x"])
def test_a_long_name_is_found_listed_and_removed(
    index: LmdbIndex, length: int, tail: bytes
) -> None:
    key = _cut(b"n" * length + tail)
    keys = sorted({key, key[:-1], _cut(key + b"!"), _cut(key + b"\xff")})

    def body(txn: WriteTransaction) -> None:
        bucket = bucket_of(txn, keys)
        found = list_to_the_end(txn, bucket, b"", b"", b"", 1)
        assert [row for row, _ in found] == keys
        assert list_to_the_end(txn, bucket, key, b"", b"", 1)[0] == (key, False)
        remove_key(txn, bucket, key)
        found = list_to_the_end(txn, bucket, b"", b"", b"", 1000)
        assert [row for row, _ in found] == [each for each in keys if each != key]

    undone(index, body)


def test_i8_a_page_passes_over_a_bounded_number_of_names_and_the_next_goes_on(
    index: LmdbIndex,
) -> None:
    def body(txn: WriteTransaction) -> None:
        bucket = make_bucket(txn)
        for number in range(2 * MAX_STEPS):
            add_key(txn, bucket, b"%08d" % number, is_live=False)
        add_key(txn, bucket, b"z")
        assert list_with_short_pages(txn, bucket) == [0, 0, 1]

    undone(index, body)


def test_i8_a_listing_gets_past_any_number_of_symlinks(index: LmdbIndex) -> None:
    def body(txn: WriteTransaction) -> None:
        bucket = make_bucket(txn)
        for number in range(2 * MAX_STEPS):
            inode, name = txn.allocate_inode(), b"%08d" % number
            row = InodeRow(Kind.SYMLINK, NAMESPACE, parent=bucket, name=name, target=b"x")
            txn.create_inode(inode, row)
            tree.attach(txn, bucket, name, inode, Kind.SYMLINK, False, 1)
        add_key(txn, bucket, b"z")
        assert list_with_short_pages(txn, bucket) == [0, 0, 1]

    undone(index, body)


def list_with_short_pages(txn: ReadTransaction, bucket: int) -> list[int]:
    """Return how many keys each page brought; a page may be short and still have a next one."""
    counts: list[int] = []
    after = b""
    for _ in range(10):
        page = list_page(
            txn, bucket, prefix=b"", delimiter=b"", after=after, limit=5, is_live=_is_live
        )
        counts.append(len(page.objects))
        if not page.is_truncated:
            return counts
        assert page.next_after > after, "a short page says where to go on"
        after = page.next_after
    raise AssertionError("the listing does not end")
