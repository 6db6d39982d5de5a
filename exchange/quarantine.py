"""Commands that the engine could not stand: kept by digest, so that none of them ends the exchange twice."""

import hashlib
import traceback
from pathlib import Path

import msgspec

from exchange.folder import sync
from exchange.packing import bytes_of
from exchange.slots import Command
from schemas.codec import decode_command
from schemas.commands import AnyCommand


class Quarantine:
    """A folder with a file for every such command, named after the SHA-256 of its encoding."""

    def __init__(self, folder: Path) -> None:
        """Read what is there; the folder is made when it is first needed."""
        self._folder = folder
        self._digests = {path.stem for path in folder.glob("*.txt")}

    def holds(self, command: AnyCommand | Command) -> bool:
        """Return whether this very command is in quarantine."""
        return bool(self._digests) and _digest(command) in self._digests

    def add(self, command: AnyCommand | Command, error: BaseException) -> Path:
        """Keep the command out from now on; return the file, which says what happened.

        Raises:
            OSError: it cannot be written; the words tell the error too.
        """
        path = self._folder / f"{_digest(command)}.txt"
        # The fault itself; what was raised around it says only where it came through.
        cause = error.__cause__ or error
        words = decode_command(bytes_of(command))
        text = msgspec.json.encode(words).decode() + "\n\n" + "".join(traceback.format_exception(cause))
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            # Beside, and renamed: none is half written.
            beside = path.with_suffix(".new")
            beside.write_text(text)
            sync(beside)
            beside.rename(path)
            for folder in (self._folder, self._folder.parent):
                sync(folder)
        except OSError as failure:
            said = "".join(traceback.format_exception_only(cause)).strip()
            raise OSError(f"{error} ({said}), which could not be put in quarantine: {failure}") from error
        self._digests.add(path.stem)
        return path


def _digest(command: AnyCommand | Command) -> str:
    return hashlib.sha256(bytes_of(command)).hexdigest()
