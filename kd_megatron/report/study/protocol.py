"""The protocol of a study on its page: what was promised, when, and each departure."""

from kd_megatron.analysis import promises
from kd_megatron.analysis.comparisons import TITLES
from kd_megatron.analysis.results import StudyResults
from kd_megatron.console.units import num_seeds
from kd_megatron.report.page.document import Block, Bullets, Heading, Paragraph

HASH_SHOWN = 12  # characters


def blocks(study: StudyResults) -> list[Block]:
    """The section; empty where the recipe has no protocol."""
    protocol = study.recipe.protocol
    if protocol is None:
        return []
    others = protocol.arms or [arm for arm in study.recipe.arms if arm != study.reference]
    said = [f"Primary: {TITLES[protocol.measure]}, {', '.join(others)} against {study.reference}."]
    if protocol.students is not None:
        said.append(f"Verdicts were promised with {num_seeds(protocol.students)} of an arm.")
    if protocol.smallest_effect is not None:
        unit = "points" if protocol.measure == "score" else "nats"
        said.append(f"The smallest effect of interest is {protocol.smallest_effect:g} {unit}.")
    said.append(f"Looks: {protocol.stopping}.")
    if entries := promises.protocols(study):
        first = entries[0]
        said.append(
            f"Registered on {first['time']} at commit {first['commit'][:HASH_SHOWN]}, "
            f"sha256 {first['sha256'][:HASH_SHOWN]} (registered.json has it whole)."
        )
    found = promises.departures(study)
    kept = Paragraph("No departure from the protocol was recorded.")
    return [
        Heading("Protocol"),
        Bullets(said),
        *([Paragraph("Departures from it:"), Bullets(found)] if found else [kept]),
    ]


def caveats(study: StudyResults) -> list[str]:
    """Departures, and seeds that were added after a look."""
    said = [f"Departure from the protocol: {one}" for one in promises.departures(study)]
    if added := promises.added_after_a_look(study):
        said.append(
            f"Seeds {', '.join(map(str, added))} were added after somebody had looked at results: whether to go on may "
            "have hung on what was seen, and intervals do not have that in them."
        )
    return said
