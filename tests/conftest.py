"""What all tests rely on."""

import pytest

from metrics.base import available


@pytest.fixture(scope="session", autouse=True)
def _filled_registries() -> None:
    """Import all metrics before a test replaces a registry: what registers in a replaced one is lost with it."""
    available()
