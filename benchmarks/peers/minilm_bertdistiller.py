"""MiniLMv2 by bertdistiller (PyPI) as its README trains: `create_student`, `MiniLMTrainer`, last layers, Q, K and V.

Beside our arms of objective `minilm`: the same student, teacher, relation heads, windows and batch. It puts each
sequence's relations through a Python loop, materialises all of them, and runs the whole teacher. Its defaults are those
of Hugging Face's trainer: float32, AdamW; clean text, as in its example.
"""

import json
from pathlib import Path

import turns


def main() -> None:
    """Train until the benchmark ends."""
    given = turns.task()
    version = turns.require("bertdistiller", "transformers")
    from bertdistiller import MiniLMTrainer, MiniLMTrainingArguments, create_student
    from transformers import AutoModel, AutoTokenizer, DataCollatorWithPadding

    sizes = {name: json.loads((Path(given[name]) / "config.json").read_text()) for name in ("student", "teacher")}
    student = sizes["student"]
    if student["intermediate_size"] != 4 * student["hidden_size"]:
        turns.say("absent it makes students whose feed-forward size is 4 times the hidden size, and no others")
        return
    arguments = MiniLMTrainingArguments(
        **turns.arguments(given),
        teacher_layer=sizes["teacher"]["num_hidden_layers"],
        student_layer=student["num_hidden_layers"],
        student_hidden_size=student["hidden_size"],
        student_attention_heads=student["num_attention_heads"],
        num_relation_heads=given["num_relation_heads"],
    )
    MiniLMTrainer(
        args=arguments,
        teacher_model=AutoModel.from_pretrained(given["teacher"]),
        model=create_student(given["teacher"], arguments),
        train_dataset=turns.Windows(given["windows"]),
        data_collator=DataCollatorWithPadding(AutoTokenizer.from_pretrained(given["tokenizer"])),
        callbacks=[turns.in_turns(version)],
    ).train()


if __name__ == "__main__":
    main()
