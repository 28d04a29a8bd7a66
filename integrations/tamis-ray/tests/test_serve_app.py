"""The Serve application and the command that starts it, as far as no cluster is needed."""

import warnings

import pytest

import tamis
from tamis_ray import Limits, build_app
from tamis_ray.cli import _parser as parser
from tamis_ray.cli import application, main
from tamis_ray.serve import app

KEY = "c0ffee-" * 5
SCALED = ["--autoscale", "1:6", "--cpus", "2", "--gpus", "0.25", "--max-requests", "40"]


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.delenv("TAMIS_SERVE_KEY", raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of pydantic, about Ray's own models
        yield


def deployment(application):
    from ray.serve._private.build_app import build_app as built  # what serve.run does first

    (made,) = built(application, name="tamis", default_runtime_env=None).deployments
    return made


def test_options_become_serves():
    made = deployment(build_app(mode="lexical", replicas=3, gpus=0.5, cpus=2, drain=7, limits=Limits(requests=10)))
    assert made.num_replicas == 3
    assert {name: made.ray_actor_options[name] for name in ("num_cpus", "num_gpus")} == {"num_cpus": 2, "num_gpus": 0.5}
    assert made.max_ongoing_requests > 10, "so that the replica itself refuses, and probes get through"
    assert made._deployment_config.graceful_shutdown_timeout_s == 7
    scaled = deployment(build_app(mode="lexical", autoscale=(0, 4)))._deployment_config.autoscaling_config
    assert (scaled.min_replicas, scaled.max_replicas) == (0, 4)


@pytest.mark.parametrize(
    ("given", "cores", "each"),
    [
        ([], 16, 16),
        ([], None, 1),
        ([], 0.0, 1),
        (["--replicas", "3"], 16, 5),
        (["--autoscale", "1:4"], 2, 0.5),
        (["--gpus", "1"], 16, 1),
        (["--cpus", "3"], 16, 3),
    ],
)
def test_replicas_share_the_cores_of_a_machine_of_their_own(given, cores, each):
    made = deployment(application(parser().parse_args([*given, "--mode", "lexical"]), cores))
    assert made.ray_actor_options["num_cpus"] == each


@pytest.mark.parametrize(
    "made",
    [
        lambda: build_app(mode="lexical", autoscale=(1, 6), cpus=2, gpus=0.25, limits=Limits(requests=40)),
        lambda: app({"mode": "lexical", "autoscale": "1:6", "cpus": "2", "gpus": "0.25", "requests": "40"}),
        lambda: application(parser().parse_args([*SCALED, "--mode", "lexical"])),
    ],
    ids=["build_app", "config file", "command"],
)
def test_serves_controller_is_told_how_to_scale(made):
    """What it reads is the protocol buffer that `serve.run` sends, and the replicas' resources."""
    from ray.serve._private.config import DeploymentConfig

    deployed = deployment(made())
    sent = DeploymentConfig.from_proto_bytes(deployed._deployment_config.to_proto_bytes())
    scaling = sent.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas, scaling.target_ongoing_requests) == (1, 6, 5.0)
    assert sent.max_ongoing_requests >= 2 * 40
    assert sent.max_ongoing_requests > scaling.target_ongoing_requests, "else there would never be more of them"
    assert deployed._replica_config.resource_dict == {"CPU": 2, "GPU": 0.25}
    fixed = DeploymentConfig.from_proto_bytes(
        deployment(build_app(mode="lexical", replicas=3))._deployment_config.to_proto_bytes()
    )
    assert (fixed.num_replicas, fixed.autoscaling_config) == (3, None)


def test_flat_arguments_are_those_of_config_files_and_command_lines():
    made = deployment(app({"mode": "lexical", "autoscale": "1:4", "passages": "20", "timeout": 5, "names": "a,b"}))
    assert made._deployment_config.autoscaling_config.max_replicas == 4
    with pytest.raises(tamis.InvalidInput, match="passages"):
        app({"passages": "none"})


def test_the_command_says_the_same():
    arguments = parser().parse_args(
        ["--mode", "lexical", "--autoscale", "1:4", "--gpus", "0.5", "--max-passages", "20", "--timeout", "5"]
    )
    made = deployment(application(arguments))
    assert made._deployment_config.autoscaling_config.max_replicas == 4
    assert made.ray_actor_options["num_gpus"] == 0.5
    rankrag = parser().parse_args(["my/model", "--rankrag", "--adapter", "my/lora", "--server", "http://gpu:8000/v1"])
    assert deployment(application(rankrag)).name == "tamis"


@pytest.mark.parametrize(
    "wrong, told",
    [
        (["--replicas", "0"], "replicas=0"),
        (["--autoscale", "4:1"], "autoscale="),
        (["--max-passages", "0"], "passages=0"),
        (["--timeout", "-1"], "timeout=-1"),
        (["--server", "http://gpu:8000/v1"], "--rankrag"),
        (["--adapter", "my/lora"], "--adapter is for RankRAG; pass --rankrag"),
        (["--style", "plain"], "--style is for RankRAG"),
        (["my/model", "--rankrag", "--dim", "64"], "--dim means nothing with --rankrag"),
        (["my/model", "--rankrag", "--mode", "bi-encoder"], "--mode means nothing with --rankrag"),
        (["--api-key-file", "/no/such/file"], "cannot be read"),
        (["--name", ""], "name"),
    ],
)
def test_what_is_wrong_is_told_before_anything_starts(wrong, told, capsys):
    assert main(wrong) == 2
    assert told in capsys.readouterr().err


def test_the_key_does_not_travel(tmp_path, monkeypatch):
    from ray import cloudpickle

    file = tmp_path / "key"
    file.write_text(KEY)
    for made in (build_app(mode="lexical", api_key_file=str(file)), _with_variable(monkeypatch)):
        assert KEY.encode() not in cloudpickle.dumps(deployment(made))
        assert KEY not in repr(made)


def _with_variable(monkeypatch):
    monkeypatch.setenv("TAMIS_SERVE_KEY", KEY)
    return build_app(mode="lexical")


def test_no_option_takes_a_key(capsys):
    with pytest.raises(SystemExit):
        main(["--api-key", "sk-1"])  # argparse itself names what it does not know
    assert main(["--api-key-file", KEY]) == 2
    assert KEY not in capsys.readouterr().err


def test_help_fits_80_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert max(map(len, parser().format_help().splitlines())) <= 80
