"""What a recipe may say. Three kinds: `CorpusRecipe`, `StudyRecipe` (a run is a study with one arm), `FinetuneRecipe`.

All paths are relative to the directory the command runs from (`launch.sh` runs from the repository's root).
The options of an objective belong to that objective (`kd_megatron/objectives/`), not to these files.
"""

from kd_megatron.recipe.budget import TRAINING_ACCOUNTS, Account, Budget, BudgetRecipe, CalibratedSteps, CalibrateRecipe
from kd_megatron.recipe.controls import ControlsRecipe
from kd_megatron.recipe.corpus import CleanRecipe, CorpusRecipe, SourceRecipe, TokenizerRecipe, TrainTokenizerRecipe
from kd_megatron.recipe.finetune import FinetuneRecipe, GridRecipe, InclusionRecipe, SelectionRecipe, TaskRecipe
from kd_megatron.recipe.models import (
    EncoderRecipe,
    InitialiseRecipe,
    TeacherCacheRecipe,
    TeacherRecipe,
    TeacherTrainingRecipe,
)
from kd_megatron.recipe.study import DataRecipe, ShardsRecipe, StudyGridRecipe, StudyRecipe
from kd_megatron.recipe.training import MarkersRecipe, TrainingRecipe, TuningRecipe, ValidationRecipe
from kd_megatron.recipe.types import LARGEST_SEED, Count, Fraction, Positive, Precision, Seed
