"""The files in cookbook/ray say what Ray and Tamis take."""

import ast
import inspect
import json
from pathlib import Path

import pytest

pytest.importorskip("ray.data")
yaml = pytest.importorskip("yaml")

EXAMPLES = Path(__file__).parents[3] / "cookbook" / "ray"
pytestmark = [
    pytest.mark.skipif(not EXAMPLES.is_dir(), reason="needs the repository"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def test_the_service_is_one_that_serve_takes():
    schema = pytest.importorskip("ray.serve.schema")
    from tamis_ray.serve import app

    service = yaml.safe_load((EXAMPLES / "rayservice.yaml").read_text())
    [given] = schema.ServeDeploySchema(**yaml.safe_load(service["spec"]["serveConfigV2"])).applications
    assert given.import_path == "tamis_ray.serve:app"
    assert app(given.args) is not None
    workers = service["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]
    assert given.args["autoscale"] == f"{workers['minReplicas']}:{workers['maxReplicas']}"


def test_the_cluster_is_one_that_the_autoscaler_takes():
    import ray.autoscaler

    jsonschema = pytest.importorskip("jsonschema")
    schema = Path(ray.autoscaler.__file__).with_name("ray-schema.json")
    cluster = yaml.safe_load((EXAMPLES / "cluster.yaml").read_text())
    jsonschema.validate(cluster, json.loads(schema.read_text()))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**cluster, "max_worker": 1}, json.loads(schema.read_text()))


def test_the_cluster_is_one_that_ray_up_completes():
    """As `ray up` does it before it asks the cloud for anything: Ray's defaults for AWS, and its own checks."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    cluster = prepare_config(yaml.safe_load((EXAMPLES / "cluster.yaml").read_text()))
    validate_config({**cluster, "cluster_synced_files": []})
    nodes = cluster["available_node_types"]
    assert cluster["head_node_type"] == "head"
    assert nodes["head"]["resources"] == {"CPU": 0}, "nothing is computed there"
    assert nodes["head"]["max_workers"] == 0
    assert (nodes["gpu"]["min_workers"], nodes["gpu"]["max_workers"]) == (0, cluster["max_workers"])
    assert nodes["gpu"]["resources"]["GPU"] == 1


def test_files_of_the_cluster_are_there():
    cluster = yaml.safe_load((EXAMPLES / "cluster.yaml").read_text())
    [(there, here)] = cluster["file_mounts"].items()
    root = (EXAMPLES.parents[1] / here).resolve()
    [command] = cluster["setup_commands"]
    for part in ("", "integrations/tamis-ray"):
        assert f"{there}/{part}".rstrip("/") + "[" in command
        assert (root / part / "pyproject.toml").is_file()


def test_the_job_calls_what_there_is():
    from tamis_ray import score_dataset

    tree = ast.parse((EXAMPLES / "score.py").read_text())
    [call] = [
        node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "score_dataset"
    ]
    inspect.signature(score_dataset).bind(*call.args, **{keyword.arg: keyword.value for keyword in call.keywords})
