"""kvfs: content-addressed KV-cache storage. `kvfs.open_store` is the way in."""
