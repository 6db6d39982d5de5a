"""Hypothesis profiles: `ordinary` by default; `HYPOTHESIS_PROFILE=long` for a search of an hour or so."""

import os

from hypothesis import HealthCheck, settings

# A shared machine stalls now and then; an example that waited for a core is not a slow one.
settings.register_profile("ordinary", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile(
    "long", parent=settings.get_profile("ordinary"), max_examples=50_000, print_blob=True
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ordinary"))
