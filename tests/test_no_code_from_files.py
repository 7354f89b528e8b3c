"""No file that a user is given can run code: the sources hold no call that unpickles, and none that trusts the hub."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted(path for name in ("kd_megatron", "data_prep") for path in (ROOT / name).rglob("*.py"))
FORBIDDEN_CALLS = {
    "torch.load", "torch.hub.load", "pickle.load", "pickle.loads", "pickle.Unpickler", "yaml.load", "yaml.unsafe_load",
    "yaml.full_load", "marshal.loads", "joblib.load", "shelve.open", "eval", "exec", "dill.load", "dill.loads",
}  # fmt: skip
FORBIDDEN_IMPORTS = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
# What reads a model, a tokenizer or a configuration by name: each says that it runs none of its code.
FROM_NAME = ("AutoConfig", "AutoTokenizer", "AutoModelForMaskedLM", "AutoModelForSequenceClassification", "AutoModel")


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def problems(source: str) -> list[str]:
    found = []
    tree = ast.parse(source)
    safe_loaders = {  # subclasses of PyYAML's safe loader, in this very file
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and "yaml.SafeLoader" in map(dotted, node.bases)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = getattr(node, "module", None)
            names = [module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            found += [f"import {name}" for name in names if name.split(".")[0] in FORBIDDEN_IMPORTS]
        if isinstance(node, ast.Call):
            name, options = dotted(node.func), {word.arg: word.value for word in node.keywords}
            if name == "yaml.load" and len(node.args) == 2 and dotted(node.args[1]) in safe_loaders:
                continue
            if name in FORBIDDEN_CALLS:
                found.append(name)
            for option in ("allow_pickle", "trust_remote_code"):
                value = options.get(option)
                if value is not None and not (isinstance(value, ast.Constant) and value.value is False):
                    found.append(f"{name} with {option}")
            owner, _, method = name.rpartition(".")
            if method == "from_pretrained" and owner.split(".")[-1].startswith("AutoModel"):
                safe = options.get("use_safetensors")
                if not (isinstance(safe, ast.Constant) and safe.value is True):
                    found.append(f"{name} without use_safetensors=True")
            if method == "from_pretrained" and owner in FROM_NAME and "trust_remote_code" not in options:
                found.append(f"{name} without trust_remote_code=False")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_source_loads_no_code(path: Path):
    assert problems(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle", "from dill import load", "torch.load(path)", "yaml.load(text)", "yaml.load(text, yaml.Loader)",
        "np.load(path, allow_pickle=True)",
        "AutoTokenizer.from_pretrained(name, trust_remote_code=flag)", "AutoTokenizer.from_pretrained(name)",
        "AutoModelForMaskedLM.from_pretrained(name, trust_remote_code=False)", "eval(text)",
    ],
)  # fmt: skip
def test_the_search_finds_what_it_is_for(line: str):
    assert problems(line)


def test_the_search_leaves_the_rest_alone():
    assert problems("yaml.safe_load(text)\nmodel.eval()\nnp.load(path, allow_pickle=False)\nload_file(path)") == []
