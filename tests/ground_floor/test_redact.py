"""No secret reaches a message, a traceback, a dry run or what a run records."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kd_megatron.machine import facts as machine
from kd_megatron.redact import HIDDEN, redact

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "hf_" + "aB3dE5gH7jK9" * 2
PASSWORD = "swordfish-and-chips"


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        (f"401 for https://user:{PASSWORD}@mirror.example/simple", PASSWORD),
        (f"https://{TOKEN}@huggingface.co/x", TOKEN),
        (f"given: token {TOKEN!r}", TOKEN),
        ("https://s3.example/x?X-Amz-Signature=0123abcd&part=1", "0123abcd"),
        ("https://s3.example/x?access_token=0123abcd", "0123abcd"),
        ("headers: {'Authorization': 'Bearer abc.def-123456'}", "abc.def-123456"),
        ("key AKIAABCDEFGHIJKLMNOP in eu-west-1", "AKIAABCDEFGHIJKLMNOP"),
    ],
)
def test_secrets_of_a_known_shape_are_hidden(text: str, secret: str):
    assert secret not in redact(text)
    assert HIDDEN in redact(text)


@pytest.mark.parametrize("name", ["HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "MY_PASSWORD", "WANDB_API_KEY", "PROXY_AUTH"])
def test_values_of_secret_variables_are_hidden(monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.setenv(name, PASSWORD)
    assert redact(f"it said: {PASSWORD}!") == f"it said: {HIDDEN}!"


@pytest.mark.parametrize(
    "text",
    [
        "arms.minilm: unknown key tokens_per_step; did you mean 'tokens'?",
        "https://huggingface.co/google-bert/bert-base-uncased?revision=main",
        "12,345 tokens of 67,890; key data.mask_seed",
        "true",
        "runs/x@y/export",
    ],
)
def test_other_text_stays(monkeypatch: pytest.MonkeyPatch, text: str):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true or false")
    monkeypatch.setenv("SHORT_TOKEN", "true")
    assert redact(text) == text


def program(*arguments: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "HF_TOKEN": PASSWORD, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "kd_megatron", *arguments]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("debug", [(), ("--debug",)])
def test_messages_and_tracebacks_of_the_command_line(debug: tuple[str, ...]):
    done = program(f"oops-{PASSWORD}-https://me:{TOKEN}@x", *debug)  # an unknown command: nothing heavy is imported
    assert done.returncode == 2
    assert f"oops-{HIDDEN}" in done.stderr
    assert PASSWORD not in done.stdout + done.stderr
    assert TOKEN not in done.stdout + done.stderr
    assert ("Traceback" in done.stderr) == bool(debug)


def test_a_traceback_of_an_error_that_nobody_expected():
    code = f"import kd_megatron.cli.main as m; m.command_module = lambda name: 1 / len('{TOKEN}'[:0]); m.program()"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, "plan", "r.yaml"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr
    assert TOKEN not in done.stderr


def test_a_dry_run_hides_credentials(tmp_path: Path):
    for name in ("launch.sh", "requirements.txt", "pyproject.toml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / "launch.sh").chmod(0o755)
    environment = {
        **os.environ, "DRY_RUN": "1", "HF_TOKEN": PASSWORD, "KD_PYTHON": sys.executable,
        "KD_PIP_ARGS": f"--extra-index-url https://me:{PASSWORD}@mirror.example/simple",
    }  # fmt: skip
    done = subprocess.run(
        [str(tmp_path / "launch.sh"), "plan", "r.yaml"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0
    assert "@mirror.example/simple" in done.stdout
    assert PASSWORD not in done.stdout + done.stderr


def test_the_facts_of_a_run_hold_no_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", PASSWORD)
    monkeypatch.setenv("KD_ANYTHING", "a-value-of-the-environment")
    facts = str(machine.facts(["torch"]))
    assert PASSWORD not in facts
    assert "a-value-of-the-environment" not in facts
