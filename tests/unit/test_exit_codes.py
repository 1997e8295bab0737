"""Each error of the tree ends a command with one documented code."""

from __future__ import annotations

import pytest

from kvfs.errors import KvfsError, NotAStore, NotFound
from kvfs_tools.exit_codes import EXIT_CODE_OF, ExitCode, exit_code_of


def leaves(error: type[KvfsError]) -> list[type[KvfsError]]:
    below = [leaf for child in error.__subclasses__() for leaf in leaves(child)]
    return below + ([] if error is KvfsError else [error])


@pytest.mark.parametrize("error", leaves(KvfsError), ids=lambda error: error.__name__)
def test_each_error_of_the_tree_has_an_exit_code(error: type[KvfsError]) -> None:
    if error.__module__ == "kvfs.errors":
        assert error in EXIT_CODE_OF


def test_an_error_that_the_table_lacks_takes_its_parents_code() -> None:
    class StrangeStore(NotAStore):
        pass

    assert exit_code_of(StrangeStore("no store")) is ExitCode.NO_STORE


def test_only_retryable_errors_ask_the_caller_to_try_again() -> None:
    for error, code in EXIT_CODE_OF.items():
        assert (code is ExitCode.TRY_AGAIN) <= error.retryable, error


def test_a_failure_is_never_reported_as_success() -> None:
    assert ExitCode.OK not in EXIT_CODE_OF.values()
    assert exit_code_of(NotFound("gone")) is ExitCode.ERROR
