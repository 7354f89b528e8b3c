"""What a study's report says, top to bottom: its blocks for the page, and every table for csv."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from kd_megatron import __version__
from kd_megatron.analysis import comparisons
from kd_megatron.analysis.break_even import BreakEven, common_cost
from kd_megatron.analysis.laws import Laws
from kd_megatron.analysis.results import StudyResults
from kd_megatron.analysis.run_checks import Finding
from kd_megatron.analysis.scaling import Refusal
from kd_megatron.console.units import budget_in_words, num_seeds
from kd_megatron.inputs.catalogue import catalogue, needed
from kd_megatron.recipe.diff import Difference, flatten
from kd_megatron.report.page.document import Block, Bullets, Details, Heading, Paragraph, TableBlock
from kd_megatron.report.page.page import figure_blocks, table_blocks
from kd_megatron.report.page.table import Column, Table
from kd_megatron.report.study import (
    break_even_table,
    certainty_tables,
    curve_figures,
    figures,
    inclusion_table,
    own_heads,
    probe_table,
    published,
    run_details,
    scaling_table,
    tables,
    tuning_tables,
)
from kd_megatron.report.study.answer import answer
from kd_megatron.report.study.caveats import caveats
from kd_megatron.report.study.protocol import protocol_blocks, registration_fact

CAPTIONS = {
    "scores": "Score of each arm. Filled marker: mean over seeds, with its 95 % interval from two seeds on; open "
    "circles: single seeds; dashed line: mean of the reference arm.",
    "own_heads": "Held-out masked-language-model loss by the students' own heads, where the objective trains one. "
    "Filled marker: mean over seeds, with its 95 % interval; open circles: single seeds; dashed line: mean of the "
    "reference arm.",
    "scores_by_task": "The same for each task.",
    "loss": "Held-out masked-language-model loss of the same probe head for all arms, against tokens seen (left) and "
    "against the budget (right). Thin lines: single seeds; thick lines: their mean.",
    "score_against_tokens": "Score against the tokens that each arm saw within the budget. Open: single seeds; filled: "
    "their mean.",
    "score_against_budget": "Score at each marker of the budget, of a branch that ended there, and at the end. Thin "
    "lines: single seeds; thick lines: their mean.",
    "loss_against_budget": "Held-out loss of the same probe head, of branches and at the end, against the budget.",
    "cola_against_tokens": "CoLA against the tokens seen, of branches that ended at the markers, and at the end.",
    "scaling": "Held-out loss against tokens, and the laws through it with their 95 % bands. Pale, if any: students of "
    "other sizes than this study's, which the laws are drawn for.",
    "break_even": "How many students must share the teacher before an arm, teacher's training included, is the cheaper "
    "way to what the reference reaches with a budget. Bars at the right: 95 % intervals over seeds at the full budget; "
    "one that leaves the figure includes never. Dashed: the students of this study.",
    "ledger": "Where the time (left) and the FLOPs (right) of one student went, mean over seeds.",
}
BOUGHT = (
    *(figures.loss, figures.score_against_tokens, curve_figures.score_against_budget),
    *(curve_figures.loss_against_budget, curve_figures.cola_against_tokens),
)


@dataclass(frozen=True)
class Analysis:
    """What is worked out once, for text, tables and figures alike."""

    findings: list[Finding]
    allowed: list[Difference]
    laws: Laws
    break_evens: list[BreakEven]


def all_tables(study: StudyResults, analysis: Analysis) -> list[Table]:
    """Every table, for csv."""
    found = [tables.scores(study), tables.spending(study), tables.runs(study), run_details.losses(study)]
    found += [tables.ledger(study, unit) for unit in ("seconds", "flops")]
    optional = (
        *certainty_tables.differences(study),
        certainty_tables.variance(study),
        inclusion_table.table(study),
        own_heads.table(study),
        probe_table.table(study),
        published.rows(study),
        tables.teacher_cost(study),
        break_even_table.table(study, analysis.break_evens, analysis.laws.of_own_size),
        scaling_table.table(study, analysis.laws),
        tuning_tables.tuning(study),
        tuning_tables.calibration(study),
    )
    found += [table for table in optional if table]
    found.append(tables.fairness_checks(analysis.findings))
    return [*found, tables.allowed_differences(analysis.allowed, list(study.recipe.arms))]


def content(study: StudyResults, found: Analysis, tables: Sequence[Table]) -> list[Block]:
    """The report, top to bottom: answer, tables, figures, teacher's cost, caveats, method; of `all_tables`."""
    shown = partial(table_blocks, tables)
    blocks: list[Block] = [Paragraph(answer(study), lead=True)]
    if study.missing:
        blocks.append(Paragraph(f"Not finished: {len(study.missing)} pieces are missing, listed under the caveats."))
    if study.recipe.description:
        blocks.append(Paragraph(study.recipe.description))
    if study.arms:
        blocks += [*shown("scores"), *figure_blocks(CAPTIONS, (figures.scores, figures.scores_by_task), study)]
        blocks += shown("inclusion")
        if by_own_heads := shown("own_heads"):
            blocks += [*by_own_heads, *figure_blocks(CAPTIONS, [own_heads.own_heads], study)]
        if probes := [block.table for block in shown("probes") if isinstance(block, TableBlock)]:
            blocks.append(Details(probes[0].title, [TableBlock(replace(probes[0], title=""))]))
        blocks += _certainty(study, shown)
        if there := published.beside(study):
            blocks += [Heading("Beside the published study"), *there]
        blocks += [Heading("What the budget bought"), *shown("spending"), *figure_blocks(CAPTIONS, BOUGHT, study)]
        blocks += [Heading("Where the budget went"), *figure_blocks(CAPTIONS, [figures.ledger], study)]
        blocks.append(Details("The same in numbers", shown("ledger_seconds", "ledger_flops")))
        if cost := shown("teacher_cost"):
            why_not = common_cost(study)
            blocks += [Heading("With the teacher's own training counted"), *cost]
            blocks += [Paragraph(why_not)] if why_not else shown("break_even")
            blocks += figure_blocks(CAPTIONS, [curve_figures.break_even], study, found.break_evens)
        blocks += [Heading("More text, more budget"), *_laws(found.laws, shown("scaling"))]
        blocks += figure_blocks(CAPTIONS, [curve_figures.scaling], study, found.laws)
    if before := shown("tuning", "calibration"):
        blocks += [Heading("Before training"), *before]
    blocks += protocol_blocks(study)
    blocks += [Heading("Caveats"), Bullets(caveats(study, found.findings, found.allowed))]
    return [*blocks, Heading("Method"), *_method(study, found, shown)]


def _laws(laws: Laws, table: list[Block]) -> list[Block]:
    """The laws and what the data cannot say, or why there is none."""
    refused: dict[str, list[str]] = {}
    for arm, law in laws.fits.items():
        if isinstance(law, Refusal):
            refused.setdefault(law.reason, []).append(arm)
    said = [f"{', '.join(arms)}: {reason}." for reason, arms in refused.items()]
    return [*table, Bullets(laws.warnings + said)] if table else [Paragraph(sentence) for sentence in said]


def _certainty(study: StudyResults, shown: Callable[..., list[Block]]) -> list[Block]:
    """How sure the differences are, or why that cannot be said."""
    heading = Heading("How sure the differences are")
    if why_not := comparisons.missing_seeds(study):
        return [heading, Paragraph(why_not)]
    found = shown("differences", "differences_by_task", "differences_of_pairs")
    folded = [block.table for block in [*found[1:], *shown("variance")] if isinstance(block, TableBlock)]
    details = [Details(table.title, [TableBlock(replace(table, title=""))]) for table in folded]
    return [heading, found[0], *details] if found else []


def _method(study: StudyResults, found: Analysis, shown: Callable[..., list[Block]]) -> list[Block]:
    recipe = study.recipe
    student = recipe.student
    facts = [
        f"Student: {student.architecture}, {student.num_layers} layers, hidden size {student.hidden_size}, "
        f"{student.num_attention_heads} attention heads; {_parameters(study)}; weights at first: "
        f"{published.by_arm(study, published.first_weights)}.",
        f"Teacher: {_teacher(study)}.",
        f"Budget: {budget_in_words(recipe.budget)} for each student; charged: {', '.join(recipe.budget.charge)}.",
        f"Data: {', '.join(shards.path for shards in recipe.data.shards)}; sequence length "
        f"{recipe.data.sequence_length}, {100 * recipe.data.mask_fraction:g} % masked"
        + (f", pool capped at {recipe.data.unique_tokens:,} unique tokens." if recipe.data.unique_tokens else "."),
        *_inputs(study),
        f"Optimisation: {_optimisation(study)}.",
        f"Seeds: {', '.join(map(str, recipe.seeds))}. Arms with the same seed see the same batches, masked alike.",
        f"Statistics: means over seeds with intervals at 95 % ({certainty_tables.INTERVALS[study.interval]}); "
        "differences are taken seed by seed, corrected as their table says (docs/statistics.md).",
        *registration_fact(study),
    ]
    blocks: list[Block] = [Bullets(facts), *(shown("fairness") if found.findings else [])]
    if found.allowed:
        blocks += shown("allowed_differences")
    else:
        blocks.append(Paragraph("Allowed differences between arms beside the objective: none."))
    if study.arms:
        blocks.append(Details("Every run", [*shown("runs"), *run_details.run_details(study)]))
        blocks.append(Details("Commit, versions, hardware, data", [TableBlock(_fingerprint(study))]))
    return blocks


def _inputs(study: StudyResults) -> list[str]:
    """What the study read that is not in the repository, and where it is to be had."""
    known = catalogue().inputs
    read = [name for name in needed(study.recipe.model_dump(mode="json")) if name in known]
    if not read:
        return []
    listed = "; ".join(
        f"{name} ({known[name].bytes / 1e6:,.1f} MB, {known[name].licence}, {known[name].origin})" for name in read
    )
    return [f"Inputs that are not in the repository (./launch.sh inputs RECIPE says how to get each): {listed}."]


def _optimisation(study: StudyResults) -> str:
    """What the arms really train with: tuning and overrides included."""
    return ", ".join(
        [
            f"batch {published.by_arm(study, lambda arm: str(arm.training.global_batch_size))} sequences",
            f"learning rate {published.by_arm(study, lambda arm: f'{arm.training.learning_rate:g}')}",
            f"{published.by_arm(study, lambda arm: arm.training.schedule)} schedule over the budget",
            f"warm-up {published.by_arm(study, lambda arm: f'{100 * arm.training.warmup_fraction:g} %')}",
            published.by_arm(study, lambda arm: arm.training.precision),
            f"DeepSpeed {published.by_arm(study, lambda arm: arm.training.ds_config)}",
        ]
    )


def _parameters(study: StudyResults) -> str:
    counts = sorted({run.summary.parameters for run in study.all_runs()})
    return f"{' or '.join(f'{number:,}' for number in counts) or 'not yet known number of'} parameters"


def _teacher(study: StudyResults) -> str:
    recipe = study.recipe.teacher
    if recipe is None:
        return "none"
    taught = next((run.summary.teacher for run in study.all_runs() if run.summary.teacher), None)
    size = f", {taught.parameters:,} parameters" if taught and taught.parameters else ""
    return f"{recipe.path or 'trained first by this study, on the same data'}{size}, frozen, {recipe.precision}"


def _fingerprint(study: StudyResults) -> Table:
    run = study.all_runs()[0]
    flat = flatten(run.summary.fingerprint or {})
    columns = [Column("key", "entry", is_text=True), Column("value", "value", is_text=True)]
    title = f"Recorded by {run.arm}, seed {run.seed}; the fairness check compares it with the others"
    return Table("fingerprint", title, columns, [{"key": key, "value": value} for key, value in flat.items()])


def subtitle(study: StudyResults) -> str:
    """One line below the title: how much was compared."""
    arms, seeds = len(study.recipe.arms), num_seeds(len(study.recipe.seeds))
    budget = budget_in_words(study.recipe.budget)
    return f"{arms} arms, {seeds}, {budget} for each student. kd_megatron {__version__}."
