"""The command line: `cux GROUP VERB`, each verb for people and, with `--json`, for programs."""

import sys

try:
    # First and alone: it fails where the build that `CUX_ENGINE` asks for is not there.
    import exchange  # noqa: F401
except ImportError as error:
    sys.exit(f"cux: {error}")

# Each module enters its verbs where it is imported.
import gateway.cli.auction
import gateway.cli.backup
import gateway.cli.engine
import gateway.cli.evidence
import gateway.cli.money
import gateway.cli.operate
import gateway.cli.play
import gateway.cli.standby
import gateway.cli.venue  # noqa: F401
from exchange.process import end_with_supervisor
from gateway.cli.app import app
from gateway.cli.failures import EXPECTED


def main() -> None:
    """Run the command line; a refusal is one sentence and a non-zero exit."""
    try:
        end_with_supervisor()
        app()
    except EXPECTED as error:
        sys.stderr.write(f"cux: {error}\n")
        sys.exit(1)
