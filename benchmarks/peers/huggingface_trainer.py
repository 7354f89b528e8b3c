"""Masked-language modelling by Hugging Face's Trainer at its defaults: AdamW, SDPA attention, dynamic masks of 15 %.

Beside our arm of objective `scratch`: the same student, windows, batch, precision and learning rate.
"""

import turns


def main() -> None:
    """Train until the benchmark ends."""
    given = turns.task()
    version = turns.require("transformers", "accelerate")
    from transformers import (
        AutoConfig,
        AutoModelForMaskedLM,
        AutoTokenizer,
        DataCollatorForLanguageModeling,
        Trainer,
        TrainingArguments,
    )

    tokenizer = AutoTokenizer.from_pretrained(given["tokenizer"])
    # The trainer would drop the collator's special_tokens_mask with the columns that the model does not take.
    arguments = TrainingArguments(**turns.arguments(given), remove_unused_columns=False)
    Trainer(
        model=AutoModelForMaskedLM.from_config(AutoConfig.from_pretrained(given["student"])),
        args=arguments,
        train_dataset=turns.Windows(given["windows"], tokenizer.all_special_ids),
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15),
        callbacks=[turns.in_turns(version)],
    ).train()


if __name__ == "__main__":
    main()
