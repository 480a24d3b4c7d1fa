"""Programs are told by all the lines that they come from, of which tests keep the innermost elsewhere."""

import jax
import pytest


@pytest.fixture(autouse=True)
def whole_stacks(monkeypatch):
    kept, whole = jax.config.jax_traceback_in_locations_limit, 10
    monkeypatch.setenv("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", str(whole))  # of commands too
    jax.config.update("jax_traceback_in_locations_limit", whole)
    yield
    jax.config.update("jax_traceback_in_locations_limit", kept)
