"""A file hashed while it is written has the digest of its bytes, however it was written."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvfs.model import Namespace, ObjectPath
from kvfs.open_store import init_store, open_store
from kvfs.store.store import Store

PATH = ObjectPath(b"kv", b"key")
PIECES = st.lists(
    st.one_of(
        st.binary(max_size=9000),
        st.tuples(st.integers(0, 20_000), st.binary(max_size=5000)),
        st.integers(0, 20_000),
    ),
    max_size=8,
)
"""Each appended (bytes), written at a place (place, bytes), or the length to cut or grow to."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    root = tmp_path_factory.mktemp("staging") / "store"
    init_store(root, capacity_bytes=1 << 30)
    with open_store(root) as opened:
        opened.create_namespace(b"kv")
        yield opened


@pytest.fixture(scope="module")
def bucket(store: Store) -> Namespace:
    found = store.find_namespace(b"kv")
    assert found is not None
    return found


@given(pieces=PIECES)
def test_i2_a_block_is_named_by_the_bytes_in_its_file(
    store: Store, bucket: Namespace, pieces: list[bytes | tuple[int, bytes] | int]
) -> None:
    expected = bytearray()
    with store.stage_in_order(bucket.namespace_id) as staging:
        for piece in pieces:
            if isinstance(piece, int):
                staging.truncate(piece)
                expected[piece:] = bytes(max(0, piece - len(expected)))
                continue
            at, data = piece if isinstance(piece, tuple) else (len(expected), piece)
            staging.pwrite(data, at)
            if data:
                expected.extend(bytes(max(0, at - len(expected))))
                expected[at : at + len(data)] = data
        entry = store.publish(staging, PATH)
    assert store.get(PATH) == bytes(expected)
    assert entry.digest == store.put(ObjectPath(b"kv", b"twin"), bytes(expected)).digest


def test_i6_a_file_hashed_for_one_bucket_has_another_digest_in_another(
    store: Store, bucket: Namespace
) -> None:
    store.create_namespace(b"other")
    with store.stage_in_order(bucket.namespace_id) as staging:
        staging.write(b"the same bytes")
        elsewhere = store.publish(staging, ObjectPath(b"other", b"key"))
    assert elsewhere.digest == store.put(ObjectPath(b"other", b"twin"), b"the same bytes").digest
    assert elsewhere.digest != store.put(PATH, b"the same bytes").digest
