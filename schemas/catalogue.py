"""Loads a venue catalogue from TOML, checks it as a whole, and compares its classes.

Every fault names its key, the value found and what is allowed. The rules: schemas/README.md.
"""

import difflib
import re
import tomllib
import zoneinfo
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from importlib.resources import files
from importlib.resources.abc import Traversable
from itertools import combinations, pairwise
from pathlib import Path, PurePath

import msgspec

from schemas.venue import (
    AcceleratorClass,
    CarbonGrade,
    Currency,
    Entry,
    Fees,
    Hub,
    LatencyTier,
    Limits,
    RoundTrip,
    SecurityTier,
    SettlementRules,
    Source,
    Venue,
    Zone,
)

# In the order in which the files write them.
ZONE_FIGURES = ("grid_mgco2_per_kwh", "pue_permille")
CLASS_FIGURES = (
    "memory_gb",
    "bf16_dense_gflops",
    "fp32_gflops",
    "tdp_w",
    "min_vcpu_milli",
    "min_memory_mib",
    "min_disk_gib",
    "min_network_mbps",
    "reference_price_ticks",
)
LOCATION_FIGURES = ("latitude_micro", "longitude_micro")
LOCATION_KEY = "location"
"""May stand in a zone's sources for both coordinates."""

REFERENCE_CLASS = "A100-SXM-80"

_TABLES: dict[str, type[Entry]] = {
    "": Venue,
    "currency": Currency,
    "limits": Limits,
    "fees": Fees,
    "settlement": SettlementRules,
    "latency_tiers": LatencyTier,
    "carbon_grades": CarbonGrade,
    "security_tiers": SecurityTier,
    "sources": Source,
    "hubs": Hub,
    "zones": Zone,
    "round_trips": RoundTrip,
    "classes": AcceleratorClass,
}
_AT = re.compile(r"^(?P<what>.*?)(?: - at `\$(?P<path>[^`]*)`)?$", re.DOTALL)
_STEP = re.compile(r"\.?([A-Za-z_][A-Za-z0-9_]*)|\[(\d+|\.\.\.)\]")


class VenueError(ValueError):
    """The catalogue cannot be used; `faults` holds one line for each thing to correct."""

    def __init__(self, origin: str, faults: Sequence[str]) -> None:
        self.origin = origin
        self.faults = tuple(faults)
        super().__init__("\n".join(f"{origin}: {fault}" for fault in self.faults))


def load_venue(name_or_path: str) -> Venue:
    """Return the checked catalogue of a venue.

    A bare name, such as `china`, is a catalogue that comes with the package; anything with a
    suffix or a slash is the path of a file.

    Raises:
        VenueError: the file is missing, is not TOML, or is not a catalogue.
    """
    is_path = "/" in name_or_path or "\\" in name_or_path or bool(PurePath(name_or_path).suffix)
    source = Path(name_or_path) if is_path else _packaged_file(name_or_path)
    try:
        text = source.read_bytes().decode("utf-8")
    except (OSError, ValueError) as error:  # also a path with a null byte, or text that is not UTF-8
        allowed = "a readable TOML file in UTF-8"
        raise VenueError(name_or_path, [_fault("file", name_or_path, f"{allowed} ({error})")]) from error
    return parse_venue(text, origin=name_or_path)


def parse_venue(text: str, *, origin: str = "catalogue") -> Venue:
    """Return the checked catalogue written in `text`; `origin` stands before each fault.

    Raises:
        VenueError: the text is not TOML or not a catalogue.
    """
    try:
        raw = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise VenueError(origin, [_syntax_fault(text, error)]) from error
    try:
        venue = msgspec.convert(raw, Venue, strict=True)
    except msgspec.ValidationError as error:
        raise VenueError(origin, [_type_fault(raw, str(error))]) from error
    faults = list(check_venue(venue))
    if faults:
        raise VenueError(origin, faults)
    return venue


def venue_names() -> tuple[str, ...]:
    """Return the names of the catalogues that come with the package."""
    folder = files("schemas") / "venues"
    return tuple(sorted(PurePath(f.name).stem for f in folder.iterdir() if f.name.endswith(".toml")))


def check_venue(venue: Venue) -> Iterator[str]:
    """Yield a line for each rule between the catalogue's parts that does not hold."""
    yield from _check_codes(venue)
    yield from _check_tiers(venue)
    if venue.time_zone not in (known := zoneinfo.available_timezones()):
        allowed = f"a zone of the IANA time zone database{_nearest(venue.time_zone, known)}"
        yield _fault("time_zone", venue.time_zone, allowed)
    yield from _check_references(venue)
    yield from _check_round_trips(venue)
    yield from _check_figures(venue)
    yield from _check_money(venue)
    yield from _check_source_use(venue)


class A100Equivalents(msgspec.Struct, frozen=True):
    """What one GPU of a class is worth in GPUs of class A100-SXM-80, in thousandths."""

    fp32_permille: int | None
    bf16_dense_permille: int | None


def a100_equivalents(venue: Venue) -> dict[str, A100Equivalents]:
    """Return the A100 equivalents of every class, by code, by FP32 and by dense BF16.

    None where the class, or the venue's own A100-SXM-80, has no such figure. Rounds half-even.
    A ratio of peak figures: it says nothing of memory, fabric or software.

    Raises:
        VenueError: the venue has no class A100-SXM-80.
    """
    reference = next((c for c in venue.classes if c.code == REFERENCE_CLASS), None)
    if reference is None:
        found = ", ".join(c.code for c in venue.classes)
        raise VenueError(venue.code, [_fault("classes", found, f"a list that holds {REFERENCE_CLASS}")])
    return {
        c.code: A100Equivalents(
            fp32_permille=_permille(c.fp32_gflops, reference.fp32_gflops),
            bf16_dense_permille=_permille(c.bf16_dense_gflops, reference.bf16_dense_gflops),
        )
        for c in venue.classes
    }


def gpu_hours(accelerator: AcceleratorClass, *, lots: int, hours: int) -> Fraction:
    """Return the GPU-hours in `lots` of the class over `hours`, exactly."""
    return Fraction(lots * accelerator.lot_eighths * hours, 8)


def fp32_pflops_hours(accelerator: AcceleratorClass, hours: Fraction) -> Fraction | None:
    """Return GPU-hours of the class as PFLOPS-hours of FP32, exactly; None without a figure."""
    if accelerator.fp32_gflops is None:
        return None
    return hours * Fraction(accelerator.fp32_gflops, 1_000_000)


def _permille(figure: int | None, reference: int | None) -> int | None:
    if figure is None or reference is None:
        return None
    return round(Fraction(figure * 1000, reference))


# --- the rules -------------------------------------------------------------------------------


def _check_codes(venue: Venue) -> Iterator[str]:
    yield from _check_unique("hubs", [h.code for h in venue.hubs])
    yield from _check_unique("zones", [z.code for z in venue.zones])
    yield from _check_unique("classes", [c.code for c in venue.classes])
    yield from _check_unique("latency_tiers", [t.code for t in venue.latency_tiers])
    yield from _check_unique("carbon_grades", [t.code for t in venue.carbon_grades])
    yield from _check_unique("security_tiers", [t.code for t in venue.security_tiers])
    yield from _check_unique("sources", [s.key for s in venue.sources], field="key")


def _check_unique(table: str, codes: Sequence[str], *, field: str = "code") -> Iterator[str]:
    first: dict[str, int] = {}
    for index, code in enumerate(codes):
        if code in first:
            allowed = f"a {field} that is not yet in {table}[{first[code]}]"
            yield _fault(f"{table}[{index}].{field}", code, allowed)
        first.setdefault(code, index)


def _check_tiers(venue: Venue) -> Iterator[str]:
    latency = [(t.code, t.max_rtt_us) for t in venue.latency_tiers]
    carbon = [(t.code, t.max_gco2_per_kwh) for t in venue.carbon_grades]
    for table, field, tiers in (
        ("latency_tiers", "max_rtt_us", latency),
        ("carbon_grades", "max_gco2_per_kwh", carbon),
    ):
        last = len(tiers) - 1
        for index, (code, bound) in enumerate(tiers):
            key = f"{table}[{index}].{field} ({code})"
            if index == last and bound is not None:
                yield _fault(key, bound, "no bound: the last one takes whatever is left")
            if index != last and bound is None:
                yield _fault(key, "no bound", "a bound: only the last one goes without")
        bounds = [(i, code, bound) for i, (code, bound) in enumerate(tiers) if bound is not None]
        for (_, _, better), (index, code, bound) in pairwise(bounds):
            if bound <= better:
                key = f"{table}[{index}].{field} ({code})"
                yield _fault(key, bound, f"more than {better}, the bound before it: best first")


def _check_references(venue: Venue) -> Iterator[str]:
    hubs = [h.code for h in venue.hubs]
    zones = [z.code for z in venue.zones]
    sources = [s.key for s in venue.sources]
    for index, zone in enumerate(venue.zones):
        if zone.hub not in hubs:
            allowed = f"the code of a hub{_nearest(zone.hub, hubs)}"
            yield _fault(f"zones[{index}].hub ({zone.code})", zone.hub, allowed)
    for index, trip in enumerate(venue.round_trips):
        for end, code in (("a", trip.a), ("b", trip.b)):
            if code not in zones:
                allowed = f"the code of a zone{_nearest(code, zones)}"
                yield _fault(f"round_trips[{index}].{end}", code, allowed)
    for key, source in _cited(venue):
        if source not in sources:
            yield _fault(key, source, f"the key of a source{_nearest(source, sources)}")


def _check_round_trips(venue: Venue) -> Iterator[str]:
    first: dict[frozenset[str], int] = {}
    for index, trip in enumerate(venue.round_trips):
        key = f"round_trips[{index}]"
        pair = frozenset((trip.a, trip.b))
        if trip.a == trip.b:
            yield _fault(key, f"{trip.a} - {trip.b}", "two different zones: a zone is at home in itself")
        elif pair in first:
            allowed = f"each pair once; round_trips[{first[pair]}] has this one"
            yield _fault(key, f"{trip.a} - {trip.b}", allowed)
        first.setdefault(pair, index)
    for a, b in combinations(dict.fromkeys(z.code for z in venue.zones), 2):
        if frozenset((a, b)) not in first:
            yield _fault("round_trips", f"no entry for {a} - {b}", "an entry for every pair of zones")


def _check_figures(venue: Venue) -> Iterator[str]:
    for index, zone in enumerate(venue.zones):
        present = [f for f in ZONE_FIGURES if getattr(zone, f) is not None]
        key = f"zones[{index}].sources ({zone.code})"
        yield from _check_sourced(key, zone.sources, present, located=True)
    for index, accelerator in enumerate(venue.classes):
        present = [f for f in CLASS_FIGURES if getattr(accelerator, f) is not None]
        key = f"classes[{index}].sources ({accelerator.code})"
        yield from _check_sourced(key, accelerator.sources, present, located=False)


def _check_sourced(
    key: str, sources: Mapping[str, str], present: Sequence[str], *, located: bool
) -> Iterator[str]:
    allowed = [*present, LOCATION_KEY, *LOCATION_FIGURES] if located else list(present)
    needed = list(present)
    if located and LOCATION_KEY not in sources:
        needed += LOCATION_FIGURES
    for figure in needed:
        if figure not in sources:
            shared = f" (or {LOCATION_KEY})" if figure in LOCATION_FIGURES else ""
            yield _fault(key, f"no entry for {figure}", f"a source for every figure{shared}")
    for figure in sources:
        if figure not in allowed:
            hint = f"the name of a figure that is given{_nearest(figure, allowed)}"
            yield _fault(key, f"entry for {figure!r}", hint)


def _check_money(venue: Venue) -> Iterator[str]:
    tick = venue.currency.tick_micros
    for index, accelerator in enumerate(venue.classes):
        if tick * accelerator.lot_eighths % 8:
            key = f"classes[{index}].lot_eighths ({accelerator.code})"
            allowed = f"a lot for which tick_micros ({tick}) × lot_eighths is divisible by 8"
            yield _fault(key, accelerator.lot_eighths, allowed)
        price = accelerator.reference_price_ticks
        if price is not None and price > venue.limits.price_max_ticks:
            key = f"classes[{index}].reference_price_ticks ({accelerator.code})"
            yield _fault(key, price, f"at most limits.price_max_ticks, {venue.limits.price_max_ticks}")


def _check_source_use(venue: Venue) -> Iterator[str]:
    cited = {source for _, source in _cited(venue)}
    for index, source in enumerate(venue.sources):
        if source.key not in cited:
            yield _fault(f"sources[{index}].key", source.key, "a source that some figure names")


def _cited(venue: Venue) -> Iterator[tuple[str, str]]:
    """Yield the key at which a source is named, and the name."""
    for index, zone in enumerate(venue.zones):
        for figure, source in zone.sources.items():
            yield f"zones[{index}].sources.{figure} ({zone.code})", source
    for index, trip in enumerate(venue.round_trips):
        yield f"round_trips[{index}].source ({trip.a} - {trip.b})", trip.source
    for index, accelerator in enumerate(venue.classes):
        for figure, source in accelerator.sources.items():
            yield f"classes[{index}].sources.{figure} ({accelerator.code})", source


# --- the words of a fault --------------------------------------------------------------------


def _fault(key: str, found: object, allowed: str) -> str:
    shown = found if isinstance(found, str) else repr(found)
    if len(shown) > 100:
        shown = shown[:97] + "..."
    return f"{key}: found {shown}; allowed: {allowed}"


def _nearest(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(dict.fromkeys(known)), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _packaged_file(name: str) -> Traversable:
    names = venue_names()
    if name not in names:
        allowed = f"a path, or one of {', '.join(names)}{_nearest(name, names)}"
        raise VenueError(name, [_fault("venue", name or "an empty name", allowed)])
    return files("schemas") / "venues" / f"{name}.toml"


def _syntax_fault(text: str, error: Exception) -> str:
    lines = text.splitlines()
    at = re.search(r"at line (\d+)|at end of document", str(error))
    number = 0 if at is None else int(at[1] or len(lines))
    if not 0 < number <= len(lines):
        return _fault("file", "text that is not TOML", f"TOML ({error})")
    return _fault(f"line {number}", lines[number - 1].strip(), f"TOML ({error})")


def _type_fault(raw: dict[str, object], message: str) -> str:
    """Return msgspec's message as a fault, with the value that stands at its path."""
    match = _AT.match(message)
    assert match is not None  # the pattern takes any text
    what, path = match["what"], (match["path"] or "").lstrip(".")
    key, value = _look_up(raw, path)
    unknown = re.search(r"unknown field `(.*)`$", what, re.DOTALL)
    if unknown is not None:
        fields = _fields_at(path)
        allowed = f"{', '.join(fields)}{_nearest(unknown[1], fields)}"
        return _fault(key or "top level", f"unknown key {unknown[1]!r}", allowed)
    missing = re.search(r"missing required field `(.*)`$", what)
    if missing is not None:
        return _fault(key or "top level", f"no {missing[1]}", f"a table with {missing[1]}")
    return _fault(key, repr(value), what)


def _look_up(raw: object, path: str) -> tuple[str, object]:
    """Return the path with the code of its table's entry, and the value there."""
    value, label = raw, ""
    for name, index in _STEP.findall(path):
        if name and isinstance(value, dict):
            value = value.get(name)
        elif index.isdigit() and isinstance(value, list):
            value = value[int(index)]
            if isinstance(value, dict):
                label = str(value.get("code", value.get("key", "")))
    return (f"{path} ({label})" if label else path), value


def _fields_at(path: str) -> tuple[str, ...]:
    table = _TABLES[re.split(r"[.\[]", path, maxsplit=1)[0]]
    return tuple(field.name for field in msgspec.structs.fields(table))
