"""`python -m gateway.cli` is `cux`."""

from gateway.cli import main

main()
