"""The data folder of an exchange: its settings, and where everything in it lies."""

import hashlib
import os
import tempfile
from pathlib import Path

import msgspec
from msgspec import Struct

from schemas.venue import Venue

FORMAT = 1
_SOCKET_PATH_MAX = 100


class FolderError(Exception):
    """The data folder cannot be used; the message says why and what would help."""


def sync(path: Path) -> None:
    """Make durable what is in the file, or which files are in the folder."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


class Settings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is fixed when a venue is set up. Keys are raw Ed25519 public keys; speed 0 is real time."""

    format: int
    origin: str
    venue: Venue
    venue_key: bytes
    operator_keys: tuple[bytes, ...]
    clock_speed: int = 0
    start_ns: int = 0


class DataFolder:
    """Paths below one folder."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.settings_file = self.path / "cux.json"
        self.log = self.path / "log"
        self.snapshots = self.path / "snapshots"
        self.keys = self.path / "keys"
        self.quarantine = self.path / "quarantine"
        self.postgres = self.path / "postgres"
        self._clock_speed = self.path / "clock-speed"

    def create(self, settings: Settings) -> None:
        """Make the folder; it is there for good when this returns, and so are the keys that lie in it.

        Raises:
            FolderError: it is in use.
        """
        if self.settings_file.exists():
            raise FolderError(f"{self.path} holds an exchange already; choose another folder")
        for folder in (self.path, self.log, self.keys):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        beside = self.settings_file.with_suffix(".new")
        beside.write_bytes(msgspec.json.format(msgspec.json.encode(settings), indent=1))
        # What makes the folder an exchange comes last.
        for path in (*self.keys.iterdir(), beside, self.keys, self.log):
            sync(path)
        beside.rename(self.settings_file)
        sync(self.path)
        sync(self.path.parent)

    def settings(self) -> Settings:
        """Return the settings.

        Raises:
            FolderError: there are none, or another version of the software made them.
        """
        try:
            data = self.settings_file.read_bytes()
        except FileNotFoundError:
            raise self._no_exchange() from None
        except NotADirectoryError:
            raise FolderError(f"{self.path} is no folder; name one that holds an exchange") from None
        except PermissionError:
            raise FolderError(f"{self.settings_file} may not be read by this user") from None
        try:
            found = msgspec.json.decode(data, type=dict[str, object]).get("format")
            if found != FORMAT:
                raise FolderError(
                    f"{self.path} is of data format {found}; this version of cux reads {FORMAT}"
                )
            return msgspec.json.decode(data, type=Settings)
        except msgspec.DecodeError as error:
            raise FolderError(f"{self.settings_file}: {error}") from None

    def _no_exchange(self) -> FolderError:
        return FolderError(
            f"{self.path} holds no exchange; make one with: cux venue init --folder {self.path}"
        )

    def clock_speed(self) -> int:
        """Return how fast a simulated clock ran last; 0 if it was never set.

        Raises:
            FolderError: the file does not say.
        """
        try:
            return int(self._clock_speed.read_text())
        except FileNotFoundError:
            return 0
        except ValueError:
            raise FolderError(
                f"{self._clock_speed} holds no number; write 0 into it to let time stand"
            ) from None

    def keep_clock_speed(self, speed: int) -> None:
        """Remember how fast the simulated clock runs."""
        beside = self._clock_speed.with_suffix(".new")
        beside.write_text(str(speed))
        beside.rename(self._clock_speed)

    @property
    def run(self) -> Path:
        """Where the sockets are: in the folder, or among temporary files where its path is too long."""
        if not self.settings_file.exists():
            raise self._no_exchange()
        # The same by whatever path the folder is reached.
        path = self.path.resolve()
        inside = path / "run"
        if len(os.fsencode(inside)) + 20 <= _SOCKET_PATH_MAX:
            folder = inside
        else:
            name = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
            folder = Path(tempfile.gettempdir()) / f"cux-{os.getuid()}-{name}"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder.is_symlink() or folder.stat().st_uid != os.getuid():
            raise FolderError(f"{folder} is a link or belongs to another user")
        folder.chmod(0o700)
        return folder

    @property
    def core_socket(self) -> Path:
        """Where the core listens."""
        return self.run / "core.sock"

    @property
    def standby_socket(self) -> Path:
        """Where the follower listens."""
        return self.run / "standby.sock"

    @property
    def admin_socket(self) -> Path:
        """Where the gateway listens for operators."""
        return self.run / "admin.sock"
