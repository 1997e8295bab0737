"""The stored form of every row, and the pieces that long names are cut into."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvfs.errors import InvalidName
from kvfs.index.schema import (
    DIGEST_AT,
    MAX_TIME_S,
    NAME_AT,
    PIECE_LENGTH,
    PLAIN_FILE,
    PLAIN_FLAGS,
    SOFT_PIN_PRIORITY,
    BlockRow,
    InodeRow,
    NamespaceRow,
    attributes_length,
    check_component,
    end_of_life,
    entry_of,
    expiry_key,
    lru_key,
    pack_block,
    pack_inode,
    pack_namespace,
    split_key,
    split_pieces,
    unpack_block,
    unpack_entry,
    unpack_expiry_key,
    unpack_inode,
    unpack_lru_key,
    unpack_namespace,
    unpack_namespace_id,
    unpack_plan_fields,
    unpack_stored,
    unusual_blocks,
)
from kvfs.model import MAX_DEPTH, MAX_KEY_LENGTH, NO_DIGEST, Codec, Digest, Kind, NamespaceId, Pin

LMDB_KEY_LIMIT = 511

u16 = st.integers(0, (1 << 16) - 1)
u32 = st.integers(0, (1 << 32) - 1)
u64 = st.integers(0, (1 << 64) - 1)
digests = st.binary(min_size=32, max_size=32).map(Digest)
etags = st.one_of(
    st.just(""),
    st.text("0123456789abcdef", min_size=32, max_size=32),
    st.text("0123456789ABCDEFabcdef-", max_size=40),
    st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=255),
)
attribute_names = st.one_of(
    st.text(max_size=20).filter(lambda name: name.isprintable()),
    st.binary(max_size=20).map(lambda raw: raw.decode("utf-8", "surrogateescape")),
)
attributes = st.dictionaries(attribute_names, st.binary(max_size=100), max_size=4)

inode_rows = st.builds(
    InodeRow,
    kind=st.sampled_from([Kind.FILE, Kind.DIRECTORY, Kind.SYMLINK]),
    namespace_id=u32.map(NamespaceId),
    mode=st.integers(0, 0o7777),
    uid=u32,
    gid=u32,
    size=u64,
    mtime_ns=u64,
    ctime_ns=u64,
    accessed_s=u32,
    expires_at_s=u32,
    ttl_s=u32,
    ttl_class=u16,
    priority=st.integers(0, 255),
    pin=st.sampled_from(Pin),
    nlink=u32,
    parent=u64,
    name=st.binary(max_size=MAX_KEY_LENGTH),
    digest=st.one_of(st.just(NO_DIGEST), digests),
    etag=etags,
    is_implied=st.booleans(),
    is_sliding=st.booleans(),
    is_mutable=st.booleans(),
    target=st.binary(max_size=4095),
    attributes=attributes,
)


@given(row=inode_rows, inode=u64)
def test_an_inode_row_comes_back_as_it_was(row: InodeRow, inode: int) -> None:
    raw = pack_inode(row)
    assert unpack_inode(raw) == row
    assert unpack_entry(inode, raw) == entry_of(inode, row), "the short cut sees the same"
    assert unpack_namespace_id(raw) == row.namespace_id


@given(row=inode_rows)
def test_what_a_plan_unpacks_is_what_the_row_says(row: InodeRow) -> None:
    raw = pack_inode(row)
    kind, flags, *fields, name_length, etag_length = unpack_plan_fields(raw)
    lifetime = row.expires_at_s | row.ttl_s << 32
    assert fields == [
        row.namespace_id, row.size, row.ctime_ns, row.accessed_s, lifetime, row.priority, row.pin,
        row.parent,
    ]  # fmt: skip
    end = NAME_AT + name_length
    if kind == Kind.FILE and flags & PLAIN_FLAGS == PLAIN_FILE:
        assert (raw[DIGEST_AT:NAME_AT], raw[NAME_AT:end]) == (row.digest, row.name)
        assert (len(raw) == end + etag_length) == (not row.attributes)
        assert not row.is_mutable


def test_an_empty_file_whose_attributes_fill_a_digest_is_no_digest() -> None:
    row = InodeRow(Kind.FILE, NamespaceId(1), name=b"n", attributes={"user.a": b"x" * 20})
    raw = pack_inode(row)
    assert len(raw) == len(pack_inode(InodeRow(Kind.FILE, NamespaceId(1), name=b"n"))) + 32
    assert unpack_entry(7, raw) == entry_of(7, row)


@given(
    row=st.builds(
        BlockRow, u64, u64, u64, u32, u64, u32.map(NamespaceId), st.sampled_from(Codec),
        st.booleans(), st.booleans(),
    )
)  # fmt: skip
def test_a_block_row_comes_back_as_it_was(row: BlockRow) -> None:
    raw = pack_block(row)
    assert unpack_block(raw) == row
    assert unpack_stored(raw) == (0 if row.is_bad else row.stored)


@given(
    st.lists(
        st.builds(
            BlockRow, u64, u64, u64, st.sampled_from([0, 1, 1, 1, 2, 257, 1 << 24]), u64,
            u32.map(NamespaceId), st.sampled_from([Codec.RAW, *Codec]), st.booleans(),
            st.booleans(),
        )
    )
)  # fmt: skip
def test_a_block_unlike_most_is_found_among_any_others(blocks: list[BlockRow]) -> None:
    rows = [(b"%032d" % number, pack_block(block)) for number, block in enumerate(blocks)]
    assert unusual_blocks(rows) == [
        row
        for row, block in zip(rows, blocks, strict=True)
        if block.refs != 1
        or block.codec is not Codec.RAW
        or block.is_bad
        or block.is_incompressible
    ]


@given(
    row=st.builds(
        NamespaceRow, u64, u64, u64, u64, u64, u64, u32, st.binary(max_size=64), attributes
    )
)
def test_a_namespace_row_comes_back_as_it_was(row: NamespaceRow) -> None:
    assert unpack_namespace(pack_namespace(row)) == row


@given(attributes=attributes)
def test_the_length_of_attributes_is_what_they_take(attributes: dict[str, bytes]) -> None:
    bare = InodeRow(Kind.FILE, NamespaceId(1))
    full = InodeRow(Kind.FILE, NamespaceId(1), attributes=attributes)
    assert len(pack_inode(full)) - len(pack_inode(bare)) == attributes_length(attributes)


names = st.builds(lambda seed, length: (seed * length)[:length], st.binary(min_size=1, max_size=3),
                  st.integers(1, 1100)).filter(lambda name: b"\0" not in name)  # fmt: skip


@given(name=names)
def test_the_pieces_of_a_name_fit_the_index_and_make_it_whole(name: bytes) -> None:
    pieces = split_pieces(name)
    assert b"".join(piece.removesuffix(b"\0") for piece in pieces) == name
    assert all(8 + len(piece) <= LMDB_KEY_LIMIT for piece in pieces)
    assert all(len(piece) == PIECE_LENGTH + 1 for piece in pieces[:-1])
    assert 0 < len(pieces[-1]) <= PIECE_LENGTH


@given(first=names, second=names)
def test_pieces_sort_as_their_names_do(first: bytes, second: bytes) -> None:
    assert (split_pieces(first) < split_pieces(second)) == (first < second)


@given(parts=st.lists(st.sampled_from([b"", b"a", b"bb", b".."]), min_size=1, max_size=20))
def test_a_key_is_split_at_its_slashes_and_nothing_is_lost(parts: list[bytes]) -> None:
    key = b"/".join(parts)
    if not key:
        return
    encoded = split_key(key)
    assert b"".join(encoded) == key
    assert all(name.endswith(b"/") for name in encoded[:-1])
    assert b"/" not in encoded[-1]


@pytest.mark.parametrize(
    "key", [b"", b"a\0", b"k" * (MAX_KEY_LENGTH + 1), b"/" * MAX_DEPTH], ids=repr
)
def test_a_key_that_cannot_be_held_is_refused(key: bytes) -> None:
    with pytest.raises(InvalidName):
        split_key(key)


def test_the_deepest_key_is_allowed() -> None:
    assert len(split_key(b"/" * (MAX_DEPTH - 1))) == MAX_DEPTH


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"\0", b"n" * 256])
def test_a_component_that_cannot_be_held_is_refused(name: bytes) -> None:
    with pytest.raises(InvalidName):
        check_component(name)


def test_any_other_component_is_allowed() -> None:
    for name in (b"...", b"-", b" ", b"\xff", b"n" * 255, b"\n"):
        check_component(name)


@given(row=inode_rows, inode=u64)
def test_i5_a_hard_pinned_row_has_no_place_in_the_orders_of_leaving(
    row: InodeRow, inode: int
) -> None:
    row.pin = Pin.HARD
    assert lru_key(inode, row) is None
    assert expiry_key(inode, row) is None


@given(row=inode_rows, inode=u64)
def test_only_files_leave_by_themselves(row: InodeRow, inode: int) -> None:
    row.kind, row.pin = Kind.DIRECTORY, Pin.NONE
    assert lru_key(inode, row) is None
    assert expiry_key(inode, row) is None


@given(rows=st.lists(inode_rows, min_size=2, max_size=2))
def test_rows_leave_by_priority_then_by_last_use(rows: list[InodeRow]) -> None:
    keys = []
    for inode, row in enumerate(rows):
        row.kind = Kind.FILE
        row.pin = Pin.NONE if row.pin is Pin.HARD else row.pin
        key = lru_key(inode, row)
        assert key is not None
        priority, accessed_s, found = unpack_lru_key(key)
        wanted = SOFT_PIN_PRIORITY if row.pin is Pin.SOFT else min(row.priority, 254)
        assert (priority, accessed_s, found) == (wanted, row.accessed_s, inode)
        keys.append((key, (priority, accessed_s, inode)))
    (first, order), (second, other) = keys
    assert (first < second) == (order < other)


def test_a_row_that_never_expires_is_not_in_the_order_of_expiry() -> None:
    row = InodeRow(Kind.FILE, NamespaceId(1))
    assert expiry_key(7, row) is None
    row.expires_at_s = 5
    key = expiry_key(7, row)
    assert key is not None
    assert unpack_expiry_key(key) == (5, 7)


@given(now_s=u32, ttl_s=u32)
def test_a_lifetime_ends_within_what_a_row_can_hold(now_s: int, ttl_s: int) -> None:
    end = end_of_life(now_s, ttl_s)
    assert end == (0 if not ttl_s else min(now_s + ttl_s, MAX_TIME_S))
