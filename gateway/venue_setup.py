"""Makes a venue: its data folder, its key, its first two operators."""

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec.structs import replace

from exchange.folder import FORMAT, DataFolder, FolderError, Settings
from gateway.keys import new_key, read_key
from schemas.venue import Venue

OPERATORS = 2


def init_venue(folder: DataFolder, venue: Venue, origin: str, clock_speed: int, start_ns: int) -> Settings:
    """Make the folder and return its settings.

    On a simulated clock the longest validity of an order is that many seconds of the wall clock:
    it is multiplied by the speed.

    Keys that lie there without settings are left by a call that was cut off: they are taken.

    Raises:
        FolderError: the folder is in use, or a file among its keys holds none.
    """
    if folder.settings_file.exists():
        raise FolderError(f"{folder.path} holds an exchange already; choose another folder")
    if clock_speed:
        seconds = venue.limits.valid_until_max_seconds * clock_speed
        venue = replace(venue, limits=replace(venue.limits, valid_until_max_seconds=seconds))
    folder.keys.mkdir(mode=0o700, parents=True, exist_ok=True)
    venue_key = _key(folder.keys / "venue.key")
    operators = [_key(folder.keys / f"operator-{number}.key") for number in range(1, OPERATORS + 1)]
    settings = Settings(
        format=FORMAT,
        origin=origin,
        venue=venue,
        venue_key=venue_key.public_key().public_bytes_raw(),
        operator_keys=tuple(key.public_key().public_bytes_raw() for key in operators),
        clock_speed=clock_speed,
        start_ns=start_ns,
    )
    folder.create(settings)
    return settings


def _key(path: Path) -> Ed25519PrivateKey:
    return read_key(path) if path.exists() else new_key(path)
