"""The published setting, modelled, as a table for a terminal, and what of it is put in and what reconstructed."""

from rich.console import Console

from benchmarks.published_study.published_code import ANCHOR, SOURCE, AsPublished, PublishedArm
from kd_megatron.console import units
from kd_megatron.console.logs import new_table
from kd_megatron.report.study.published import REFERENCE


def show(modelled: AsPublished, console: Console) -> None:
    """Print it."""
    setting = modelled.setting
    console.print(f"[bold]{setting.name}, {setting.hours:g} hours[/bold], as {SOURCE} computes it")
    table = new_table("Tokens", "arm", "published", "reconstructed", "of No-KD", "range over GPUs")
    for row in modelled.rows:
        given = " (put in)" if setting == ANCHOR and row.arm == REFERENCE else ""
        spread = f"{units.count(row.lowest)} to {units.count(row.highest)}"
        ratio = units.ratio(modelled.ratio(row))
        reconstructed = units.count(row.reconstructed_tokens) + given
        table.add_row(row.arm, units.count(row.published_tokens), reconstructed, ratio, spread)
    console.print(table)
    table = new_table("FLOPs per token, and what the same FLOPs buy here", "arm", "there", "here", "tokens here")
    for row in modelled.rows:
        flops = (units.flops(row.flops_per_token_there), units.flops(row.flops_per_token_here))
        table.add_row(row.arm, *flops, units.count(row.tokens_here))
    console.print(table)
    for line in _remarks(modelled):
        console.print(line, style="dim")


def _remarks(modelled: AsPublished) -> list[str]:
    rows = modelled.rows
    worst = max((abs(row.reconstructed_tokens / row.published_tokens - 1.0) for row in rows), default=0.0)
    ratios = [modelled.ratio(row) for row in rows if row.arm != REFERENCE]
    published = [row.published_tokens / rows[0].published_tokens for row in rows if row.arm != REFERENCE]
    return [
        f"Put in: one published number, No-KD's {units.count(ANCHOR.tokens[REFERENCE])} tokens in {ANCHOR.hours:g} "
        f"hours at {ANCHOR.name}. It means that the study's code reached {units.percent(modelled.efficiency)} of the "
        f"rates of {modelled.gpu.name}, the GPU assumed here (the study's is not known to us). The same share is taken "
        "for all arms and settings; everything else is reconstructed.",
        f"Reconstructed: distillation arms see {min(ratios):.2f} to {max(ratios):.2f} of No-KD's tokens (published: "
        f"{min(published):.2f} to {max(published):.2f}). No count is further than {units.percent(worst)} from the "
        "published one.",
        "Counted: matrix products and bytes of every kernel of a step of 256 x 128 tokens (benchmarks/published_study/"
        "eager_step.py): eager attention, the MLM heads of both models at masked positions (of the teacher's that is "
        "assumed), read or not, the whole teacher with dropout, and losses written out. Not counted: validation; what "
        "the host does, which is more in distillation arms, as they alone log GPU scalars in every micro-batch and "
        "look for the masked positions twice; and the optimizer, alike in all arms, which would bring them closer "
        "together.",
        "Tokens here: for the FLOPs of the study's run of that arm. Fused losses and attention move fewer bytes as "
        "well, which no count of FLOPs shows; docs/performance.md has what was measured.",
        *(line for row in rows if (line := _levers(row))),
    ]


def _levers(row: PublishedArm) -> str:
    saved = [
        f"{lever} {units.percent(flops / row.flops_per_token_there)}" for lever, flops in row.saved.items() if flops
    ]
    return f"{row.arm}, FLOPs not spent here: {', '.join(saved)}." if saved else ""
