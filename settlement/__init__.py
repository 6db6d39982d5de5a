"""Money and proof: ledger, meters, reconciliation, settlement runs, audit."""
