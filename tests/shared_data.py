"""Where the recorded and real data for tests lies; tests that need it skip where it is absent."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"

needs_shared_data = pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is absent")
