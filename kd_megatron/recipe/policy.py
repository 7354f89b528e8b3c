"""What hangs on a key of a recipe. It is said once, on the field itself, and read by `kd_megatron.recipe.diff`.

A section's policy holds for its keys, and a key's own adds to it. Who compares recipes asks for a comparison by name,
so that a new key is one line in the file of its section.
"""

from dataclasses import dataclass, replace
from typing import Literal

Comparison = Literal[
    "edit",  # of a study's recipe with the one that it was begun with
    "resume",  # of a run with the one that goes on
    "teacher",  # of a finished teacher with the one that a study asks for
    "laws",  # of studies whose losses are fitted together
    "record",  # of what a run recorded with what the recipe says
    "scores",  # of what a fine-tuning recorded with what the recipe says
    "cell",  # of one fine-tuning with a finished one: what is hashed into its name
    "samples",  # of what two runs read: what is hashed into a run's fingerprint
    "shards",  # of a finished shard set with the one that a recipe asks for
]
Stale = Literal[
    "arm",  # students of the arm whose option it is
    "students",  # of all arms
    "taught",  # students that owe the teacher something
    "teacher",  # the study's own
    "finetune",  # all fine-tunings
]


@dataclass(frozen=True)
class Policy:
    """What a difference in a key means.

    Attributes:
        free: the comparisons in which the key does not count, beside those of its section.
        fixed: the comparisons in which every key below counts, whatever it says itself.
        stale: what an edit makes stale of a study that has begun; None: what the section says.
        grows: how an edit may add to it, so that nothing is stale: a list becomes longer, a switch goes on, or arms
            that are new bring entries of their own.
        of_study: whether it belongs to the study as a whole, so that no arm may override it.
    """

    free: tuple[Comparison, ...] = ()
    fixed: tuple[Comparison, ...] = ()
    stale: tuple[Stale, ...] | None = None
    grows: Literal["longer", "on", "by_arm"] | None = None
    of_study: bool = False

    def __or__(self, other: "Policy") -> "Policy":
        """Both of one key; what ``other`` says of ``stale`` and ``grows`` goes before."""
        fixed = (*self.fixed, *other.fixed)
        free = tuple(one for one in (*self.free, *other.free) if one not in fixed)
        stale = self.stale if other.stale is None else other.stale
        return Policy(free, fixed, stale, other.grows or self.grows, self.of_study or other.of_study)

    def within(self, section: "Policy") -> "Policy":
        """This policy of a key with that of its section, of which only the section itself grows."""
        return replace(section, grows=None) | self

    def makes_stale(self, what: Stale) -> bool:
        """Whether an edit makes it stale."""
        return what in (self.stale or ())

    @property
    def of_run(self) -> bool:
        """Whether each run is given it, of the study or of its own arm."""
        return self.makes_stale("arm") or (not self.of_study and not self.makes_stale("finetune"))


COUNTS = Policy()  # wherever its section does

# What hangs on it.
OF_STUDY = Policy(of_study=True)
OF_ALL = Policy(stale=("students", "teacher"))
OF_STUDENTS = Policy(stale=("students",))
OF_THE_TEACHER = Policy(stale=("taught", "teacher"))
OF_FINETUNING = Policy(stale=("finetune",))
OF_AN_ARM = Policy(stale=("arm",), grows="by_arm", of_study=True)

# How it may grow.
LONGER, ON, BY_ARM = Policy(grows="longer"), Policy(grows="on"), Policy(grows="by_arm")

# Where it does not count.
WORDS = Policy(free=("edit", "laws", "shards"), of_study=True)  # and where results go: no number depends on these
PLACE = Policy(free=("record", "samples", "scores", "cell"))  # where something is read: its content is compared instead
ACROSS = Policy(free=("laws",))  # what studies of one law differ in, or what no loss depends on
ALIKE = Policy(fixed=("laws",))  # studies of one law have it in common, with all that is in it
AT_RESUME = Policy(free=("resume", "teacher"))  # the result stays the same but for rounding (docs/checkpoints.md)
KEPT = AT_RESUME | ACROSS  # what a run keeps of itself
NO_WEIGHT = Policy(free=("teacher",))  # looks on: decides no weight
FOUND_OUT = Policy(free=("record",))  # what the study works out for each run
NO_SCORE = Policy(free=("scores", "cell"))  # changes no score of a fine-tuning
RULE = Policy(free=("edit", "scores", "cell"))  # decides what a page says of scores, and none of them
WHICH_CELLS = Policy(free=("cell",))  # which fine-tunings there are, and which of them is chosen
SPEED = Policy(free=("shards",))
