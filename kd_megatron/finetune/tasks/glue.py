"""The nine GLUE tasks (Wang et al. 2019): where their columns are, their labels, metrics and official sizes.

A split whose row count is not the official one is partial or a substitute, and is named so.
"""

from dataclasses import dataclass, field

HUB_DATASET = "nyu-mll/glue"
HUB_REVISION = "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c"  # whose row counts are the official ones below
AX = "AX"  # GLUE's diagnostic set: pairs for MNLI's classifier, a test split of MNLI here
COLA_COLUMNS = ("source", "label", "mark", "sentence")  # CoLA's files have no header line


@dataclass(frozen=True)
class GlueTask:
    """One task of GLUE."""

    text: tuple[str, ...]  # columns of the local files
    num_train: tuple[int, ...]  # official sizes
    num_dev: dict[str, int]  # name of the dev split -> official size; the first one decides the score
    num_test: dict[str, int]  # name of the test split -> official size; their labels are the GLUE server's secret
    labels: tuple[str, ...] = ("0", "1")  # local spelling, in the hub's order; empty for regression
    metric: str = "accuracy"
    label: str = "label"
    header: tuple[str, ...] | None = None
    hub_name: str = ""
    hub_text: tuple[str, ...] = ()  # where the hub names the columns differently
    max_torn_rows: int = 0
    hub_splits: dict[str, str] = field(default_factory=dict)  # where the hub names the splits differently

    def hub_split(self, split: str) -> str:
        """What the hub calls the split ``split``."""
        return self.hub_splits.get(split, "validation" if split == "dev" else split)


PAIR = ("sentence1", "sentence2")
ENTAILMENT = ("entailment", "not_entailment")

GLUE: dict[str, GlueTask] = {
    "CoLA": GlueTask(
        ("sentence",),
        (8551,),
        {"dev": 1043},
        {"test": 1063},
        metric="matthews",
        header=COLA_COLUMNS,
        hub_name="cola",
    ),
    "SST-2": GlueTask(("sentence",), (67349,), {"dev": 872}, {"test": 1821}, hub_name="sst2"),
    "MRPC": GlueTask(
        ("#1 String", "#2 String"),
        (3668,),
        {"dev": 408},
        {"test": 1725},
        metric="f1_accuracy",
        label="Quality",
        hub_name="mrpc",
        hub_text=PAIR,
    ),
    "STS-B": GlueTask(
        PAIR,
        (5749,),
        {"dev": 1500},
        {"test": 1379},
        labels=(),
        metric="pearson_spearman",
        label="score",
        hub_name="stsb",
    ),
    "QQP": GlueTask(
        ("question1", "question2"),
        (363846, 363849),  # without and with the torn rows of GLUE's own file
        {"dev": 40430},
        {"test": 390965},
        metric="f1_accuracy",
        label="is_duplicate",
        hub_name="qqp",
        max_torn_rows=5,
    ),
    "MNLI": GlueTask(
        PAIR,
        (392702,),
        {"dev_matched": 9815, "dev_mismatched": 9832},
        {"test_matched": 9796, "test_mismatched": 9847, AX: 1104},
        labels=("entailment", "neutral", "contradiction"),
        label="gold_label",
        hub_name="mnli",
        hub_text=("premise", "hypothesis"),
        hub_splits={"dev_matched": "validation_matched", "dev_mismatched": "validation_mismatched"},
    ),
    "QNLI": GlueTask(
        ("question", "sentence"), (104743,), {"dev": 5463}, {"test": 5463}, labels=ENTAILMENT, hub_name="qnli"
    ),
    "RTE": GlueTask(PAIR, (2490,), {"dev": 277}, {"test": 3000}, labels=ENTAILMENT, hub_name="rte"),
    "WNLI": GlueTask(PAIR, (635,), {"dev": 71}, {"test": 146}, hub_name="wnli"),
}


def difference_to_official(name: str, num_train: int, num_dev: dict[str, int]) -> str:
    """Empty for the official splits; otherwise what differs, for every table that shows the score."""
    task = GLUE[name]
    parts = [] if num_train in task.num_train else [f"train {num_train} of {task.num_train[0]}"]
    for split, size in num_dev.items():
        official = task.num_dev.get(split, next(iter(task.num_dev.values())))
        if split not in task.num_dev or size != official:
            parts.append(f"{split} {size} of {official}")
    return f"not GLUE's split: {', '.join(parts)}" if parts else ""
