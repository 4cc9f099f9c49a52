"""The manifests under jobs/cluster and the Dockerfile: what can be known to be wrong without a cluster to apply them to."""

from __future__ import annotations

import copy
import json
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer
import yaml

from attempt_ray import __version__
from attempt_ray.errors import AttemptError, ConfigError
from jobs.cli import app
from jobs.edge import load_config
from serve_app.arguments import read_page

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "jobs" / "cluster"
FILES = ("raycluster", "rayjob", "rayservice")
SCHEMA = json.loads((Path(__file__).parent / "schemas" / "kuberay.json").read_text())
LOCK = (ROOT / "requirements" / "lock.txt").read_text()
RAY = re.search(r"^ray==(\S+)", LOCK, re.MULTILINE).group(1)  # type: ignore[union-attr]
IMAGE = f"attempt-ray:{__version__}-ray{RAY}"
UNITS = {"": 1, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12} | {
    f"{unit}i": 2 ** (10 * power) for power, unit in enumerate("KMGT", start=1)
}
JOBS = {"pipeline": "run_pipeline"}

Manifest = dict[str, Any]


def read(name: str) -> Manifest:
    return yaml.safe_load((CLUSTER / f"{name}.yaml").read_text())


def find(node: Any, key: str) -> Iterator[Any]:
    """Every value under `key`, wherever it is."""
    if isinstance(node, dict):
        for name, value in node.items():
            if name == key:
                yield value
            yield from find(value, key)
    elif isinstance(node, list):
        for item in node:
            yield from find(item, key)


def clusters(manifest: Manifest) -> list[Any]:
    spec = manifest["spec"]
    return [spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec]


def amount(quantity: str) -> float:
    number, unit = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", quantity).groups()  # type: ignore[union-attr]
    return float(number) * UNITS[unit]


def schema_problems(manifest: Manifest) -> list[str]:
    return [
        deepest.message
        for error in jsonschema.Draft202012Validator(
            {**SCHEMA, "oneOf": [{"$ref": f"#/$defs/{manifest['kind']}"}]}
        ).iter_errors(manifest)
        for deepest in [jsonschema.exceptions.best_match([error])]
    ]


def version_problems(manifest: Manifest) -> list[str]:
    found = [f"rayVersion {cluster.get('rayVersion')}" for cluster in clusters(manifest)]
    wrong = [text for text in found if text != f"rayVersion {RAY}"]
    return wrong + [f"image {image}" for image in find(manifest, "image") if not image.endswith(f"/{IMAGE}")]


def security_problems(manifest: Manifest) -> list[str]:
    wrong = []
    for template in (*find(manifest, "template"), *find(manifest, "submitterPodTemplate")):
        pod = template["spec"]
        security = pod.get("securityContext", {})
        if security.get("runAsNonRoot") is not True or not security.get("runAsUser"):
            wrong.append("runs as root")
        if security.get("seccompProfile") != {"type": "RuntimeDefault"}:
            wrong.append("no seccomp profile")
        if pod.get("automountServiceAccountToken") is not False:
            wrong.append("has a service account's token")
        for container in pod["containers"]:
            own = container.get("securityContext", {})
            wanted = {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            wrong += [f"{key} is {own.get(key)}" for key, value in wanted.items() if own.get(key) != value]
            mounts = {mount["mountPath"] for mount in container.get("volumeMounts", ())}
            if not {"/tmp", "/home/attempt"} <= mounts:
                wrong.append("nowhere to write")
            if {mount["name"] for mount in container["volumeMounts"]} != {
                volume["name"] for volume in pod["volumes"]
            }:
                wrong.append("volumes and mounts differ")
    for cluster in clusters(manifest):
        if cluster.get("authOptions", {}).get("mode") != "token":
            wrong.append("no token")
    for variables in find(manifest, "env"):
        wrong += [
            f"literal {item['name']}"
            for item in variables
            if "value" in item and re.search("TOKEN|PASSWORD|SECRET|KEY", item["name"], re.IGNORECASE)
        ]
    wrong += [
        f"literal {key}"
        for key in ("redisPassword", "redisUsername")
        for item in find(manifest, key)
        if "value" in item
    ]
    return wrong


def placing_problems(manifest: Manifest) -> list[str]:
    wrong = []
    for resources in find(manifest, "resources"):
        requests, limits = resources["requests"], resources["limits"]
        wrong += [
            f"{kind} {requests[kind]} over {limits.get(kind)}"
            for kind in requests
            if kind not in limits or amount(requests[kind]) > amount(limits[kind])
        ]
    for cluster in clusters(manifest):
        head = cluster["headGroupSpec"]
        if head.get("rayStartParams", {}).get("num-cpus") != "0":
            wrong.append("work on the head")
        groups = cluster.get("workerGroupSpecs", [])
        for group in groups:
            if not group["minReplicas"] <= group.get("replicas", 0) <= group["maxReplicas"]:
                wrong.append("replicas out of bounds")
        for template in (head["template"], *(group["template"] for group in groups)):
            container = template["spec"]["containers"][0]
            if "/shared" not in {mount["mountPath"] for mount in container["volumeMounts"]}:
                wrong.append("no shared storage")
            claims = {claim["claimName"] for claim in find(template, "persistentVolumeClaim")}
            if claims != {read("storage")["metadata"]["name"]}:
                wrong.append(f"claims {claims}")
    return wrong


def survival_problems(manifest: Manifest) -> list[str]:
    """A cluster outlives its head, or the job that owns it is tried again."""
    if manifest["kind"] == "RayJob":
        return [] if manifest["spec"].get("backoffLimit") else ["a lost head ends the job"]
    return ["a lost head ends the cluster"] * (
        not all("gcsFaultToleranceOptions" in c for c in clusters(manifest))
    )


def commands(name: str) -> list[list[str]]:
    """Every call of a job in a manifest, comments included."""
    text = (CLUSTER / f"{name}.yaml").read_text()
    called = [line.partition(" -- ")[2] for line in text.splitlines() if " -- attempt " in line]
    entrypoint = yaml.safe_load(text)["spec"].get("entrypoint")
    return [shlex.split(call) for call in (*called, *([entrypoint] if entrypoint else []))]


def command_problems(words: list[str], cluster: Any) -> list[str]:
    """What the command line and the config make of a call, and whether the cluster has room for it."""
    group = typer.main.get_command(app)
    if words[:2] == ["python", "-m"]:
        known = {f"jobs.{JOBS.get(verb, verb.replace('-', '_'))}": verb for verb in group.commands}  # type: ignore[attr-defined]
        verb, arguments = known.get(words[2], words[2]), words[3:]
        if words[2] not in known or not (ROOT / f"{words[2].replace('.', '/')}.py").is_file():
            return [f"no job {words[2]}"]
    else:
        verb, arguments = words[1], words[2:]
    try:
        context = group.commands[verb].make_context(verb, arguments)  # type: ignore[attr-defined]
        config = load_config(context.params["config"] or [], context.params["settings"] or [])
    except (AttemptError, typer.TyperException) as error:
        return [str(error)]
    wrong = [
        f"{place} is not shared"
        for place in (config.runs, config.bank, config.data.cache_dir)
        if not place.startswith("/shared/")
    ]
    if config.cluster.address != "auto":
        wrong.append("starts a cluster of its own")
    room = {"cpu": 0, "nvidia.com/gpu": 0}
    for group_ in cluster["workerGroupSpecs"]:
        limits = group_["template"]["spec"]["containers"][0]["resources"]["limits"]
        each = {"cpu": config.cluster.cpus_per_worker, "nvidia.com/gpu": config.cluster.gpus_per_worker}
        for kind in room:
            fits = amount(limits.get(kind, "0")) // each[kind] if each[kind] else config.cluster.workers
            room[kind] += int(fits) * group_["replicas"]
    return wrong + [f"too few {kind}" for kind, fits in room.items() if fits < config.cluster.workers]


def serve_problems(text: str, cluster: Any) -> list[str]:
    from pydantic import BaseModel, ValidationError
    from ray.serve.schema import ServeDeploySchema

    def unknown(node: Any, model: BaseModel) -> Iterator[str]:
        for key, value in node.items():
            if key not in type(model).model_fields:
                yield f"unknown key {key}"
                continue
            inner = getattr(model, key)
            pairs = zip(value, inner, strict=True) if isinstance(inner, list) else [(value, inner)]
            for item, part in pairs:
                if isinstance(part, BaseModel):
                    yield from unknown(item, part)

    content = yaml.safe_load(text)
    try:
        deployed = ServeDeploySchema.model_validate(content)
    except ValidationError as error:
        return [str(error)]
    wrong = list(unknown(content, deployed))
    try:
        read_page(content, "serveConfigV2")
    except ConfigError as error:
        wrong.append(str(error))
    port = content.get("http_options", {}).get("port")
    containers = [template["spec"]["containers"][0] for template in find(cluster, "template")]
    opened = {"name": "serve", "containerPort": port}
    wrong += [
        f"{container['name']} does not open port {port}"
        for container in containers
        if opened not in container.get("ports", [])
    ]
    wrong += [
        f"route_prefix {application.route_prefix}"
        for application in deployed.applications
        if not str(application.route_prefix).startswith("/")
    ]
    if [application.import_path for application in deployed.applications] != ["serve_app.app:build"]:
        wrong.append("another application")
    return wrong


def all_problems(manifest: Manifest) -> list[str]:
    found = schema_problems(manifest)
    if found:
        return found  # the other checks trust the shape
    for check in (version_problems, security_problems, placing_problems, survival_problems):
        found += check(manifest)
    spec, (cluster,) = manifest["spec"], clusters(manifest)
    if "entrypoint" in spec:
        found += command_problems(shlex.split(spec["entrypoint"]), cluster)
    if "serveConfigV2" in spec:
        found += serve_problems(spec["serveConfigV2"], cluster)
    return found


@pytest.mark.parametrize("name", FILES)
def test_a_manifest_has_no_problem(name: str) -> None:
    manifest = read(name)
    assert all_problems(manifest) == []
    for words in commands(name):
        assert command_problems(words, clusters(manifest)[0]) == []


def test_the_claim_is_one_that_many_nodes_may_write() -> None:
    claim = read("storage")
    assert schema_problems(claim) == []
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]


def test_there_is_a_command_to_check_where_one_is_shown() -> None:
    assert [len(commands(name)) for name in FILES] == [1, 1, 0]


def test_nothing_else_lies_among_the_manifests() -> None:
    assert {path.name for path in CLUSTER.iterdir()} == {f"{name}.yaml" for name in (*FILES, "storage")}


def head(manifest: Manifest) -> Any:
    return clusters(manifest)[0]["headGroupSpec"]


def container(manifest: Manifest) -> Any:
    return head(manifest)["template"]["spec"]["containers"][0]


def worker(manifest: Manifest) -> Any:
    return clusters(manifest)[0]["workerGroupSpecs"][0]


def entry(manifest: Manifest, old: str, new: str) -> None:
    manifest["spec"]["entrypoint"] = manifest["spec"]["entrypoint"].replace(old, new)


def served(manifest: Manifest, old: str, new: str) -> None:
    manifest["spec"]["serveConfigV2"] = manifest["spec"]["serveConfigV2"].replace(old, new)


Break = Callable[[Manifest], Any]
BREAKS: list[tuple[str, Break, str]] = [
    ("raycluster", lambda m: m["spec"].update(headGroupSpecs={}), "Additional properties are not allowed"),
    ("raycluster", lambda m: m["spec"].pop("headGroupSpec"), "'headGroupSpec' is a required property"),
    ("raycluster", lambda m: worker(m).pop("maxReplicas"), "'maxReplicas' is a required property"),
    ("raycluster", lambda m: m.update(apiVersion="ray.io/v1alpha1"), "'ray.io/v1' was expected"),
    ("raycluster", lambda m: m["metadata"].update(name="Attempt_1"), "does not match"),
    ("raycluster", lambda m: head(m)["rayStartParams"].update({"num-cpus": 0}), "is not of type 'string'"),
    ("raycluster", lambda m: m["spec"]["authOptions"].update(mode="none"), "is not one of"),
    ("rayservice", lambda m: m["spec"].pop("rayClusterConfig"), "'rayClusterConfig' is a required property"),
    ("raycluster", lambda m: m["spec"].update(rayVersion="2.9.0"), "rayVersion 2.9.0"),
    ("raycluster", lambda m: container(m).update(image="rayproject/ray:2.60.0"), "image rayproject/ray:2.60.0"),
    ("rayjob", lambda m: container(m).update(image="r.example.com/attempt-ray:latest"), "attempt-ray:latest"),
    ("raycluster", lambda m: m["spec"].pop("authOptions"), "no token"),
    ("raycluster", lambda m: m["spec"]["authOptions"].update(mode="disabled"), "no token"),
    ("raycluster", lambda m: head(m)["template"]["spec"].pop("securityContext"), "runs as root"),
    ("raycluster", lambda m: head(m)["template"]["spec"]["securityContext"].update(runAsUser=0), "runs as root"),
    ("raycluster", lambda m: head(m)["template"]["spec"]["securityContext"].pop("seccompProfile"), "no seccomp profile"),
    ("raycluster", lambda m: worker(m)["template"]["spec"].pop("automountServiceAccountToken"), "service account"),
    ("rayjob", lambda m: m["spec"]["submitterPodTemplate"]["spec"].pop("securityContext"), "runs as root"),
    ("raycluster", lambda m: container(m)["securityContext"].update(allowPrivilegeEscalation=True), "allowPrivilegeEscalation"),
    ("raycluster", lambda m: container(m)["securityContext"].pop("readOnlyRootFilesystem"), "readOnlyRootFilesystem"),
    ("raycluster", lambda m: container(m)["securityContext"]["capabilities"].update(drop=["NET_RAW"]), "capabilities"),
    ("raycluster", lambda m: container(m)["volumeMounts"].pop(1), "nowhere to write"),
    ("raycluster", lambda m: head(m)["template"]["spec"]["volumes"].pop(1), "volumes and mounts differ"),
    ("raycluster", lambda m: container(m)["env"].append({"name": "HF_TOKEN", "value": "hf_x"}), "literal HF_TOKEN"),
    ("raycluster", lambda m: m["spec"]["gcsFaultToleranceOptions"].update(redisPassword={"value": "x"}), "literal redisPassword"),
    ("raycluster", lambda m: container(m)["resources"]["requests"].update(memory="9Gi"), "memory 9Gi over 8Gi"),
    ("raycluster", lambda m: container(m)["resources"].pop("limits"), "'limits' is a required property"),
    ("raycluster", lambda m: head(m)["rayStartParams"].pop("num-cpus"), "work on the head"),
    ("raycluster", lambda m: worker(m).update(replicas=9), "replicas out of bounds"),
    ("raycluster", lambda m: container(m)["volumeMounts"][0].update(mountPath="/data"), "no shared storage"),
    (
        "raycluster",
        lambda m: head(m)["template"]["spec"]["volumes"][0]["persistentVolumeClaim"].update(claimName="mine"),
        "claims {'mine'}",
    ),
    ("raycluster", lambda m: m["spec"].pop("gcsFaultToleranceOptions"), "a lost head ends the cluster"),
    ("rayjob", lambda m: m["spec"].update(backoffLimit=0), "a lost head ends the job"),
    ("rayjob", lambda m: entry(m, "train_sources", "train_source"), "no job jobs.train_source"),
    ("rayjob", lambda m: entry(m, "--config", "--confg"), "No such option"),
    ("rayjob", lambda m: entry(m, "t5-base", "t5-bse"), "no preset or YAML file 'paper/t5-bse'"),
    ("rayjob", lambda m: entry(m, "cluster.workers", "cluster.worker"), "no config key in [cluster] 'worker'"),
    ("rayjob", lambda m: entry(m, "cluster.workers=2", "cluster.workers=many"), "cluster.workers: got 'many'"),
    ("rayjob", lambda m: entry(m, "runs=/shared/runs", "runs=runs"), "runs is not shared"),
    ("rayjob", lambda m: entry(m, "--set cluster.address=auto", ""), "starts a cluster of its own"),
    ("rayjob", lambda m: entry(m, "cpus_per_worker=4", "cpus_per_worker=8"), "too few cpu"),
    ("rayjob", lambda m: entry(m, "cluster.workers=2", "cluster.workers=3"), "too few nvidia.com/gpu"),
    ("rayservice", lambda m: served(m, "route_prefix: /", "route_prefix: api"), "route_prefix"),
    ("rayservice", lambda m: served(m, "import_path: serve_app.app:build", "import_path: serve_app"), "import_path"),
    ("rayservice", lambda m: served(m, "serve_app.app:build", "serve_app.app:other"), "another application"),
    ("rayservice", lambda m: served(m, "proxy_location", "proxy_locations"), "unknown key proxy_locations"),
    ("rayservice", lambda m: served(m, "host:", "hostname:"), "unknown key hostname"),
    ("rayservice", lambda m: served(m, "args:", "arguments:"), "unknown key arguments"),
    ("rayservice", lambda m: served(m, "port: 8000", "port: 8001"), "ray-head does not open port 8001"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "break_", "problem"), BREAKS, ids=[f"{number}-{case[2]}" for number, case in enumerate(BREAKS)]
)
def test_a_broken_manifest_is_told(name: str, break_: Break, problem: str) -> None:
    manifest = copy.deepcopy(read(name))
    break_(manifest)
    assert problem in "\n".join(all_problems(manifest))


def instructions(text: str) -> list[tuple[str, str]]:
    """Instructions and arguments of a Dockerfile, continued lines joined."""
    whole = re.sub(r"\\\n\s*", "", "\n".join(line for line in text.splitlines() if not line.startswith("#")))
    return [
        (line.split()[0].upper(), line.partition(" ")[2].strip())
        for line in whole.splitlines()
        if line.strip()
    ]


def dockerfile_problems(text: str) -> list[str]:
    found = instructions(text)
    final = found[max(place for place, (word, _) in enumerate(found) if word == "FROM") :]
    names = dict(argument.partition("=")[::2] for word, argument in found if word == "ARG")
    wrong = []
    for word, argument in found:
        if word == "ADD":
            wrong.append(f"ADD {argument}")
        if word == "FROM":
            base = re.sub(r"\$\{(\w+)\}", lambda match: names.get(match[1], ""), argument.split()[0])
            if not re.fullmatch(r"python:3\.11\.\d+-slim-\w+(@sha256:[0-9a-f]{64})?", base):
                wrong.append(f"base {base} is not pinned")
        if word == "RUN":
            wrong += [
                f"without hashes: {call}"
                for call in argument.split("&&")
                if "pip install" in call and not re.search(r"--require-hashes|--no-deps|\$\{TORCH\}", call)
            ]
            if re.search(r"curl|https?://", argument):
                wrong.append("downloads what nothing checks")
        if word in ("ENV", "ARG") and re.search("TOKEN|PASSWORD|SECRET", argument, re.IGNORECASE):
            wrong.append(f"secret {argument}")
    users = [argument for word, argument in final if word == "USER"]
    if not users or not re.fullmatch(r"[1-9]\d*(:[1-9]\d*)?", users[-1]):
        wrong.append("the image runs as root")
    if (
        names.get("TORCH")
        != re.search(r"^TORCH \?= (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]
    ):  # type: ignore[index]
        wrong.append("another torch than the Makefile's")
    gone = {
        name
        for _, argument in found
        for call in re.findall(r"pip uninstall --yes ([^&]+)", argument)
        for name in call.split()
    }
    wrong += [f"{name} stays" for name in sorted((tools() | {"pip"}) - gone)]
    wrong += [f"{name} goes, but the platform needs it" for name in sorted(gone - tools() - {"pip"})]
    return wrong


def tools() -> set[str]:
    """Packages of requirements/dev.in that none but themselves want."""
    wanted: dict[str, list[str]] = {}
    for line in LOCK.splitlines():
        if match := re.match(r"([A-Za-z0-9._-]+)==", line):
            wanted[match[1]] = reasons = []
        elif match := re.match(r"    #(?: via)?\s+(.+)", line):
            reasons.append(match[1].strip())
    named = {name for name, reasons in wanted.items() if "-r requirements/dev.in" in reasons}
    return {name for name in named if set(wanted[name]) <= {"via", "-r requirements/dev.in", *named}}


def test_the_dockerfile_has_no_problem() -> None:
    assert dockerfile_problems((ROOT / "Dockerfile").read_text()) == []


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("python:3.11.14-slim-bookworm", "python:3.11-slim", "base python:3.11-slim is not pinned"),
        ("python:3.11.14-slim-bookworm", "python:latest", "base python:latest is not pinned"),
        ("USER 1000:1000\n", "", "the image runs as root"),
        ("USER 1000:1000", "USER root", "the image runs as root"),
        ("USER 1000:1000", "USER 0", "the image runs as root"),
        ("COPY requirements ./requirements", "ADD https://example.com/x .", "ADD https://example.com/x ."),
        (
            "--require-hashes --no-deps ",
            "",
            "without hashes: pip install --requirement requirements/lock.txt",
        ),
        ("apt-get update", "curl -s https://example.com/x | sh", "downloads what nothing checks"),
        ("ARG TORCH=torch==2.13.0", "ARG TORCH=torch==2.12.0", "another torch than the Makefile's"),
        ("ARG TORCH=", "ARG HF_TOKEN=x\nARG TORCH=", "secret HF_TOKEN=x"),
        (" ruff mypy", " ruff", "mypy stays"),
        (" && pip uninstall --yes pip\n", "\n", "pip stays"),
        (" ruff mypy", " ruff mypy jsonschema", "jsonschema goes, but the platform needs it"),
    ],
)
def test_a_broken_dockerfile_is_told(old: str, new: str, problem: str) -> None:
    text = (ROOT / "Dockerfile").read_text()
    assert old in text
    assert problem in "\n".join(dockerfile_problems(text.replace(old, new, 1)))


def test_the_image_is_built_from_the_package_alone() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    copied = {
        source
        for word, argument in instructions((ROOT / "Dockerfile").read_text())
        if word == "COPY" and not argument.startswith("--from")
        for source in argument.split()[:-1]
    }
    assert ignored[0] == "*"
    assert {line[1:] for line in ignored if line.startswith("!")} == copied
    assert all((ROOT / name).exists() for name in copied)
