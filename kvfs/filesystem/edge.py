"""The edge of the mount: whatever an operation raises becomes an errno, and nothing else.

Owns the only place of the mount that catches everything. Both transports run every operation
through it: an exception that escaped would end the session, and with it every open file.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Awaitable
from typing import TypeVar

from kvfs.errors import KvfsError
from kvfs.filesystem.errno_map import errno_of

log = logging.getLogger(__name__)

T = TypeVar("T")


async def answer(work: Awaitable[T]) -> T:
    """Await `work` and return its result. Raises: OSError with the errno for the caller, only."""
    try:
        return await work
    except OSError as error:
        if error.errno:
            raise
        raise OSError(errno.EIO, os.strerror(errno.EIO)) from error
    except KvfsError as error:
        number = errno_of(error)
        if number == errno.EIO:
            log.error("mount_operation_failed error=%s", error)
        raise OSError(number, error.message) from error
    except Exception as error:
        log.exception("mount_operation_broken")
        raise OSError(errno.EIO, os.strerror(errno.EIO)) from error


class ShortWay:
    """A context in which whatever is raised ends the attempt: the long way will say what is wrong.

    What is done inside may be given up: what it changed before it raised, it changed back.
    """

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> bool:
        if error is not None:
            log.debug("mount_short_way_left error=%r", error)
        return isinstance(error, Exception)


SHORT_WAY = ShortWay()
