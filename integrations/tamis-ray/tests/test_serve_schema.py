"""The served schema is true: schemathesis makes requests from it, right and wrong ones, and finds nothing."""

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings

from tamis.secret import Secret
from tamis_ray.web.app import create_app
from tamis_ray.web.limits import Limits

KEY = "c0ffee-" * 5
SMALL = Limits(passages=4, characters=60, requests=8, new_tokens=4, header_bytes=64 * 1024)


@pytest.mark.parametrize("key", [None, KEY], ids=["open", "locked"])
def test_the_schema_is_true(rag_service, key):
    app = create_app(rag_service, limits=SMALL, key=key and Secret(key))
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    schema = schemathesis.openapi.from_asgi("/openapi.json", app, headers=headers)
    tried, examples = [], 12 if key is None else 4

    for found in schema.get_all_operations():
        operation = found.ok()
        for mode in schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE:
            if mode is schemathesis.GenerationMode.NEGATIVE and operation.method == "get":
                continue  # there is nothing in it to be wrong

            @given(case=operation.as_strategy(generation_mode=mode))
            @settings(
                max_examples=examples, derandomize=True, deadline=None, database=None, phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )  # fmt: skip
            def check(case):
                tried.append(case.call_and_validate(headers=headers).status_code)

            check()
    assert {200, 422} <= set(tried)
