"""NIXL's OBJ plugin (aws-sdk-cpp), which vLLM's `obj` tier, SGLang's `nixl` and Dynamo store with.

The option: `default`, `required` (checksums only where S3 requires one: the body's own SHA-256
instead of a trailer) or `CRT` (transfers through the common runtime, by parts) or `virtual host`.
"""

from __future__ import annotations

import itertools
import re
import time
import uuid

import numpy as np
from nixl._api import nixl_agent, nixl_agent_config
from operations import LENGTHS, WAIT_SECONDS, Client, Door, main

OPTIONS = {
    "default": {},
    "required": {"req_checksum": "required"},
    "virtual host": {},
    "CRT": {"crtMinLimit": str(1 << 20)},
}


class NixlObj(Client):
    DENIED = re.compile("NIXL_ERR_BACKEND")
    device = itertools.count(1)

    def __init__(self, door: Door) -> None:
        super().__init__(door)
        is_virtual = door.option == "virtual host"
        self.agent = nixl_agent(str(uuid.uuid4()), nixl_agent_config(backends=[]))
        self.agent.create_backend(
            "OBJ",
            {
                "access_key": door.access_key,
                "secret_key": door.secret_key,
                "bucket": door.bucket,
                "endpoint_override": f"http://{door.virtual_address}" if is_virtual else door.url,
                "scheme": "http",
                "region": "us-east-1",
                "use_virtual_addressing": str(is_virtual).lower(),
                **OPTIONS[door.option],
            },
        )

    def move(self, direction: str, key: str, memory: np.ndarray, offset: int = 0) -> None:
        """Do one transfer between memory and an object, and wait for its end."""
        agent, device = self.agent, next(self.device)
        local = [(memory.ctypes.data, memory.nbytes, 0)]
        remote = [(offset, memory.nbytes, device)]
        memory_at = agent.register_memory([(*local[0], "")], "DRAM")
        object_at = agent.register_memory([(*remote[0], key)], "OBJ")
        handle = agent.initialize_xfer(
            direction,
            agent.get_xfer_descs(local, "DRAM"),
            agent.get_xfer_descs(remote, "OBJ"),
            agent.name,
        )
        state = agent.transfer(handle)
        deadline = time.monotonic() + WAIT_SECONDS
        while state == "PROC" and time.monotonic() < deadline:
            time.sleep(0.001)
            state = agent.check_xfer_state(handle)
        agent.release_xfer_handle(handle)
        agent.deregister_memory(object_at)
        agent.deregister_memory(memory_at)
        if state != "DONE":
            raise OSError(f"{direction} of {key}: {state}")

    def put(self, key: str, data: bytes) -> None:
        self.move("WRITE", key, np.frombuffer(bytearray(data), dtype=np.uint8))

    def put_parts(self, key: str, data: bytes) -> None:
        self.put(key, data)

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        memory = np.zeros(length, dtype=np.uint8)
        self.move("READ", key, memory, offset)
        return memory.tobytes()

    def get(self, key: str) -> bytes:
        if not self.exists(key):
            raise FileNotFoundError(key)
        return self.get_range(key, 0, LENGTHS[key])

    def exists(self, key: str) -> bool:
        found = self.agent.query_memory([(0, 0, 0, key)], "OBJ", mem_type="OBJ")
        return found[0] is not None

    def size(self, key: str) -> int:
        if not self.exists(key) or self.exists(key + "-absent"):
            raise AssertionError("HEAD says otherwise")
        return LENGTHS[key]


if __name__ == "__main__":
    main(NixlObj)
