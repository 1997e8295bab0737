"""Garbage from the device is a protocol error and nothing else."""

from __future__ import annotations

import contextlib

from hypothesis import given, settings
from hypothesis import strategies as st

from kvfs.filesystem.kernel import wire

OPCODES = st.one_of(st.sampled_from(list(wire.Opcode)), st.integers(0, 2**32 - 1))


def decode_all(raw: bytes) -> None:
    """Do all that the session does with a message before it calls an operation."""
    request = wire.decode_request(memoryview(raw))
    if request.opcode in (wire.Opcode.FORGET, wire.Opcode.BATCH_FORGET):
        wire.decode_forgets(request)
    if request.opcode is wire.Opcode.INIT:
        wire.decode_init(request)
    assert len(request.data) <= len(raw)
    assert all(name and b"\0" not in name for name in request.names)


@given(raw=st.binary(max_size=256))
def test_arbitrary_bytes_give_a_request_or_a_protocol_error(raw: bytes) -> None:
    with contextlib.suppress(wire.ProtocolError):
        decode_all(raw)


@settings(max_examples=400)
@given(opcode=OPCODES, body=st.binary(max_size=200), extensions=st.integers(0, 65535))
def test_a_true_header_before_garbage_gives_a_request_or_a_protocol_error(
    opcode: int, body: bytes, extensions: int
) -> None:
    header = wire.IN_HEADER.pack(40 + len(body), opcode, 1, 2, 3, 4, 5, extensions, 0)
    with contextlib.suppress(wire.ProtocolError):
        decode_all(header + body)


@given(
    name=st.binary(min_size=1, max_size=255).filter(lambda name: b"\0" not in name),
    value=st.binary(max_size=300),
)
def test_an_attribute_value_may_hold_any_bytes(name: bytes, value: bytes) -> None:
    body = wire.SIZES.pack(len(value), 0) + name + b"\0" + value
    header = wire.IN_HEADER.pack(40 + len(body), wire.Opcode.SETXATTR, 1, 2, 3, 4, 5, 0, 0)
    request = wire.decode_request(memoryview(header + body))
    assert request.names == (name,)
    assert bytes(request.data) == value
