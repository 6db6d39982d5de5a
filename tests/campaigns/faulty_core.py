"""A core whose writes and syncs of the log fail when a file says so. Run it by `fiu-run -x`.

`python -m tests.campaigns.faulty_core FOLDER`. When a file `fault` stands beside the folder, libfiu fails the
point that it names, with the errno behind it: `posix/io/rw/write 28`. The point is of the whole process, and
the event loop writes too; so it fails only for a thread that is in a call on a segment of the log.
"""

import ctypes
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from exchange.core import main

_External = ctypes.CFUNCTYPE(
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.POINTER(ctypes.c_int),
    ctypes.POINTER(ctypes.c_void_p),
    ctypes.POINTER(ctypes.c_uint),
)


class Faults:
    """The failure points of libfiu, armed for a thread while it is at the log."""

    def __init__(self, control: Path) -> None:
        self._control = control
        self._fiu = ctypes.CDLL("libfiu.so.0")
        self._fiu.fiu_init(0)
        self._at_log = threading.local()
        # Kept: libfiu calls it as long as the process lives.
        self._external = _External(self._fails)
        self._enabled = ""

    def _fails(self, *_: object) -> int:
        return int(getattr(self._at_log, "is_now", False))

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return the call, during which the points fail if it is on a segment of the log."""

        def faulty(file: int, *arguments: Any) -> Any:
            self._enable()
            self._at_log.is_now = Path(f"/proc/self/fd/{file}").readlink().suffix == ".log"
            try:
                return call(file, *arguments)
            finally:
                self._at_log.is_now = False

        return faulty

    def _enable(self) -> None:
        if self._enabled or not self._control.exists():
            return
        self._enabled = self._control.read_text()
        point, number = self._enabled.split()
        failed = self._fiu.fiu_enable_external(
            point.encode(), 1, ctypes.c_void_p(int(number)), 0, self._external
        )
        assert failed == 0, point


if __name__ == "__main__":
    faults = Faults(Path(sys.argv[1]).parent / "fault")
    os.write = faults.around(os.write)
    os.fdatasync = faults.around(os.fdatasync)
    sys.exit(main())
