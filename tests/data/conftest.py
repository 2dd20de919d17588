"""Settings of hypothesis for these tests."""

from __future__ import annotations

from hypothesis import settings

# The machine may be busy with other tests: how long an example takes says nothing.
settings.register_profile("memvec", deadline=None)
settings.load_profile("memvec")
