"""NIXL 1.5.1's POSIX backend: memory to files and back, through the queue that is asked for.

    python nixl_client.py use_aio|use_uring|use_posix_aio

Files are given by path, with the flags that NIXL opens them with (`rw,create,direct`), or as
descriptors that this process opened. Contents come from seeds.
"""

from __future__ import annotations

import ctypes
import itertools
import mmap
import os
import sys
import threading
from typing import Any

from client_loop import content, digest, serve
from nixl._api import nixl_agent, nixl_agent_config

WAIT_SECONDS = 120.0
QUEUES = ("use_aio", "use_uring", "use_posix_aio")

agent: nixl_agent
_device_ids = itertools.count(1)


def start() -> None:
    """Make the agent anew: after a failed transfer NIXL's queues, POSIX AIO's above all, go on
    failing, on any file system."""
    global agent
    agent = nixl_agent("test", nixl_agent_config(backends=[]))
    agent.create_backend("POSIX", {name: str(name == sys.argv[1]).lower() for name in QUEUES})


class Memory:
    """Registered, page-aligned memory cut into pieces of one length."""

    def __init__(self, pieces: int, length: int) -> None:
        self.length = length
        self.map = mmap.mmap(-1, pieces * length)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.map))
        whole = [(self.address, pieces * length, 0, "")]
        self.registered = agent.register_memory(agent.get_reg_descs(whole, "DRAM"))
        extents = [(self.address + n * length, length, 0) for n in range(pieces)]
        self.descriptors = agent.get_xfer_descs(extents, "DRAM")

    def __getitem__(self, piece: int) -> memoryview:
        return memoryview(self.map)[piece * self.length : (piece + 1) * self.length]


def transfer(operation: str, memory: Memory, files: Any) -> str:
    """Move all pieces; return the state that NIXL ends in."""
    handle = agent.initialize_xfer(operation, memory.descriptors, files, "test")
    turn = threading.Event()
    try:
        state = agent.transfer(handle)
        for _ in range(int(WAIT_SECONDS / 0.0005)):
            if state in ("DONE", "ERR"):
                return str(state)
            turn.wait(0.0005)
            state = agent.check_xfer_state(handle)
        raise TimeoutError("the transfer did not end")
    finally:
        agent.release_xfer_handle(handle)


def run_by_path(operation: str, paths: list[str], flags: str, memory: Memory) -> str:
    """Let NIXL open the files; deregistering closes them."""
    items = [(0, memory.length, next(_device_ids), f"{flags}:{path}") for path in paths]
    try:
        registered = agent.register_memory(agent.get_reg_descs(items, "FILE"))
    except Exception as error:
        return f"not opened: {error}"
    try:
        return transfer(operation, memory, registered.trim())
    except Exception as error:
        return f"failed: {error}"
    finally:
        agent.deregister_memory(registered)


def run_by_descriptor(operation: str, paths: list[str], flags: int, memory: Memory) -> str:
    """Give NIXL descriptors that are open here."""
    opened = [os.open(path, flags, 0o644) for path in paths]
    try:
        items = [(0, memory.length, fd, "") for fd in opened]
        registered = agent.register_memory(agent.get_reg_descs(items, "FILE"))
        try:
            return transfer(operation, memory, registered.trim())
        finally:
            agent.deregister_memory(registered)
    finally:
        for fd in opened:
            os.close(fd)


def write(paths: list[str], seeds: list[int], length: int, way: str) -> dict[str, Any]:
    memory = Memory(len(seeds), length)
    for piece, seed in enumerate(seeds):
        memory[piece][:] = content(seed, length)
    if way == "descriptor":
        flags = os.O_RDWR | os.O_CREAT | os.O_DIRECT
        state = run_by_descriptor("WRITE", paths, flags, memory)
    else:
        state = run_by_path("WRITE", paths, "rw,create" + direct(way), memory)
    return {"state": state, "digests": [digest(memory[n]) for n in range(len(seeds))]}


def read(paths: list[str], length: int, way: str) -> dict[str, Any]:
    memory = Memory(len(paths), length)
    if way == "descriptor":
        state = run_by_descriptor("READ", paths, os.O_RDONLY | os.O_DIRECT, memory)
    else:
        state = run_by_path("READ", paths, "ro" + direct(way), memory)
    return {"state": state, "digests": [digest(memory[n]) for n in range(len(paths))]}


def direct(way: str) -> str:
    return ",direct" if way == "direct" else ""


def exists(paths: list[str]) -> list[bool]:
    found = agent.query_memory([(0, 0, 0, path) for path in paths], "POSIX", mem_type="FILE")
    return [each is not None for each in found]


start()
serve({"start": start, "write": write, "read": read, "exists": exists})
