"""Whatever the description allows, and much that it does not, is answered without a fault of the server."""

import pytest

pytest.importorskip("starlette", reason="needs the extra serve")
pytest.importorskip("schemathesis", reason="needs schemathesis")

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings

from tests.models import tiny_engine
from tests.models.running import Running

EXAMPLES = 25


@pytest.fixture(scope="module")
def schema(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzzed")
    kinds = {"photos": "rgb", "seeds": None}
    engines = {name: tiny_engine.build(folder / f"{name}.engine", kind) for name, kind in kinds.items()}
    running = Running(engines, pixels=1_000_000)
    running.start()
    try:
        yield schemathesis.openapi.from_url(f"{running.address}/openapi.json")
    finally:
        running.stop()


def test_no_request_is_a_fault_of_the_server(schema):
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) >= 7
    statuses = set()
    for operation in operations:

        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy())
        def send(case):
            response = case.call()
            statuses.add(response.status_code)
            assert response.status_code < 500 or response.status_code in (503, 504), response.content
            assert b"Traceback" not in response.content

        send()
    assert {200, 422} <= statuses
