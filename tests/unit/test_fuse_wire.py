"""The kernel's messages: whole, cut short, with bytes too many; and the layouts of replies."""

from __future__ import annotations

import struct

import pytest

from kvfs.filesystem.kernel import wire
from kvfs.filesystem.kernel.wire import Opcode, ProtocolError, Request
from kvfs.filesystem.records import Attributes

ATTRIBUTES = Attributes(
    ino=7,
    mode=0o100644,
    nlink=2,
    uid=1000,
    gid=1001,
    size=12345,
    blocks=32,
    atime_ns=1_500_000_001,
    mtime_ns=2_500_000_002,
    ctime_ns=3_500_000_003,
)

BODIES: dict[Opcode, tuple[bytes, tuple[bytes, ...], bytes]] = {
    Opcode.LOOKUP: (b"", (b"block",), b""),
    Opcode.SYMLINK: (b"", (b"name", b"../target"), b""),
    Opcode.MKDIR: (struct.pack("<II", 0o755, 0o22), (b"d",), b""),
    Opcode.RENAME: (struct.pack("<Q", 9), (b"a.tmp", b"a"), b""),
    Opcode.RENAME2: (struct.pack("<QII", 9, 1, 0), (b"a", b"b"), b""),
    Opcode.CREATE: (struct.pack("<IIII", 0o101, 0o644, 0o22, 0), (b"new",), b""),
    Opcode.WRITE: (struct.pack("<QQIIQII", 3, 4096, 5, 0, 0, 0, 0), (), b"bytes"),
    Opcode.SETXATTR: (struct.pack("<II", 3, 1), (b"user.a",), b"\0b\0"),
    Opcode.GETXATTR: (struct.pack("<II", 0, 0), (b"user.a",), b""),
    Opcode.READ: (struct.pack("<QQIIQII", 3, 0, 4096, 0, 0, 0, 0), (), b""),
    Opcode.FLUSH: (struct.pack("<QIIQ", 3, 0, 0, 1), (), b""),
    Opcode.COPY_FILE_RANGE: (struct.pack("<QQQQQQQ", 1, 2, 3, 4, 5, 6, 0), (), b""),
}


def message(opcode: int, fields: bytes, names: tuple[bytes, ...] = (), data: bytes = b"") -> bytes:
    body = fields + b"".join(name + b"\0" for name in names) + data
    return wire.IN_HEADER.pack(40 + len(body), opcode, 11, 22, 33, 44, 55, 0, 0) + body


def decode(raw: bytes) -> Request:
    return wire.decode_request(memoryview(raw))


@pytest.mark.parametrize("opcode", BODIES, ids=lambda opcode: opcode.name)
def test_a_request_comes_back_as_its_fields_names_and_data(opcode: Opcode) -> None:
    fields, names, data = BODIES[opcode]
    request = decode(message(opcode, fields, names, data))
    assert (request.opcode, request.unique, request.nodeid) == (opcode, 11, 22)
    assert (request.uid, request.gid, request.pid) == (33, 44, 55)
    assert wire.LAYOUTS[opcode].fields.pack(*request.fields) == fields
    assert request.names == names
    assert bytes(request.data) == data


@pytest.mark.parametrize("opcode", BODIES, ids=lambda opcode: opcode.name)
def test_a_request_cut_anywhere_is_a_protocol_error(opcode: Opcode) -> None:
    whole = message(opcode, *BODIES[opcode])
    for length in range(len(whole)):
        with pytest.raises(ProtocolError):
            decode(whole[:length])


@pytest.mark.parametrize("opcode", BODIES, ids=lambda opcode: opcode.name)
def test_a_request_that_shrank_with_its_header_never_raises_another_error(opcode: Opcode) -> None:
    whole = message(opcode, *BODIES[opcode])
    for length in range(40, len(whole)):
        cut = struct.pack("<I", length) + whole[4:length]
        with pytest.raises(ProtocolError):
            decode(cut)


def test_bytes_behind_the_message_are_a_protocol_error() -> None:
    with pytest.raises(ProtocolError):
        decode(message(Opcode.LOOKUP, b"", (b"name",)) + b"\0")


def test_extensions_behind_the_body_are_not_part_of_it() -> None:
    body = b"name\0" + bytes(3) + b"\x11" * 16
    header = wire.IN_HEADER.pack(40 + len(body), Opcode.LOOKUP, 1, 1, 0, 0, 0, 2, 0)
    assert decode(header + body).names == (b"name",)


def test_an_opcode_newer_than_the_table_is_handed_on_as_its_number() -> None:
    request = decode(message(999, b"whatever"))
    assert request.opcode == 999
    assert request.unique == 11


def test_an_empty_name_is_a_protocol_error() -> None:
    with pytest.raises(ProtocolError):
        decode(message(Opcode.LOOKUP, b"", (b"",)))


def test_write_with_more_data_than_announced_is_a_protocol_error() -> None:
    fields = struct.pack("<QQIIQII", 3, 0, 4, 0, 0, 0, 0)
    with pytest.raises(ProtocolError):
        decode(message(Opcode.WRITE, fields, (), b"12345"))


def test_forgets_are_read_one_by_one_and_in_batches() -> None:
    single = decode(message(Opcode.FORGET, struct.pack("<Q", 4)))
    assert wire.decode_forgets(single) == [(22, 4)]
    batch = struct.pack("<II", 2, 0) + struct.pack("<QQQQ", 5, 1, 6, 3)
    assert wire.decode_forgets(decode(message(Opcode.BATCH_FORGET, batch))) == [(5, 1), (6, 3)]


def test_a_batch_of_forgets_longer_than_its_message_is_a_protocol_error() -> None:
    batch = decode(message(Opcode.BATCH_FORGET, struct.pack("<II", 3, 0) + bytes(32)))
    with pytest.raises(ProtocolError):
        wire.decode_forgets(batch)


def test_init_joins_the_two_words_of_flags() -> None:
    low = int(wire.InitFlag.INIT_EXT | wire.InitFlag.MAX_PAGES)
    fields = struct.pack("<IIIII", 7, 45, 131072, low, 1 << 5) + bytes(44)
    offer = wire.decode_init(decode(message(Opcode.INIT, fields)))
    assert wire.InitFlag.PASSTHROUGH in offer.flags
    assert wire.InitFlag.MAX_PAGES in offer.flags


def test_init_of_an_old_kernel_is_refused() -> None:
    request = decode(message(Opcode.INIT, struct.pack("<IIII", 7, 19, 0, 0)))
    with pytest.raises(ProtocolError, match="older than"):
        wire.decode_init(request)


def test_replies_have_the_sizes_that_the_kernel_expects() -> None:
    init = wire.InitReply(45, 1 << 20, wire.InitFlag.PASSTHROUGH, 1 << 20, 256)
    assert len(wire.encode_init(init)) == 64
    assert len(wire.encode_entry(1, ATTRIBUTES, 1.0, 1.0)) == 128
    assert len(wire.encode_attributes_out(ATTRIBUTES, 1.0)) == 104
    assert len(wire.encode_open(1, wire.OpenFlag.KEEP_CACHE)) == 16
    assert len(wire.encode_statfs(1, 1, 1, 1, 4096, 255)) == 80
    assert len(wire.encode_error(5, 2)) == 16


def test_times_and_timeouts_are_split_into_seconds_and_nanoseconds() -> None:
    entry = wire.encode_entry(9, ATTRIBUTES, 1.5, 0.25)
    assert struct.unpack_from("<QQQQII", entry) == (9, 0, 1, 0, 500_000_000, 250_000_000)
    attributes = struct.unpack_from("<QQQQQQIIIIIIIIII", entry, 40)
    assert attributes[:6] == (7, 12345, 32, 1, 2, 3)
    assert attributes[6:13] == (500_000_001, 500_000_002, 500_000_003, 0o100644, 2, 1000, 1001)


def test_an_error_reply_carries_the_negative_errno() -> None:
    assert struct.unpack("<IiQ", wire.encode_error(77, 2)) == (16, -2, 77)


def test_directory_rows_are_padded_to_eight_bytes_and_never_cut() -> None:
    row = wire.encode_dirent(3, 1, 8, b"abc")
    assert len(row) == 32
    assert struct.unpack_from("<QQII3s", row) == (3, 1, 3, 8, b"abc")
    assert wire.encode_listing([row, row, row], 70) == row * 2
