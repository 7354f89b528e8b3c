"""Whole settings of fine-tuning under one name; a recipe's own keys go before those of its preset."""

from typing import Any

# Bui et al. 2024 (arXiv 2404.19319): its grid, epochs, length and polynomial decay, with BERT's linear power, AdamW's
# usual constants, and the warm-up and decay of weights that all arms here share.
STUDY: dict[str, Any] = {
    "grid": {"learning_rates": [1e-5, 3e-5, 5e-5, 8e-5], "batch_sizes": [16, 32]},
    "epochs": 5.0,
    "min_steps": None,
    "max_length": 128,
    "schedule": "polynomial",
    "decay_power": 1.0,
    "warmup_fraction": 0.06,
    "weight_decay": 0.01,
    "betas": [0.9, 0.999],
    "epsilon": 1e-8,
    "gradient_clipping": 1.0,
    "dropout": None,
}

# Geiping and Goldstein 2023 (arXiv 2212.14034), github.com/JonasGeiping/cramming: cramming/config/eval/GLUE_sane.yaml
# and optim/adam.yaml there; dropout is switched on for fine-tuning, at the 0.1 of arch/crammed-bert.yaml. Its pooler
# and head are part of its architecture and not taken over: the head is that of the model's own library class.
SANE: dict[str, Any] = {
    "grid": {"learning_rates": [4e-5], "batch_sizes": [16]},
    "epochs": 5.0,
    "min_steps": None,
    "max_length": 128,
    "schedule": "cosine",
    "decay_power": 1.0,
    "warmup_fraction": 0.1,
    "weight_decay": 0.0,
    "betas": [0.9, 0.98],
    "epsilon": 1e-6,
    "gradient_clipping": None,
    "dropout": 0.1,
}

# Against runs that stay at the majority class: Mosbach et al. 2021 (arXiv 2006.04884) fine-tune BERT for 20 epochs at
# 2e-5 in batches of 16, with 10 % warm-up, linear decay and Adam's bias correction; Zhang et al. 2021 (arXiv
# 2006.05987) find the same of the correction, and that few rows need more steps than three epochs of them are. All Adam
# here is bias-corrected (torch.optim.AdamW has no other). The floor in steps is ours: 20 epochs of 250 rows are 320.
SMALL_DATA: dict[str, Any] = {
    "grid": {"learning_rates": [2e-5], "batch_sizes": [16]},
    "epochs": 20.0,
    "min_steps": 1000,
    "max_length": 128,
    "schedule": "polynomial",
    "decay_power": 1.0,
    "warmup_fraction": 0.1,
    "weight_decay": 0.01,
    "betas": [0.9, 0.999],
    "epsilon": 1e-8,
    "gradient_clipping": 1.0,
    "dropout": 0.1,
}

PRESETS = {"study": STUDY, "sane": SANE, "small_data": SMALL_DATA}


def fill_in(raw: dict[str, Any]) -> dict[str, Any]:
    """``raw``, the fine-tuning section as written, with what it does not give itself taken from its preset, if any."""
    preset = PRESETS.get(str(raw.get("preset")), {})
    filled = {**preset, **raw}
    if preset and isinstance(raw.get("grid"), dict):
        filled["grid"] = {**preset["grid"], **raw["grid"]}
    return filled
