"""What all tests rely on."""

import pytest
from hypothesis import HealthCheck, settings

from metrics.base import available

# That a busy machine is slow is no fault of the code.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


@pytest.fixture(scope="session", autouse=True)
def _filled_registries() -> None:
    """Import all metrics before a test replaces a registry: what registers in a replaced one is lost with it."""
    available()
