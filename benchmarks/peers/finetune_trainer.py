"""Fine-tuning by Hugging Face's Trainer, as its example `run_glue.py` does it: tokenise, train, predict the dev rows.

At the example's defaults, unless told otherwise: batches of 8, every text padded to the full length. One run for each
line on standard input, which names the seed; the answer is the outputs on dev, as JSON.
"""

import json
import math
import os
import sys

import turns

WARM_UP_EXAMPLES = 16


class Examples:
    """Tokenised examples with their labels."""

    def __init__(self, encoded: dict, labels: list) -> None:
        self.encoded, self.labels = encoded, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict:
        return {**{name: values[index] for name, values in self.encoded.items()}, "labels": self.labels[index]}


def one_run(given: dict, tokenizer, splits: dict, seed: int) -> list:
    """Outputs on dev [N, C] of a model trained on the train split."""
    import torch
    from transformers import (
        AutoModelForSequenceClassification,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
        default_data_collator,
        set_seed,
    )

    set_seed(seed)
    padding = "max_length" if given["pad_to_max_length"] else False

    def encode(split: dict) -> Examples:
        pairs = [split["first"]] if split["second"] is None else [split["first"], split["second"]]
        encoded = tokenizer(*pairs, truncation=True, max_length=given["max_length"], padding=padding)
        return Examples(dict(encoded), split["labels"])

    train = encode(splits["train"])
    num_steps = max(1, round(given["epochs"] * math.ceil(len(train) / given["batch_size"])))
    arguments = TrainingArguments(
        output_dir="peer_output",
        per_device_train_batch_size=given["batch_size"],
        learning_rate=given["learning_rate"],
        weight_decay=given["weight_decay"],
        warmup_steps=math.ceil(given["warmup_fraction"] * num_steps),
        max_steps=num_steps,
        seed=seed,
        bf16=given["bf16"],
        use_cpu=not torch.cuda.is_available(),  # without a GPU, bf16 is refused unless this is said
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    trainer = Trainer(
        model=AutoModelForSequenceClassification.from_pretrained(
            given["model"], num_labels=given["num_outputs"], dtype="float32"
        ),
        args=arguments,
        train_dataset=train,
        data_collator=default_data_collator if padding else DataCollatorWithPadding(tokenizer),
    )
    trainer.train()
    return trainer.predict(encode(splits["dev"])).predictions.tolist()


def main() -> None:
    """Warm up, then run whenever the benchmark asks."""
    given = turns.task()
    version = turns.require("transformers", "accelerate")
    import torch
    from transformers import AutoTokenizer, logging

    torch.set_num_threads(given["num_threads"])
    logging.disable_progress_bar()
    with open(given["examples"], encoding="utf-8") as file:
        splits = json.load(file)
    tokenizer = AutoTokenizer.from_pretrained(given["model"])
    few = {
        name: {key: values and values[:WARM_UP_EXAMPLES] for key, values in split.items()}
        for name, split in splits.items()
    }
    one_run(given, tokenizer, few, 0)
    turns.say(f"ready {version}")
    for line in sys.stdin:
        turns.say(json.dumps(one_run(given, tokenizer, splits, int(line))))
    os._exit(0)


if __name__ == "__main__":
    main()
