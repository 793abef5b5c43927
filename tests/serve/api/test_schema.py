"""Everything malformed that schemathesis makes of the interface's own description: no error of the
service's.
"""

from __future__ import annotations

import json
from typing import Any

import schemathesis
from hypothesis import HealthCheck, given, seed, settings
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import content_type_conformance, status_code_conformance


@schemathesis.serializer("application/x-ndjson")
def lines(context: Any, value: Any) -> bytes:
    """Send what Schemathesis makes of the schema of one line as a line."""
    return json.dumps(value).encode()


def test_no_request_is_an_error_of_the_service(live_url: str) -> None:
    schema = schemathesis.openapi.from_url(f"{live_url}/openapi.json")
    operations = [result.ok() for result in schema.get_all_operations() if isinstance(result, Ok)]
    assert len(operations) == 26
    for operation in operations:
        valid = operation.as_strategy(generation_mode=schemathesis.GenerationMode.POSITIVE)
        if "{gallery}" in operation.path:  # the same routes again, of a gallery that there is not
            fuzz(valid, 2)
            continue
        fuzz(valid)
        if operation.body or operation.query:  # an id may be any string
            fuzz(operation.as_strategy(generation_mode=schemathesis.GenerationMode.NEGATIVE))


def fuzz(strategy: Any, examples: int = 10) -> None:
    @seed(0)
    @settings(
        max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(case=strategy)
    def check(case: Any) -> None:
        response = case.call()
        checks = [content_type_conformance, status_code_conformance]
        if response.status_code != 503:
            checks.append(not_a_server_error)
        case.validate_response(response, checks=checks)

    check()
