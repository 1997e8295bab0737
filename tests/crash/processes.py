"""Letting go of a store as a killed process does, from inside the test's own process."""

from __future__ import annotations

import os

from kvfs.store.store import Store


def abandon(store: Store) -> None:
    """Drop every hold that the kernel would drop, and write nothing."""
    store._context.index.close()
    store._context.files.close()
    os.close(store._space._lease)
    store._epoch.release()
