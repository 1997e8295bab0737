"""Which errno an error becomes: one total table over the tree in kvfs.errors.

Owns the table; a test walks the tree and proves that no class is missing. Knows nothing of
requests.
"""

from __future__ import annotations

import errno

from kvfs import errors

ERRNO_OF: dict[type[errors.KvfsError], int] = {
    errors.KvfsError: errno.EIO,
    errors.NotFound: errno.ENOENT,
    errors.NamespaceNotFound: errno.ENOENT,
    errors.UploadNotFound: errno.ENOENT,
    errors.AlreadyExists: errno.EEXIST,
    errors.NamespaceNotEmpty: errno.ENOTEMPTY,
    errors.DirectoryNotEmpty: errno.ENOTEMPTY,
    errors.IsADirectory: errno.EISDIR,
    errors.NotADirectory: errno.ENOTDIR,
    errors.CrossNamespace: errno.EXDEV,
    errors.InvalidName: errno.EINVAL,
    errors.InvalidArgument: errno.EINVAL,
    errors.InvalidPart: errno.EINVAL,
    errors.InvalidPartOrder: errno.EINVAL,
    errors.PartTooSmall: errno.EINVAL,
    errors.PreconditionFailed: errno.EEXIST,
    errors.NoSpace: errno.ENOSPC,
    errors.TooLarge: errno.EFBIG,
    errors.Leased: errno.EBUSY,
    # The bytes are gone and a name is left: EIO, not ENOENT, because an engine that treats an
    # absent file as "write it again" may, while one that is told of wrong bytes must not retry the
    # read.
    errors.Corrupt: errno.EIO,
    errors.Denied: errno.EACCES,
    errors.ReadOnly: errno.EROFS,
    errors.Unavailable: errno.EIO,
    errors.IndexFull: errno.ENOSPC,
    errors.NotAStore: errno.EINVAL,
    errors.UnsupportedFormat: errno.EINVAL,
    errors.StoreExists: errno.EEXIST,
    errors.StoreDamaged: errno.EIO,
    errors.Closed: errno.EBADF,
}


def errno_of(error: BaseException) -> int:
    """Return the errno that tells a caller of the mount about `error`.

    A KvfsError goes by the table (a subclass added later by its nearest listed ancestor), an
    OSError keeps its own number, anything else is EIO.
    """
    if isinstance(error, errors.KvfsError):
        for kind in type(error).__mro__:
            if kind in ERRNO_OF:
                return ERRNO_OF[kind]
    if isinstance(error, OSError) and error.errno:
        return error.errno
    return errno.EIO
