"""The form of a scenario: a folder that client processes play against a running exchange.

`scenario.json` says who takes part, `orders/<client>.jsonl` what each client does and when,
`carbon.csv` how clean each zone's grid is in each hour. The form: gateway/simulation/README.md.
"""

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec import Meta, Struct

from schemas.commands import (
    Authority,
    CertifySite,
    Deposit,
    RegisterAccount,
    RegisterKey,
    Scope,
)

SetupCommand = RegisterAccount | RegisterKey | Deposit | CertifySite
KeySeed = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$(?!\n)")]
CarbonByHour = Mapping[tuple[str, int], int]
"""Grid intensity in milligrams CO2e per kWh by zone and Unix hour."""


class ScenarioError(Exception):
    """A scenario cannot be built or read as it stands; the message says why."""


class Part(Struct, frozen=True, forbid_unknown_fields=True):
    """Base of the parts of a scenario."""


class Participant(Part, frozen=True):
    """An account and the client that plays it. `key_seed` is a toy key: it follows from the seed."""

    account: int
    trade_group: int
    role: Literal["provider", "buyer"]
    client: str
    key_seed: KeySeed
    funds_micros: int

    def private_key(self) -> Ed25519PrivateKey:
        """Return the key with which the account logs in."""
        return Ed25519PrivateKey.from_private_bytes(bytes.fromhex(self.key_seed))


class Site(Part, frozen=True):
    """A provider's site, as the operator certifies it."""

    site: int
    account: int
    zone: str
    class_code: str
    capacity_lots: int
    carbon: str
    security: str
    from_hour: int
    until_hour: int

    def certify(self, authority: Authority | None = None) -> CertifySite:
        """Return the command that certifies it."""
        return CertifySite(**msgspec.structs.asdict(self), authority=authority)


class Sources(Part, frozen=True):
    """Where the trace, the prices and the carbon shapes come from: `openb`, `small` and so on, and why."""

    trace: str
    prices: str
    carbon: str
    why: str


class ScenarioSummary(Part, frozen=True, kw_only=True):
    """What the scenario amounts to. Quantities are decimal strings of GPU-hours; scales are decimals.

    `demanded` counts every bid as entered, `offered` every site-hour once. `arrivals_scale` is the
    day's bids over the trace's mean busy day; `unfilled_permille` is the share of the demanded
    GPU-hours that stayed unfilled when the engine was run over the files in time order.
    """

    enters: int
    bids: int
    blocks: int
    asks: int
    cancels: int
    providers: int
    buyers: int
    sites: int
    nodes: int
    demanded_gpu_hours: str
    offered_gpu_hours: str
    arrivals_scale: str
    busy_days: int
    job_hours_most: int
    pods_left_out: int
    unfilled_permille: int
    rounds: int


class Scenario(Part, frozen=True, kw_only=True):
    """All of `scenario.json`. Times are UTC nanoseconds, hours are counted from the Unix epoch."""

    format: Literal[1] = 1
    seed: int
    sources: Sources
    venue: str
    day: str
    day_start_ns: int
    day_end_ns: int
    last_delivery_hour: int
    clients: tuple[str, ...]
    participants: tuple[Participant, ...]
    sites: tuple[Site, ...]
    summary: ScenarioSummary

    def setup_commands(self) -> list[SetupCommand]:
        """Return what an operator signs before the play: accounts, keys, deposits, certificates."""
        commands: list[SetupCommand] = []
        for one in self.participants:
            public_key = one.private_key().public_key().public_bytes_raw()
            commands += (
                RegisterAccount(one.account, one.trade_group),
                RegisterKey(one.account, public_key, (Scope.TRADE, Scope.READ)),
                Deposit(one.account, one.funds_micros),
            )
        commands += (site.certify() for site in self.sites)
        return commands


class Act(Part, frozen=True):
    """One call of a client. An `order.enter` still lacks `valid_until`, which the client sets as it sends.

    `private_value_ticks`, a GPU-hour's worth to the buyer or its cost to the provider, is for reports
    and is never sent; it is 0 for a cancel.
    """

    at_ns: int
    account: int
    method: Literal["order.enter", "order.cancel"]
    params: dict[str, Any]
    private_value_ticks: int


_act_decoder = msgspec.json.Decoder(Act)
_scenario_decoder = msgspec.json.Decoder(Scenario)


def write_scenario(
    folder: Path, scenario: Scenario, acts: Mapping[str, Iterable[Act]], carbon: CarbonByHour
) -> None:
    """Write the folder's files; `acts` are by client, each in time order."""
    orders = folder / "orders"
    orders.mkdir(parents=True, exist_ok=True)
    for stale in orders.glob("*.jsonl"):
        stale.unlink()
    encoder = msgspec.json.Encoder()
    for client in scenario.clients:
        lines = b"".join(encoder.encode(act) + b"\n" for act in acts[client])
        (orders / f"{client}.jsonl").write_bytes(lines)
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(("zone", "hour", "mgco2_per_kwh"))
    writer.writerows((zone, hour, carbon[zone, hour]) for zone, hour in sorted(carbon))
    (folder / "carbon.csv").write_bytes(table.getvalue().encode())
    (folder / "scenario.json").write_bytes(msgspec.json.format(encoder.encode(scenario), indent=1) + b"\n")


def read_scenario(folder: Path) -> Scenario:
    """Return what `scenario.json` says.

    Raises:
        ScenarioError: the file is missing or is no scenario of this form.
    """
    path = folder / "scenario.json"
    try:
        return _scenario_decoder.decode(path.read_bytes())
    except (OSError, msgspec.DecodeError) as error:
        raise ScenarioError(f"{path}: {error}") from error


def read_acts(folder: Path, client: str) -> list[Act]:
    """Return a client's acts in time order.

    Raises:
        ScenarioError: the file is missing, or a line is no act.
    """
    path = folder / "orders" / f"{client}.jsonl"
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise ScenarioError(f"{path}: {error}") from error
    acts: list[Act] = []
    for number, line in enumerate(lines, start=1):
        try:
            acts.append(_act_decoder.decode(line))
        except msgspec.DecodeError as error:
            raise ScenarioError(f"{path}, line {number}: {error}") from error
    return acts
