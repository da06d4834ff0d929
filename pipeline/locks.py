"""Locks on open files, which end with the process that holds them."""

from __future__ import annotations

import errno
import fcntl
import logging
from functools import cache
from typing import IO

log = logging.getLogger("infotok")

# What file systems of some clusters answer, on which nothing can be locked so.
UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL)


def try_lock(file: IO) -> bool:
    """Take the lock of an open file; returns False where another process holds it. Where the file system has no locks,
    True after one warning."""
    return _lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def wait_for_lock(file: IO) -> None:
    """Take the lock of an open file once nobody else holds it."""
    _lock(file, fcntl.LOCK_EX)


def _lock(file: IO, how: int) -> bool:
    try:
        fcntl.flock(file, how)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        _warn(error.strerror)
    return True


@cache  # once a process
def _warn(reason: str) -> None:
    log.warning(
        "no locks on this file system (%s): start no second sweep or stage beside this one; for DVC's own locks run "
        "`dvc config --local core.hardlink_lock true`",
        reason,
    )
