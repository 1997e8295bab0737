"""The exit codes of every kvfs command, and which error ends with which.

Owns one total table; refuses to know what any command does. A test walks the error tree to prove
that no leaf is missing, and that docs/cli.md names every code.
"""

from __future__ import annotations

import enum

from kvfs.errors import (
    AlreadyExists,
    Closed,
    Corrupt,
    CrossNamespace,
    Denied,
    DirectoryNotEmpty,
    IndexFull,
    InvalidArgument,
    InvalidName,
    InvalidPart,
    InvalidPartOrder,
    IsADirectory,
    KvfsError,
    Leased,
    NamespaceNotEmpty,
    NamespaceNotFound,
    NoSpace,
    NotADirectory,
    NotAStore,
    NotFound,
    PartTooSmall,
    PreconditionFailed,
    ReadOnly,
    StoreDamaged,
    StoreExists,
    TooLarge,
    Unavailable,
    UnsupportedFormat,
    UploadNotFound,
)


class ExitCode(enum.IntEnum):
    """What a finished command tells its caller."""

    OK = 0
    ERROR = 1
    USAGE = 2
    WARNINGS = 3
    """Done, with something to look at."""
    DAMAGE = 4
    """Damage was found (and not repaired)."""
    NO_STORE = 10
    """There is no store there that this kvfs can open."""
    LOCKED = 11
    """Pinned, leased, or in use by somebody else."""
    DENIED = 12
    """Permissions or credentials."""
    TRY_AGAIN = 75
    """The same command may succeed later (sysexits.h EX_TEMPFAIL)."""
    INTERRUPTED = 130
    """Ctrl-C."""


EXIT_CODE_OF: dict[type[KvfsError], ExitCode] = {
    NotFound: ExitCode.ERROR,
    NamespaceNotFound: ExitCode.ERROR,
    UploadNotFound: ExitCode.ERROR,
    AlreadyExists: ExitCode.ERROR,
    NamespaceNotEmpty: ExitCode.ERROR,
    DirectoryNotEmpty: ExitCode.ERROR,
    IsADirectory: ExitCode.ERROR,
    NotADirectory: ExitCode.ERROR,
    CrossNamespace: ExitCode.ERROR,
    InvalidName: ExitCode.USAGE,
    InvalidArgument: ExitCode.USAGE,
    InvalidPart: ExitCode.ERROR,
    InvalidPartOrder: ExitCode.ERROR,
    PartTooSmall: ExitCode.ERROR,
    PreconditionFailed: ExitCode.ERROR,
    NoSpace: ExitCode.ERROR,
    TooLarge: ExitCode.ERROR,
    Leased: ExitCode.LOCKED,
    Corrupt: ExitCode.DAMAGE,
    Denied: ExitCode.DENIED,
    ReadOnly: ExitCode.DENIED,
    Unavailable: ExitCode.TRY_AGAIN,
    IndexFull: ExitCode.TRY_AGAIN,
    NotAStore: ExitCode.NO_STORE,
    UnsupportedFormat: ExitCode.NO_STORE,
    StoreExists: ExitCode.ERROR,
    StoreDamaged: ExitCode.DAMAGE,
    Closed: ExitCode.ERROR,
}


def exit_code_of(error: KvfsError) -> ExitCode:
    """Return the exit code for an error; a subclass that the table lacks takes its parent's."""
    for ancestor in type(error).__mro__:
        code = EXIT_CODE_OF.get(ancestor)
        if code is not None:
            return code
    return ExitCode.ERROR
