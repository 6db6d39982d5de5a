"""The programs that the main job starts: each is named, told with its process id, and ended with the job."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

from exchange.process import SUPERVISOR

END_SECONDS = 30
Program = subprocess.Popen[bytes]


class DemoError(Exception):
    """A step of the main job failed; its process has said why."""


class Programs:
    """What runs, in the order in which it was started."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._running: dict[Program, str] = {}

    def cux(self, name: str, *arguments: str, environment: Mapping[str, str] = os.environ) -> Program:
        """Start a verb of the command line."""
        return self.start(name, [sys.executable, "-m", "gateway.cli", *arguments], environment)

    def module(self, name: str, module: str, *arguments: str) -> Program:
        """Start a module."""
        return self.start(name, [sys.executable, "-m", module, *arguments])

    def start(self, name: str, command: list[str], environment: Mapping[str, str] = os.environ) -> Program:
        """Start a program; what it prints is read when it is waited for."""
        supervised = {**environment, SUPERVISOR: str(os.getpid())}
        program = subprocess.Popen(command, stdout=subprocess.PIPE, env=supervised)
        self._running[program] = name
        self._tell(f"  started {name}, pid {program.pid}")
        return program

    async def output(self, program: Program) -> bytes:
        """Wait for a program and return what it printed, whatever its exit code."""
        # In a thread: sessions that are open meanwhile must answer their heartbeats.
        out, _ = await asyncio.to_thread(program.communicate)
        del self._running[program]
        return out

    async def finish(self, program: Program) -> None:
        """Wait for a program.

        Raises:
            DemoError: it failed.
        """
        name = self._running[program]
        await self.output(program)
        if program.returncode:
            raise DemoError(f"{name} ended with code {program.returncode}")

    async def result(self, program: Program) -> dict[str, Any]:
        """Wait for a verb that was called with `--json` and return its object.

        Raises:
            DemoError: it printed none.
        """
        name = self._running[program]
        out = await self.output(program)
        if not out:
            raise DemoError(f"{name} ended with code {program.returncode}")
        return dict(json.loads(out))

    def end(self) -> None:
        """End what still runs, the last started first."""
        for program in reversed(self._running):
            if program.poll() is None:
                program.send_signal(signal.SIGTERM)
        for program in self._running:
            try:
                program.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                program.kill()
                program.wait()
