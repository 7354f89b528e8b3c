"""A plan as tables for a terminal."""

from rich.console import Console
from rich.table import Table

from kd_megatron.console import units
from kd_megatron.console.logs import new_table
from kd_megatron.console.units import budget_in_words, num_seeds
from kd_megatron.engine.batch_split import smaller_than_asked
from kd_megatron.planner.plan import Plan
from kd_megatron.planner.plan_arms import ArmPlan
from kd_megatron.planner.plan_power import EFFECTS, PowerPlan
from kd_megatron.planner.plan_speed import Speed
from kd_megatron.recipe import StudyRecipe, TeacherCacheRecipe
from kd_megatron.study.power import ENOUGH, VERDICT_EFFECT

GIB = 2**30


def show(planned: Plan, console: Console) -> None:
    """Print the plan."""
    recipe = planned.recipe
    console.print(f"[bold]{recipe.name}[/bold]  {recipe.description}".rstrip())
    first = planned.arms[0].cost
    teacher = max(entry.cost.teacher_parameters for entry in planned.arms)
    console.print(
        f"student {units.count(first.student_parameters)} parameters, "
        f"teacher {units.count(teacher) + ' parameters' if teacher else 'none'}, "
        f"vocabulary {planned.vocab_size:,} ({planned.vocab_source})"
    )
    runs = len(planned.arms) * len(recipe.seeds)
    each = budget_in_words(recipe.budget)
    seeds = num_seeds(len(recipe.seeds))
    console.print(f"budget {each} for each student; {len(planned.arms)} arms x {seeds} = {runs} students")
    if recipe.teacher and recipe.teacher.train:
        console.print(f"and {budget_in_words(recipe.teacher.train.budget)} for the teacher, trained first")
    console.print(_cost_table(planned))
    console.print(_tokens_table(planned))
    if planned.cells:
        console.print(_cells_table(planned))
    console.print(_totals_table(planned))
    if planned.power:
        console.print(_power_table(planned.power))
        console.print(_power_in_words(planned.power), style="dim")
    for line in _remarks(planned):
        console.print(line, style="dim")
    console.print(_memory_table(planned))


def _cost_table(planned: Plan) -> Table:
    title = "FLOPs per token, forward and backward; student and teacher without their MLM heads"
    table = new_table(title, "arm", "student", "teacher", "heads", "loss", "total", "teacher %")
    cached = _cache(planned.recipe) is not None
    if cached:
        table.add_column("repeats", justify="right", no_wrap=True)
    for entry in planned.arms:
        cost = entry.cost
        student = cost.student_flops_per_token - cost.student_head_flops_per_token
        teacher = cost.teacher_flops_per_token - cost.teacher_head_flops_per_token
        flops = (student, teacher, cost.head_flops_per_token, cost.loss_flops_per_token, cost.total_flops_per_token)
        shown = (units.flops(value or None) for value in flops)
        share = f"{100 * cost.teacher_flops_per_token / cost.total_flops_per_token:.0f}"
        saved = cost.teacher_flops_per_token - cost.teacher_again_flops_per_token
        repeats = [units.flops(cost.total_flops_per_token - saved)] if cached else []
        table.add_row(entry.arm, *shown, share, *repeats)
    return table


def _cache(recipe: StudyRecipe) -> TeacherCacheRecipe | None:
    return recipe.teacher.cache if recipe.teacher else None


def _tokens_table(planned: Plan) -> Table:
    timed = ("tokens/s", "hours") if planned.speed else ()
    table = new_table("What the budget buys", "arm", "steps", "tokens", "epochs", *timed, "at equal FLOPs")
    for entry in planned.arms:
        speed = [units.count(entry.tokens_per_second), units.hours(entry.hours)] if planned.speed else []
        relative = units.ratio(entry.relative_tokens)
        table.add_row(entry.arm, *_bought(entry), *speed, relative)
    return table


def _cells_table(planned: Plan) -> Table:
    table = new_table("In each cell of the grid", "budget", "of text", "arm", "steps", "tokens", "epochs")
    for cell in planned.cells:
        assert cell.place is not None
        named = (f"{cell.place.budget:g}x", cell.place.pool_in_words)
        for entry in cell.arms:
            table.add_row(*named, entry.arm, *_bought(entry))
            named = ("", "")
    return table


def _bought(entry: ArmPlan) -> tuple[str, str, str]:
    """Steps, tokens, epochs."""
    steps = units.NOTHING if entry.steps is None else f"{entry.steps:,}"
    return steps, units.count(entry.tokens), units.ratio(entry.epochs)


def _totals_table(planned: Plan) -> Table:
    table = new_table("The whole study", "part", "FLOPs", *(("hours",) if planned.speed else ()))
    table.add_column("", style="dim", overflow="fold")
    for item in planned.totals:
        hours = [units.hours(item.hours)] if planned.speed else []
        table.add_row(item.what, units.flops(item.flops), *hours, item.note)
    flops, hours_ = ([getattr(item, kind) for item in planned.totals] for kind in ("flops", "hours"))
    if None not in flops:
        together = [units.hours(None if None in hours_ else sum(hours_))] if planned.speed else []
        table.add_row("all", units.flops(sum(flops)), *together, "")
    return table


def _power_table(planned: PowerPlan) -> Table:
    title = f"Power, corrected for {planned.num_contrasts} {planned.family}: chance of finding a difference"
    table = new_table(title, "students of an arm", *(f"{effect:g} sd" for effect in EFFECTS))
    for students, chances in planned.chances.items():
        table.add_row(str(students), *(f"{100 * chance:.0f} %" for chance in chances.values()))
    return table


def _power_in_words(planned: PowerPlan) -> str:
    own = min(planned.chances)
    found = f"{VERDICT_EFFECT:g} sd found with {100 * ENOUGH:.0f} %"
    rule = (
        f"The protocol gives verdicts at {planned.promised}, which it fixes in advance"
        if planned.promised
        else f"The report gives verdicts from {planned.enough} on ({found})"
    )
    few = "" if planned.gives_verdicts else f": with {own} it will give none"
    return f"sd: standard deviation of the differences, paired by seed; exact, two-sided paired t-test. {rule}{few}."


def _memory_table(planned: Plan) -> Table:
    processes = f"{planned.num_processes} process{'es' if planned.num_processes > 1 else ''}"
    title = f"Memory of each of {processes}, GiB, of the arm that needs most"
    table = new_table(title, "ds_config", "weights", "Adam", "teacher", "engine", "step", "total", "host")
    for ds_config, (_, memory) in planned.memory.items():
        parts = (memory.weights, memory.optimizer, memory.teacher, memory.engine, memory.step, memory.total)
        host = units.NOTHING if not memory.host_bytes else f"{memory.host_bytes / GIB:.2f}"
        table.add_row(ds_config, *(f"{size / GIB:.2f}" for size in parts), host)
    return table


def _about_speed(planned: Plan, speed: Speed) -> list[str]:
    said = [f"Speed: {speed.source}."]
    if speed.measured:
        spread = ", ".join(f"{arm} {rate.p20:,.0f} to {rate.p80:,.0f}" for arm, rate in speed.measured.items())
        said.append(f"Tokens per second, 20th to 80th percentile: {spread}.")
    if speed.gpu is not None:
        needed, room = max(memory.total for _, memory in planned.memory.values()), speed.gpu.memory_gb * 1e9
        too_large = [name for name, (_, memory) in planned.memory.items() if memory.total - memory.host_bytes > room]
        if too_large:
            said.append(f"{speed.gpu.name} has {speed.gpu.memory_gb:g} GB: too little for {', '.join(too_large)}.")
        else:
            said.append(f"All of it fits {speed.gpu.name} ({speed.gpu.memory_gb:g} GB; {needed / 1e9:.1f} GB at most).")
    return said


def _remarks(planned: Plan) -> list[str]:
    recipe, said = planned.recipe, []
    training = recipe.training
    arm, memory = planned.memory[training.ds_config]
    said.append(
        f"A step of {arm} at {training.ds_config}, as in the recipe, takes {memory.total / GIB:.2f} GiB of tensors at "
        "its height; a run on a GPU records what it took as memory.training_bytes in its summary.json."
    )
    if note := smaller_than_asked(training, planned.num_processes):
        said.append(f"{note[0].upper()}{note[1:]}.")
    if training.activation_checkpointing:
        said.append("Activation checkpointing: the student's FLOPs have the second forward pass of its layers.")
    if recipe.tuning and recipe.tuning.charged:
        said.append("Tuning is charged: what an arm's trials spend is taken off its budget before steps are counted.")
    if planned.speed:
        said += _about_speed(planned, planned.speed)
    if planned.arms[0].tokens is None:
        said.append(
            f"A budget in {recipe.budget.unit.replace('_', ' ')} buys tokens by the machine's speed, which is not "
            "known here (name it with --hardware, or measure it and give --calibration); at equal FLOPs an arm sees "
            "the given share of the reference's tokens."
        )
    if len(recipe.data.shards) > 1:
        said.append(
            "Several shard sets, dealt out by weight, repeat each in its own time: epochs are not planned, and nothing "
            "is taken to repeat."
        )
    elif planned.pool_tokens is None:
        said.append("The data is not prepared yet, so epochs are not known.")
    else:
        said.append(f"One epoch is {units.count(planned.pool_tokens)} tokens.")
    if cache := _cache(recipe):
        among = f", divided by {cache.num_students} students" if cache.num_students > 1 else ""
        said.append(
            f"Teacher outputs are kept in {cache.path}: the teacher's share is of a window's first visit{among}; "
            f"repeats cost the total of the last column. Masks are fixed (data.mask_seed {recipe.data.mask_seed})."
        )
    said += [
        f"Allowed difference between arms: {difference.key}: "
        + ", ".join(f"{arm} {value}" for arm, value in difference.values.items())
        for difference in planned.allowed
    ]
    return said
