"""Whether the tests of Ray run: where it is installed, and always where they must not skip."""

import os
import sys

import pytest

from ingot.core.extras import is_installed

MUST = "INGOT_TEST_RAY" in os.environ
HAS_RAY = MUST or (is_installed("ray") and sys.platform == "linux")
needs_ray = pytest.mark.skipif(not HAS_RAY, reason="Ray is not installed, or this is not Linux")
