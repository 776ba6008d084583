"""Run a program that dies with the process that started it.

`python -I -S tether.py PARENT_PID PROGRAM ARGUMENT...` asks the kernel to kill this process when its parent
ends, then becomes PROGRAM (same process id). So a launcher that is itself killed with -9 leaves nothing
behind. Linux only (prctl(2)); elsewhere PROGRAM runs untethered.

A script of its own and not a function called between fork and exec: that is unsafe in a process with
threads, and gRPC has threads. It imports nothing of ours, so that it starts in milliseconds.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

# prctl(2), include/uapi/linux/prctl.h
_PR_SET_PDEATHSIG = 1
_EXIT_ORPHAN = 125
_EXIT_NOT_FOUND = 127


def main(arguments: list[str]) -> int:
    """Tether this process to its parent and become the program."""
    parent, command = int(arguments[0]), arguments[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        # The parent may have died before the kernel was asked.
        if os.getppid() != parent:
            return _EXIT_ORPHAN
    try:
        os.execv(command[0], command)  # noqa: S606  # no shell is meant
    except OSError as error:
        sys.stderr.write(f"cannot run {command[0]}: {error.strerror}\n")
    return _EXIT_NOT_FOUND


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
