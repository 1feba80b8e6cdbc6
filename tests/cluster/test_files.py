"""The files for clouds, Kubernetes and the tracking server: valid, of one version, and as the README says."""

import configparser
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

from cluster import check
from midibert_ray.settings.config import Config
from midibert_ray.settings.overrides import flatten

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
README = (CLUSTER / "README.md").read_text()
REQUIREMENTS = dict(re.findall(r"^(\w+)\S*==(\S+)", (ROOT / "requirements.txt").read_text(), re.M))
CHECKED = ("aws.yaml", "gcp.yaml", "kuberay-cluster.yaml", "kuberay-job.yaml")


def load(name: str) -> Any:
    return yaml.safe_load((CLUSTER / name).read_text())


def blocks() -> list[str]:
    """What the README has to be typed."""
    return re.findall(r"```bash\n(.*?)```", README, re.S)


@pytest.mark.parametrize("name", CHECKED)
def test_our_files_have_no_problem(name: str) -> None:
    assert check.problems([load(name)]) == []


@pytest.mark.parametrize("name", CHECKED)
def test_the_lines_of_the_readme_fill_them_in(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check.main([str(CLUSTER / name)]) == 1, "words in capitals must be refused"
    assert "has not been filled in" in capsys.readouterr().out
    (line,) = {line for line in README.splitlines() if line.startswith("sed ") and name in line}
    assert f"\n#   {line}\n" in (CLUSTER / name).read_text(), "the file's own comment says the same"
    (tmp_path / ".midibert").mkdir()
    yours = {
        "HOME": str(tmp_path),
        "REGISTRY": "docker.io/me",
        "PROJECT": "mine-1",
        "BUCKET": "b",
        "TRACKING": "10.0.0.5",
    }
    subprocess.run(["bash", "-euc", line], cwd=ROOT, env=os.environ | yours, check=True)
    (made,) = (tmp_path / ".midibert").iterdir()
    assert check.main([str(made)]) == 0
    assert "no problem found" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["aws.yaml", "gcp.yaml"])
def test_launchers_have_the_groups_that_a_study_wants(name: str) -> None:
    config = load(name)
    types = config["available_node_types"]
    head = types.pop(config["head_node_type"])
    assert head["resources"] == {"CPU": 0}
    assert {group: check.is_spot(node["node_config"]) for group, node in types.items()} == {
        "cpu": False,
        "gpu_spot": True,
        "gpu_on_demand": False,
    }
    assert {group for group, node in types.items() if check.has_gpu(node)} == {"gpu_spot", "gpu_on_demand"}
    assert config["max_workers"] == sum(node["max_workers"] for node in types.values())
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        (start,) = [command for command in config[key] if "ray start" in command]
        assert start.index("export PATH=") < start.index(". ~/.midibert/node.env") < start.index("ray start")


def test_nodes_on_aws_have_the_roles_of_the_stack() -> None:
    resources = load("aws-iam.yaml")["Resources"]
    profiles = {
        entry["Properties"]["InstanceProfileName"]
        for entry in resources.values()
        if entry["Type"] == "AWS::IAM::InstanceProfile"
    }
    types = load("aws.yaml")["available_node_types"]
    named = {group: node["node_config"]["IamInstanceProfile"]["Name"] for group, node in types.items()}
    assert set(named.values()) == profiles
    assert {group for group, name in named.items() if name == "midibert-head"} == {"head"}
    text = (CLUSTER / "aws-iam.yaml").read_text()
    references = set(re.findall(r"(?:Ref: |Fn::GetAtt\": \[)(\w+)", text))
    assert references <= resources.keys()
    assert f'ray-cluster-name": {load("aws.yaml")["cluster_name"]}' in text


def test_the_job_names_the_cluster_and_a_job_of_the_image() -> None:
    job, cluster = load("kuberay-job.yaml"), load("kuberay-cluster.yaml")
    assert job["spec"]["clusterSelector"] == {"ray.io/cluster": cluster["metadata"]["name"]}
    program = re.findall(r"python /home/ray/midibert/(\S+)", job["spec"]["entrypoint"])
    assert program == ["jobs/pipeline.py"]
    assert settings(job["spec"]["entrypoint"])
    accelerator = re.findall(r"compute.accelerator=(\S+)", job["spec"]["entrypoint"])[0]
    gpus = [group for group in cluster["spec"]["workerGroupSpecs"] if "gpu" in group["groupName"]]
    assert [group["resources"] for group in gpus] == [{f"accelerator_type:{accelerator}": "1"}] * 2


def settings(command: str) -> set[str]:
    """The settings of a job's command line; all must be known."""
    found = set(re.findall(r"(?<![\w.])([a-z_]+\.[a-z_]+)=", command))
    assert found <= flatten(Config()).keys()
    return found


def test_one_version_of_ray_and_of_mlflow_everywhere() -> None:
    assert REQUIREMENTS["ray"] == ray.__version__
    rays, mlflows = {}, {}
    for path in sorted(CLUSTER.iterdir()):
        if path.is_file():
            text = path.read_text()
            rays[path.name] = set(re.findall(r"(?:midibert-ray:|rayproject/ray:|rayVersion: )(\d[\d.]*\d)", text))
            mlflows[path.name] = set(re.findall(r"mlflow/mlflow:v(\d[\d.]*\d)", text))
    named = {name for name, versions in rays.items() if versions}
    assert named == {"Dockerfile", "README.md", "aws.yaml", "gcp.yaml", "kuberay-cluster.yaml"}
    assert set().union(*rays.values()) == {REQUIREMENTS["ray"]}
    assert set().union(*mlflows.values()) == {REQUIREMENTS["mlflow"]}
    assert mlflows["mlflow.yaml"]


def test_the_operator_is_the_one_whose_keys_are_checked() -> None:
    versions = re.findall(r"kuberay-operator --version (\S+)", README)
    assert [f"v{version}" for version in versions] == re.findall(
        r"release tag (v[\d.]+\d)", (CLUSTER / "kuberay-keys.yaml").read_text()
    )


def test_the_image_has_the_package_and_no_development_tools(tmp_path: Path) -> None:
    text = (CLUSTER / "Dockerfile").read_text()
    python = re.findall(r"rayproject/ray:[\d.]+-py(\d)(\d+)-\$\{DEVICE\}", text)
    assert python == [("3", "11")]
    for source in re.findall(r"^COPY --chown=1000:100 (\S+)", text, re.M):
        assert (ROOT / source).exists()
        assert f"\n!{source}" in (CLUSTER / "Dockerfile.dockerignore").read_text()
    assert text.rstrip().endswith("USER 1000")
    assert "RAY_AUTH_MODE=token" in text
    (filtered,) = re.findall(r"sed '([^']+)' requirements.txt", text)
    kept = subprocess.run(
        ["sed", filtered, ROOT / "requirements.txt"], capture_output=True, text=True, check=True
    ).stdout
    assert "deepspeed==" in kept
    assert not re.search("pytest|hypothesis|ruff|mypy", kept)


SECRET = re.compile(r"PASSWORD|SECRET|TOKEN")


def test_no_password_of_the_tracking_server_has_a_default() -> None:
    text = re.sub(r"^\s*#.*$", "", (CLUSTER / "mlflow.yaml").read_text(), flags=re.M)
    used = re.findall(r"\$\{(\w+)(:?[-?][^}]*)?\}", text)
    secrets = {name for name, _ in used if SECRET.search(name)}
    assert len(secrets) == 6
    assert all(rest.startswith(":?") for name, rest in used if name in secrets)
    (drawn,) = [block for block in blocks() if "openssl rand" in block]
    assert all(re.search(rf"\b{name}\b", drawn) for name in secrets), "the README draws them all"
    for service, content in load("mlflow.yaml")["services"].items():
        for name, value in content.get("environment", {}).items():
            if SECRET.search(name) or name.endswith("_URI"):
                assert "${" in value, f"{service}: {name}"


def test_the_tracking_server_listens_on_loopback_and_is_watched() -> None:
    services = load("mlflow.yaml")["services"]
    ports = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert ports == {"mlflow": ["${MLFLOW_BIND:-127.0.0.1}:5000:5000"]}
    assert "--app-name basic-auth" in services["mlflow"]["command"]
    assert services["mlflow"]["environment"]["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false", "no job runners"
    assert "--web.listen-address=127.0.0.1:9090" in services["prometheus"]["command"]
    assert services["grafana"]["environment"]["GF_SERVER_HTTP_ADDR"] == "127.0.0.1"
    assert {name for name, service in services.items() if "network_mode" in service} == {"prometheus", "grafana"}
    for name, service in services.items():
        assert re.search(r":v?\d+\.\d+", service["image"]), f"{name}: pin {service['image']}"
        assert "healthcheck" in service or name == "bucket", name
        assert set(service.get("depends_on", [])) <= services.keys()


def test_what_compose_writes_into_containers_is_well_formed() -> None:
    file = load("mlflow.yaml")
    configs = {name: entry["content"] for name, entry in file["configs"].items()}
    named = {entry["source"] for service in file["services"].values() for entry in service.get("configs", [])}
    assert named == configs.keys()
    accounts = configparser.ConfigParser(interpolation=None)
    accounts.read_string(configs.pop("mlflow"))
    assert "admin_password" not in accounts["mlflow"], "it comes from the environment"
    names = {"admin_username", "database_uri", "default_permission", "auth_cache_ttl_seconds"}
    assert set(accounts["mlflow"]) == names
    assert int(accounts["mlflow"]["auth_cache_ttl_seconds"]) == 60, "a comment on its line would belong to the value"
    scrape = yaml.safe_load(configs["prometheus"])["scrape_configs"][0]["http_sd_configs"][0]
    assert scrape["url"].endswith("/api/prometheus/sd")
    assert yaml.safe_load(configs["datasource"])["datasources"][0]["name"] == "Prometheus", (
        "as Ray's dashboards call it"
    )
    folder = yaml.safe_load(configs["dashboards"])["providers"][0]["options"]["path"]
    assert folder in [volume["target"] for volume in file["services"]["grafana"]["volumes"] if isinstance(volume, dict)]
    used = {str(volume).partition(":")[0] for s in file["services"].values() for volume in s.get("volumes", [])}
    assert file["volumes"].keys() <= used


@pytest.mark.parametrize("block", blocks(), ids=lambda block: block.splitlines()[-1][:40])
def test_commands_of_the_readme_can_be_typed(block: str) -> None:
    subprocess.run(["bash", "-n"], input=block, text=True, check=True)
    for path in re.findall(r"(?<![\w/~.-])((?:cluster|jobs)/[\w./-]+\w)", block):
        assert (ROOT / path).exists(), path
    settings(block)


def test_links_of_the_readme_lead_somewhere() -> None:
    anchors = {
        re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.*)", README, re.M)
    }
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert target.removeprefix("#") in anchors if target.startswith("#") else (CLUSTER / target).exists(), target
    mentioned = set(re.findall(r"`((?:compute|storage|corpora|tracking)\.\w+)[`=]", README))
    assert mentioned <= flatten(Config()).keys()
