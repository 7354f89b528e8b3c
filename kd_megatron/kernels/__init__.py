"""Losses over large intermediate tensors, each behind one door with a ``backend`` argument.

`relation_kl` (MiniLMv2), `score_mse` and `hidden_mse` (TinyBERT's attention and hidden states), `vocab_kl`
(distillation of the MLM head, from a teacher's logits or from what a cache keeps of them). Every kernel has a
``reference`` backend: short, plain, the definition the others are tested against.
"""
