"""A process of the exchange does not outlive the one that watches it."""

import ctypes
import os
import signal

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
"""They end a process in order."""
SUPERVISOR = "CUX_SUPERVISOR"
"""Environment variable: the process id of the supervisor, absent where a process runs alone."""
_PR_SET_PDEATHSIG = 1


def end_with_supervisor() -> None:
    """Ask the kernel for SIGTERM when the supervisor dies; exit if it is gone already."""
    supervisor = os.environ.get(SUPERVISOR)
    if supervisor is None:
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(supervisor):
        raise SystemExit("the supervisor is gone")
