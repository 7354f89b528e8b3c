"""The documents of a small English corpus."""

import json
import random

_SENTENCES = (
    "The keeper of the lighthouse wrote the weather into his book every evening before the lamp was lit.",
    "Most of the letters that came to the harbour were about ships which had not been seen for weeks.",
    "She had learned to read the clouds from her mother, and she could tell a storm two days ahead.",
    "When the wind turned to the north, the boats stayed in and the men mended their nets by the fire.",
    "There was only one road over the hill, and in winter it was more often closed than open.",
    "They would have sold the house if anyone had wanted to live so far from the town.",
)


def english_document(index: int, num_sentences: int = 8) -> str:
    """A document of its own: sentences in an order that ``index`` fixes, and a line that names it."""
    chosen = random.Random(index).choices(_SENTENCES, k=num_sentences)
    return f"Chapter {index} of the harbour book.\n\n" + " ".join(chosen)


def write_jsonl(path, texts):
    path.write_text("".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(texts)))
    return path
