"""The server keeps to its OpenAPI document, for requests that the document allows and for others."""

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import Case, GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from setrec.serve.app import create_app
from setrec.serve.options import ServeOptions
from setrec.shop.events import EventStore
from tests.serve_fake import TOKEN, holder_of, listening

pytestmark = pytest.mark.slow

OPERATIONS = [
    ("POST", "/v1/recommend"), ("GET", "/v1/items"), ("POST", "/v1/items"), ("DELETE", "/v1/items"), ("POST", "/v1/model/reload"),
    ("POST", "/v1/events"), ("POST", "/v1/feedback"), ("GET", "/v1/users/{id}"), ("DELETE", "/v1/users/{id}"),
    ("GET", "/v1/users/{id}/recommendations"), ("POST", "/v1/users/recommendations"), ("GET", "/v1/model"),
    ("GET", "/v1/health"), ("GET", "/v1/metrics"),
]  # fmt: skip
GUARDED = {one for one in OPERATIONS if "users" in one[1]} | {
    ("POST", "/v1/events"),
    ("POST", "/v1/feedback"),
    ("POST", "/v1/items"),
    ("DELETE", "/v1/items"),
    ("POST", "/v1/model/reload"),
}


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("served")
    holder, store = holder_of(folder), EventStore(folder / "shop.db")
    with listening(create_app(holder, TOKEN, ServeOptions(max_wait_ms=0), store)) as url:
        yield schemathesis.openapi.from_url(f"{url}/openapi.json")


def test_every_operation_is_tried(document: Any) -> None:
    found = [(one.ok().method.upper(), one.ok().path) for one in document.get_all_operations()]
    assert sorted(found) == sorted(OPERATIONS)


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_the_server_keeps_to_its_document(document: Any, method: str, path: str, mode: GenerationMode) -> None:
    """All checks of schemathesis, with valid and invalid requests: no status 5xx, no status or body that the document does not
    name, invalid data refused, no change without the token."""
    operation = document[path][method]
    if mode is GenerationMode.NEGATIVE and not (operation.body or operation.query):
        return  # nothing can be wrong with it

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(max_examples=20, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    def check(case: Case) -> None:
        answer = case.call(headers={"Authorization": f"Bearer {TOKEN}"}, timeout=60)
        if (
            answer.text == "Invalid HTTP request received."
        ):  # the HTTP parser's own word, to an address of 64 KiB and more
            assert answer.status_code == 400
            return
        # excluded: valid data may still name an item or a file that does not exist
        case.validate_response(answer, excluded_checks=[positive_data_acceptance])
        if (method, path) in GUARDED:
            assert case.call(timeout=60).status_code in (400, 401, 422)

    check()
