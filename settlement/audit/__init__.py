"""Proof: the audit tree, exports of the log, and the verifier that needs nothing else."""
