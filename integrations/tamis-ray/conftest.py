"""Without a package that they need, modules and tests are left out, and pytest's first lines say so."""

from importlib.util import find_spec

NEEDS = {
    "fastapi": ["tamis_ray/web/*.py", "tests/test_serve*.py"],
    "prometheus_client": ["tamis_ray/web/*.py", "tests/test_serve*.py"],
    "httpx": ["tests/test_serve*.py"],
    "ray": ["tests/test_serve_app.py", "tests/test_serve_ray.py"],
    "schemathesis": ["tests/test_serve_schema.py"],
    "pyarrow": ["tamis_ray/bulk*.py", "tests/test_bulk*.py"],
}
MISSING = [package for package in NEEDS if find_spec(package) is None]
collect_ignore_glob = [pattern for package in MISSING for pattern in NEEDS[package]]


def pytest_report_header() -> list[str]:
    """What is left out."""
    return [f"tamis-ray: {package} is not installed, so that {NEEDS[package]} are left out" for package in MISSING]
