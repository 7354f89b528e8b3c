"""What a page says of the protocol: its promise in words, when it was registered, and every departure from it."""

from typing import Any

from kd_megatron.analysis import preregistration
from kd_megatron.analysis.measure import OWN_HEAD, PROBE, SCORE
from kd_megatron.analysis.results import StudyResults
from kd_megatron.console import units
from kd_megatron.report.page.document import Block, Bullets, Heading, Paragraph

MEASURES = {measure.quantity: measure for measure in (PROBE, OWN_HEAD, SCORE)}
TITLE = "What was promised"


def protocol_blocks(results: StudyResults) -> list[Block]:
    """The protocol, its registration and the departures; nothing without a protocol."""
    entry = preregistration.promised(results)
    protocol = (
        entry["promise"]["protocol"] if entry else results.recipe.protocol and results.recipe.protocol.model_dump()
    )
    if not protocol:
        return []
    found = preregistration.departures(results)
    said = [*_in_words(protocol, results), *([] if entry is None else [registration_in_words(entry)])]
    blocks: list[Block] = [Heading(TITLE), Bullets(said)]
    if not found:
        return [*blocks, Paragraph("Nothing departed from it.")]
    return [*blocks, Paragraph("Departures from it:"), Bullets(found)]


def registration_fact(results: StudyResults) -> list[str]:
    """Of the page's method: when a study without a protocol was registered."""
    entries = preregistration.registered(results)
    return [] if not entries or preregistration.promised(results) else [registration_in_words(entries[0])]


def protocol_caveats(results: StudyResults) -> list[str]:
    """How many departures there are; without a protocol, what is to be known of looks and seeds added after them."""
    entries, said = preregistration.registered(results), []
    if lost := preregistration.lost_looks(results):
        said.append(f"The journal of this study lacks {units.counted(lost, 'look')} that were counted: it was altered.")
    if found := preregistration.departures(results):
        return [*said, f"{units.counted(len(found), 'departure')} from the protocol: see the section '{TITLE}'."]
    if not entries or entries[0]["begun"]:
        return [
            *said,
            "Whether results were seen before seeds were added or done again is not recorded from the start.",
        ]
    if seeds := preregistration.grown_after_a_look(results):
        said.append(
            f"Seeds {', '.join(map(str, seeds))} were added after a look at the results, and no protocol says when to "
            "stop: a study that grows until it likes what it sees finds differences too often, and no interval knows "
            "of it."
        )
    return said


def plain(results: StudyResults) -> dict[str, Any]:
    """The same for ``results.json``."""
    return {
        "registered": preregistration.promised(results) or next(iter(preregistration.registered(results)), None),
        "departures": preregistration.departures(results),
        "trained_again_after_a_look": preregistration.trained_again(results),
        "finetuned_again_after_a_look": preregistration.finetuned_again(results),
    }


def _in_words(protocol: dict[str, Any], results: StudyResults) -> list[str]:
    measure = MEASURES[protocol["measure"]]
    against = f"against {results.reference}"
    arms = ", ".join(arm for arm in protocol["arms"] or [] if arm != results.reference)
    said = [
        f"Primary measure: {measure.name}. Primary contrasts: {arms or 'all arms'} {against}.",
        f"When to stop: {protocol['stopping']}.",
    ]
    if protocol["students"] is not None:
        said.append(f"Verdicts are given at {units.counted(protocol['students'], 'student')} of each arm.")
    if protocol["smallest_effect"] is not None:
        said.append(f"The smallest effect of interest is {protocol['smallest_effect']:g} {measure.unit}.")
    return said


def registration_in_words(entry: dict[str, Any]) -> str:
    """When and at which commit a promise was registered, and its hash."""
    when = str(entry["time"]).replace("T", " ").replace("+00:00", " UTC")
    state = "with changes that it has not" if entry["uncommitted_changes"] or entry["uncommitted_hash"] else "clean"
    before = "after the first step" if entry["begun"] else "before the first step"
    return (
        f"Registered {when}, {before}, at commit {entry['commit'][:12]} ({state}); sha256 of the promise: "
        f"{entry['sha256']}."
    )
