"""Every error of the tree has an errno, and nothing but an errno leaves the edge."""

from __future__ import annotations

import errno
import logging

import pytest

from kvfs import errors
from kvfs.filesystem.edge import answer
from kvfs.filesystem.errno_map import ERRNO_OF, errno_of


def tree(kind: type[errors.KvfsError]) -> list[type[errors.KvfsError]]:
    return [kind, *(leaf for child in kind.__subclasses__() for leaf in tree(child))]


def test_the_table_is_total_over_the_error_tree() -> None:
    ours = {kind for kind in tree(errors.KvfsError) if kind.__module__ == errors.__name__}
    assert ours == set(ERRNO_OF)


def test_an_error_that_a_caller_must_tell_apart_keeps_its_errno() -> None:
    assert errno_of(errors.NotFound("")) == errno.ENOENT
    assert errno_of(errors.NoSpace("")) == errno.ENOSPC
    assert errno_of(errors.CrossNamespace("")) == errno.EXDEV
    assert errno_of(OSError(errno.ESTALE, "")) == errno.ESTALE
    assert errno_of(ValueError("")) == errno.EIO


async def failing(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize("kind", tree(errors.KvfsError)[1:], ids=lambda kind: kind.__name__)
@pytest.mark.expects_warnings
async def test_the_edge_turns_an_error_of_the_tree_into_its_errno(
    kind: type[errors.KvfsError],
) -> None:
    with pytest.raises(OSError) as caught:  # noqa: PT011 (the errno is what is checked)
        await answer(failing(kind("why")))
    assert caught.value.errno == ERRNO_OF[kind]


@pytest.mark.expects_warnings
async def test_the_edge_turns_a_broken_invariant_into_eio_and_logs_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises(OSError) as caught:  # noqa: PT011
        await answer(failing(AssertionError("a table is wrong")))
    assert caught.value.errno == errno.EIO
    assert any(record.levelno == logging.ERROR for record in caplog.records)
