"""Which supply may serve which requirement: a table made from the venue's tiers and round trips."""

from exchange.slots import Requirement as Needed
from schemas.commands import Requirement
from schemas.venue import Venue


class Eligibility:
    """Ranks of the venue's grades (0 is best) and who may meet whom.

    A supply cell is (zone, carbon grade, security tier), a demand cell (zone, latency tier, carbon
    grade, security tier); both are interned as small integers, the same in every replay.
    """

    def __init__(self, venue: Venue) -> None:
        self.zones: dict[str, int] = {zone.code: i for i, zone in enumerate(venue.zones)}
        self.latency: dict[str, int] = {tier.code: i for i, tier in enumerate(venue.latency_tiers)}
        self.carbon: dict[str, int] = {grade.code: i for i, grade in enumerate(venue.carbon_grades)}
        self.security: dict[str, int] = {tier.code: i for i, tier in enumerate(venue.security_tiers)}
        self._zone_codes = list(self.zones)
        self._carbon_codes = list(self.carbon)
        self._security_codes = list(self.security)
        bounds = [tier.max_rtt_us for tier in venue.latency_tiers]
        size = len(self.zones)
        # Within a zone any tier is met; a pair without a round trip would meet none.
        self._zone_rank = [[0 if a == b else len(bounds) for b in range(size)] for a in range(size)]
        for trip in venue.round_trips:
            rank = next(
                (i for i, bound in enumerate(bounds) if bound is None or trip.rtt_us <= bound), len(bounds)
            )
            a, b = self.zones[trip.a], self.zones[trip.b]
            self._zone_rank[a][b] = self._zone_rank[b][a] = rank
        self._served_by: dict[int, bytes] = {}
        self.tiers = len(self.security)

    def supply_cell(self, zone: str, carbon: str, security: str) -> int:
        """Return the number of a supply cell; the codes are known."""
        zone_and_carbon = self.zones[zone] * len(self.carbon) + self.carbon[carbon]
        return zone_and_carbon * len(self.security) + self.security[security]

    def find_supply_cell(self, zone: str, carbon: str, security: str) -> int:
        """Return the number of a supply cell, -1 if a code is unknown."""
        if zone in self.zones and carbon in self.carbon and security in self.security:
            return self.supply_cell(zone, carbon, security)
        return -1

    def supply_terms(self, cell: int) -> tuple[str, str, str]:
        """Return zone, carbon grade and security tier of a supply cell."""
        rest, security = divmod(cell, len(self.security))
        zone, carbon = divmod(rest, len(self.carbon))
        return self._zone_codes[zone], self._carbon_codes[carbon], self._security_codes[security]

    def find_demand_cell(self, zone: str, latency: str, carbon: str, security: str) -> int:
        """Return the number of a demand cell, -1 if a code is unknown."""
        in_zone, in_latency = self.zones.get(zone, -1), self.latency.get(latency, -1)
        in_carbon, in_security = self.carbon.get(carbon, -1), self.security.get(security, -1)
        if in_zone < 0 or in_latency < 0 or in_carbon < 0 or in_security < 0:
            return -1
        cell = (in_zone * len(self.latency) + in_latency) * len(self.carbon) + in_carbon
        return cell * len(self.security) + in_security

    def settle(self, need: Needed) -> int:
        """Return the number of a requirement's demand cell, -1 if a code is unknown, and note it there."""
        cell = self.find_demand_cell(need.zone, need.latency, need.carbon, need.security)
        if cell >= 0:
            need.served_by = self.served_by(cell)
            need.cell = cell
            need.settled_by = self
        return cell

    def demand_cell(self, requirement: Requirement) -> int:
        """Return the number of a demand cell; the codes are known."""
        return self.find_demand_cell(
            requirement.zone, requirement.latency, requirement.carbon, requirement.security
        )

    def served_by(self, demand_cell: int) -> bytes:
        """Return a table over supply cells: 1 where the cell may serve this demand."""
        table = self._served_by.get(demand_cell)
        if table is None:
            rest, security = divmod(demand_cell, len(self.security))
            rest, carbon = divmod(rest, len(self.carbon))
            zone, latency = divmod(rest, len(self.latency))
            table = bytes(
                self._zone_rank[zone][supply_zone] <= latency and supply_carbon <= carbon and tier <= security
                for supply_zone in range(len(self.zones))
                for supply_carbon in range(len(self.carbon))
                for tier in range(len(self.security))
            )
            self._served_by[demand_cell] = table
        return table

    def site_serves(self, requirement: Requirement, zone: str, carbon: str, security: str) -> bool:
        """Say whether supply of these terms is at least as good as required in every attribute."""
        return bool(self.served_by(self.demand_cell(requirement))[self.supply_cell(zone, carbon, security)])

    def carbon_of(self, supply_cell: int) -> int:
        """Return the rank of a supply cell's carbon grade, 0 for the best."""
        return supply_cell // len(self.security) % len(self.carbon)
