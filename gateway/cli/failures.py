"""The errors that a person can cause or mend: shown as one sentence, without a traceback."""

import asyncpg

from exchange.folder import FolderError
from exchange.follower import StandbyError
from exchange.link import BusyError, CoreLostError
from exchange.log import LogError
from exchange.offline import OfflineError
from gateway.cli.auction import CurveError
from gateway.client import LostError, RefusedError
from gateway.demo.programs import DemoError
from gateway.serve import ServeError
from gateway.simulation.meter import MeterError
from gateway.simulation.openb import TraceError
from gateway.simulation.scenario import ScenarioError
from schemas.catalogue import VenueError
from settlement.audit.export import ExportError
from settlement.postgres import DatabaseError
from settlement.runs import RunError
from settlement.submission import RefusedError as SettlementRefusedError

EXPECTED = (
    FolderError,
    LogError,
    StandbyError,
    OfflineError,
    BusyError,
    CoreLostError,
    LostError,
    RefusedError,
    ServeError,
    DemoError,
    VenueError,
    TraceError,
    MeterError,
    ScenarioError,
    CurveError,
    ExportError,
    DatabaseError,
    RunError,
    SettlementRefusedError,
    asyncpg.PostgresError,
    OSError,
)
