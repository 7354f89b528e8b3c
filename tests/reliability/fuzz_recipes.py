"""Mutated recipes: each ends in a clear message, or is a recipe that means what it says.

    python -m tests.reliability.fuzz_recipes --cases 500

Shipped recipes of every kind are mutated as values, as text,
and by overrides on the command line. An accepted one must
hold every key that was given with the value that was given, read back equal after it is written, and (a study) be
planned or refused clearly. Anything else (another exception, a value dropped or made another one) is a failure,
printed
with the seed of its case: ``--cases 1 --seed S`` does it again. Ends with 1 when a case failed.
"""

import argparse
import copy
import io
import os
import random
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a teacher's name is mutated too: nothing is asked of the network

import yaml

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = sorted(path for path in (ROOT / "recipes").rglob("*.yaml"))
REFUSED, MEANT, UNPLANNED = "refused", "accepted, means what it says", "accepted, its plan is refused"
SECONDS_PER_CASE = 120  # a hang; large sizes take a while to plan where others use the machine

NUMBERS = [
    0, -1, 1, 3.0, 2.5, 10**18, 10**30, 2**63, -(2**63), 1e308, -1e308, 1e-320, float("nan"), float("inf"), -0.0,
    10**400,
]  # fmt: skip
TEXTS = ["", " ", "yes", "no", "1e9", "0x1f", "010", "1:30", "null", "~", "NaN", "5", "true", "a" * 100_000, "../../x",
         "/etc/passwd", "ü", "\u202e", "😀", "a\nb", "a: b", "%s", "{x}", "[bold]", "s3://bucket/x", "-",
         "."]  # fmt: skip
VALUES: list[Any] = [*NUMBERS, *TEXTS, None, True, False, [], {}, [[]], [None], {"a": 1}, {"": ""}, [1, 1], ["x", 3]]
# Pieces of text in place of a value: what YAML makes of them is the question.
PIECES = [
    "yes", "010", "1:30", "1_000", "0x10", "0o17", "1e9", ".inf", ".nan", "-.inf", "2024-01-01",
    "!!python/object/apply:os.system ['true']",
    "!!python/name:os.system", "!!binary aGk=", "!!set {a, b}", "!!str 5", "!!int '5'", "!!float 3", "!!bool yes",
    "!unknown x",
    "*missing", "&a [*a]", "&a {b: *a}", "{<<: {seed: 1}}", "{a: 1, a: 2}", "{1: 2}", "{? [a] : b}", "{null: 1}",
    "'\\0'", '"\\0"', '"\\ud800"',
    '"\\x1b[31m"', "[" * 3000, "{a: " * 3000, "[" * 40 + "]" * 40, "[" * 60 + "]" * 60, "9" * 5000, "|\n  x", "@x",
    "`x`", "%x", "\tx", "x: y: z", "- x", "'", '"', "#", "---", "...",
]  # fmt: skip
LAUGHS = "x0: &x0 [1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"x{i}: &x{i} [{', '.join([f'*x{i - 1}'] * 9)}]\n" for i in range(1, 12)
)


def main(arguments: list[str] | None = None) -> int:
    """Run the cases and print the tally; 1 when one failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.reliability.fuzz_recipes", description=__doc__)
    parser.add_argument("--cases", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0, help="of the first case; the others follow")
    args = parser.parse_args(arguments)
    tally: Counter[tuple[str, str]] = Counter()
    failures: list[str] = []
    with tempfile.TemporaryDirectory(prefix="fuzz_recipes_") as directory:
        for seed in range(args.seed, args.seed + args.cases):
            name, outcome = run_case(seed, Path(directory) / "recipe.yaml")
            if outcome not in (REFUSED, MEANT, UNPLANNED):
                failures.append(f"seed {seed} ({name}): {outcome[-1500:]}")
                outcome = "FAILED"
            tally[name, outcome] += 1
    for (name, outcome), count in sorted(tally.items()):
        print(f"{count:6}  {name:<20} {outcome}")
    print("\n".join(failures[:20]))
    print(f"{args.cases} cases, {len(failures)} failed")
    return 1 if failures else 0


def run_case(seed: int, path: Path) -> tuple[str, str]:
    """The mutation and how it ended; anything but the three good ends is what went wrong."""
    rng = random.Random(seed)
    shipped = rng.choice(SHIPPED)
    mutate = rng.choice(MUTATIONS)
    text, overrides = mutate(rng, shipped.read_text(encoding="utf-8"))
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", errors="surrogatepass"))
    signal.signal(signal.SIGALRM, _hang)
    signal.alarm(SECONDS_PER_CASE)
    try:
        return mutate.__name__, judge(path, overrides)
    except Exception:
        return mutate.__name__, traceback.format_exc(limit=-4)
    finally:
        signal.alarm(0)


def _hang(number: int, frame: Any) -> None:
    raise TimeoutError(f"more than {SECONDS_PER_CASE} s")


def judge(path: Path, overrides: list[str]) -> str:
    """Load the recipe as a command does, then hold it to what was given."""
    from kd_megatron import recipe as schema
    from kd_megatron.errors import KdError, RecipeError
    from kd_megatron.recipe import config, recipe_yaml

    kinds = {"corpus": schema.CorpusRecipe, "study": schema.StudyRecipe, "finetune": schema.FinetuneRecipe}
    try:
        given = config.read_yaml(path)
        expected = kinds.get(str(given.get("kind")), schema.StudyRecipe)
        recipe = config.load(path, expected, overrides)
    except RecipeError as error:
        return require_clear(error)
    for override in overrides:
        config.apply_override(given, override)
    read = recipe.model_dump()
    require_held(given, read, "")
    path.write_text(recipe_yaml.dump(recipe.model_dump(mode="json")), encoding="utf-8")
    if config.load(path, expected) != recipe:
        raise AssertionError("written and read again, it is another recipe")
    if not isinstance(recipe, schema.StudyRecipe):
        return MEANT
    try:
        show_plan(recipe)
    except KdError as error:
        require_clear(error)
        return UNPLANNED
    return MEANT


def require_clear(error: Any) -> str:
    """An exit code of its own, a message that a terminal can show, of bearable length."""
    message = str(error)
    message.encode("utf-8")
    if not 2 <= error.exit_code <= 5 or len(message) > 20_000 or not error.given:
        raise AssertionError(f"exit code {error.exit_code}, {len(message)} characters: {message[:300]}")
    return REFUSED


def require_held(given: Any, read: Any, key: str) -> None:
    """Every key given is there, with the value given: the same number, text, truth or nothing."""
    if isinstance(given, dict) and isinstance(read, dict):
        for name, value in given.items():
            if name not in read:
                raise AssertionError(f"{key}.{name} was dropped")
            require_held(value, read[name], f"{key}.{name}")
    elif isinstance(given, list) and isinstance(read, list | tuple):
        if len(given) != len(read):
            raise AssertionError(f"{key}: {len(given)} values became {len(read)}")
        for place, (one, other) in enumerate(zip(given, read, strict=True)):
            require_held(one, other, f"{key}.{place}")
    else:
        texts_or_truths = [isinstance(value, str | bool) for value in (given, read)]
        if (
            given != read
            or (texts_or_truths[0] and type(given) is not type(read))
            or texts_or_truths[0] != texts_or_truths[1]
        ):
            raise AssertionError(f"{key}: {given!r} became {read!r}")


def show_plan(recipe: Any) -> None:
    from rich.console import Console

    from kd_megatron.planner import plan, plan_view

    output = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    plan_view.show(plan.plan(recipe), Console(file=output, width=120))


# --- mutations: a recipe's text -> (text or bytes, overrides) ---------------------------------------------

Mutated = tuple[str | bytes, list[str]]


def _places(raw: Any, found: list[tuple[Any, Any]] | None = None) -> list[tuple[Any, Any]]:
    """Every (container, key) in ``raw``."""
    found = [] if found is None else found
    for key in list(raw) if isinstance(raw, dict) else range(len(raw)):
        found.append((raw, key))
        if isinstance(raw[key], dict | list):
            _places(raw[key], found)
    return found


def _edited(rng: random.Random, text: str, edit: Callable[[Any, Any], None]) -> Mutated:
    raw = yaml.safe_load(text)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        edit(*rng.choice(_places(raw)))
    return yaml.safe_dump(raw, sort_keys=False), []


def dropped_key(rng: random.Random, text: str) -> Mutated:
    return _edited(rng, text, lambda place, key: place.pop(key))


def other_value(rng: random.Random, text: str) -> Mutated:
    return _edited(rng, text, lambda place, key: place.__setitem__(key, copy.deepcopy(rng.choice(VALUES))))


def other_number(rng: random.Random, text: str) -> Mutated:
    raw = yaml.safe_load(text)
    numbers = [(place, key) for place, key in _places(raw) if isinstance(place[key], int | float)]
    place, key = rng.choice(numbers or _places(raw))
    place[key] = rng.choice([*NUMBERS, 2, 7, 13, 100, 1000, 0.5, 0.01])
    return yaml.safe_dump(raw, sort_keys=False), []


def misspelt_key(rng: random.Random, text: str) -> Mutated:
    def edit(place: Any, key: Any) -> None:
        if isinstance(place, dict):
            name = list(str(key))
            name[rng.randrange(len(name))] = rng.choice("abcxyz_- ")
            place["".join(name)] = place.pop(key)

    return _edited(rng, text, edit)


def exchanged_values(rng: random.Random, text: str) -> Mutated:
    raw = yaml.safe_load(text)
    (one, key), (other, its) = rng.choice(_places(raw)), rng.choice(_places(raw))
    one[key], other[its] = copy.deepcopy(other[its]), copy.deepcopy(one[key])
    return yaml.safe_dump(raw, sort_keys=False), []


def odd_arm(rng: random.Random, text: str) -> Mutated:
    raw = yaml.safe_load(text)
    arm: Any = rng.choice([
        {"objective": "miniln"}, {"objective": 3}, {}, None, [], {"objective": "scratch",
        "training.learning_rate": 1e-3},
        {"objective": "scratch", "budget.hours": 1}, {"objective": "minilm", "num_relation_heads": rng.choice(VALUES)},
        {"objective": "vanilla_kd", "temperature": rng.choice(VALUES)}, {"objective": "scratch", "a.b.c": 1},
        {"objective": "scratch", "..": 1}, {"objective": "tinybert", "backend": "cuda"},
    ])  # fmt: skip
    raw["arms"] = {**(raw.get("arms") or {}), rng.choice(["odd", "", "a b", "a/b", "scratch"]): arm}
    if rng.random() < 0.5:
        raw["allow_difference"] = rng.choice(
            [["training"], ["training.learning_rate"], ["budget"], ["nothing"], [""], ["a"]]
        )
    return yaml.safe_dump(raw, sort_keys=False), []


def piece_of_text(rng: random.Random, text: str) -> Mutated:
    """A scalar of the file replaced by a piece of YAML."""
    lines = text.splitlines()
    places = [i for i, line in enumerate(lines) if ": " in line and not line.lstrip().startswith("#")]
    at = rng.choice(places)
    lines[at] = lines[at].split(": ")[0] + ": " + rng.choice(PIECES)
    return "\n".join(lines), []


def repeated_key(rng: random.Random, text: str) -> Mutated:
    lines = text.splitlines()
    places = [i for i, line in enumerate(lines) if ":" in line and not line.lstrip().startswith(("#", "-"))]
    at = rng.choice(places)
    lines.insert(at + rng.choice([0, 1]), lines[at].split(":")[0] + ": " + rng.choice(["1", "x", "{}", "[]"]))
    return "\n".join(lines), []


def aliases(rng: random.Random, text: str) -> Mutated:
    """Anchors and merge keys that mean what they say, and some that stand for billions of values."""
    sections = {
        "seeds": "&s [0, 1]\nallow_difference: *s",
        "notes": "&n [x]\nallow_difference: *n",
        "training": "&t {learning_rate: 1.0e-3}",
        "description": "&d x\nnotes: [*d, *d]",
        "validation": "{<<: {num_samples: 8}, probe_steps: 2}",
        "budget": "{<<: [{tokens: 1.0e+6}, {hours: 2}]}",
    }
    key = rng.choice(list(sections))
    if rng.random() < 0.3:
        return text + "\n" + LAUGHS, []
    if rng.random() < 0.3:
        return LAUGHS.replace("x11:", "seeds:") + text, []
    raw = yaml.safe_load(text)
    raw.pop(key, None)
    return yaml.safe_dump(raw, sort_keys=False) + f"{key}: {sections[key]}\n", []


def broken_bytes(rng: random.Random, text: str) -> Mutated:
    content = bytearray(text.encode())
    for _ in range(rng.choice([1, 1, 3, 20])):
        at = rng.randrange(len(content))
        action = rng.choice(["flip", "set", "cut", "insert", "end"])
        if action == "flip":
            content[at] ^= 1 << rng.randrange(8)
        elif action == "set":
            content[at] = rng.randrange(256)
        elif action == "cut":
            del content[at : at + rng.choice([1, 10, 100])]
        elif action == "insert":
            content[at:at] = rng.choice(
                [b"\xff", b"\xfe\xff", b"\0", "\u2028".encode(), b"\t", b"\xed\xa0\x80", b"\r", "\ufeff".encode()]
            )
        else:
            del content[at:]
        if not content:
            break
    return bytes(content), []


def other_encoding(rng: random.Random, text: str) -> Mutated:
    return rng.choice(
        [text.encode("utf-16"), text.encode("utf-8-sig"), text.encode("utf-32"), b"\0" * 100, b"", b"[]", b"3"]
    ), []


def override(rng: random.Random, text: str) -> Mutated:
    raw = yaml.safe_load(text)
    keys = ["seeds", "budget.hours", "budget.tokens", "training.learning_rate", "name", "arms.x.objective",
    "data.seed",
            "", ".", "a..b", "seeds.0", "training", ".".join("a" * 3000), *map(str, raw)]  # fmt: skip
    values = [
        *PIECES,
        *(str(value) for value in NUMBERS if value != 10**400),
        *TEXTS[:-20],
        "=",
        "a=b",
        "[1, 2]",
        "{x: 1}",
    ]
    chosen = [
        rng.choice(keys) + rng.choice(["=", "=", "=", "=", ""]) + rng.choice(values)
        for _ in range(rng.choice([1, 1, 2]))
    ]
    return text, chosen


MUTATIONS = [
    dropped_key, other_value, other_value, other_number, misspelt_key, exchanged_values, odd_arm, piece_of_text,
    piece_of_text,
    repeated_key, aliases, broken_bytes, other_encoding, override, override,
]  # fmt: skip

if __name__ == "__main__":
    os.chdir(ROOT)  # paths of recipes are relative to the repository
    sys.exit(main())
