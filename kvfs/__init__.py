"""kvfs: content-addressed storage for LLM KV-cache blocks.

    from kvfs.model import ObjectPath
    from kvfs.open_store import open_store

    with open_store("/var/lib/kvfs") as store:
        store.put(ObjectPath(b"kv", b"model/block"), data)
        store.get(ObjectPath(b"kv", b"model/block"))

This package itself imports nothing, so `import kvfs` loads neither trio, pyfuse3, torch nor boto3.
"""
