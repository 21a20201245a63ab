"""The event loops that the connections are tested on."""

import pytest


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    """Runs tests on uvloop and on asyncio: Ray Serve uses uvloop if it is installed."""
    return "asyncio", {"use_uvloop": request.param}
