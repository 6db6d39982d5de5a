"""The command line: `cux GROUP VERB`, each verb for people and, with `--json`, for programs."""

import sys

from gateway.cli.app import app


def main() -> None:
    """Run the command line; a refusal is one sentence and a non-zero exit."""
    from gateway.cli.failures import EXPECTED  # noqa: PLC0415 - what can fail pulls in the whole house

    try:
        app()
    except EXPECTED as error:
        sys.stderr.write(f"cux: {error}\n")
        sys.exit(1)
