"""What a cache keeps of a teacher's logits.

Shapes: D hidden size, V vocabulary, k tokens kept.
"""

import math

import torch
from torch import Tensor

from kd_megatron.kernels import door
from kd_megatron.kernels.arithmetic import accumulation_dtype
from kd_megatron.kernels.vocab_kl.arguments import check_temperature
from kd_megatron.kernels.vocab_kl.chunked import logits_by_chunk
from kd_megatron.tensors import FactoredLogits, TopLogits


@torch.no_grad()
def top_logits_of_head(head: FactoredLogits, num_tokens: int, temperature: float) -> TopLogits:
    """`top_logits` of a head, states [..., D], by chunks of rows.

    Its logits are those that `vocab_kl` makes: float32 from bfloat16 states, where `FactoredLogits.dense` rounds them.
    """
    rows = head.rows()
    with door.without_autocast(rows.states):
        chunks = [top_logits(logits, num_tokens, temperature) for logits in logits_by_chunk(rows)]
    shape = head.states.shape[:-1]
    return TopLogits(
        torch.cat([chunk.log_probabilities for chunk in chunks]).unflatten(0, shape),
        torch.cat([chunk.token_ids for chunk in chunks]).unflatten(0, shape),
        torch.cat([chunk.log_rest for chunk in chunks]).unflatten(0, shape),
        temperature,
    )


def top_logits(logits: Tensor, num_tokens: int, temperature: float) -> TopLogits:
    """The ``num_tokens`` likeliest tokens of ``logits`` [..., V] at a temperature, and what the others have together.

    The others are summed by themselves: 1 less the sum of the kept ones would lose a small rest. With all V tokens
    kept its logarithm is minus infinity.

    Raises:
        ValueError: there are not so many tokens, or the temperature is no positive number.
    """
    if not 1 <= num_tokens <= logits.shape[-1]:
        raise ValueError(f"num_tokens is {num_tokens}; allowed: 1 to {logits.shape[-1]}, the vocabulary")
    check_temperature("temperature", temperature)
    log_probabilities = (logits.to(accumulation_dtype(logits)) / temperature).log_softmax(-1)
    kept = torch.topk(log_probabilities, num_tokens, dim=-1)
    rest = log_probabilities.scatter_(-1, kept.indices, -math.inf).logsumexp(-1)
    return TopLogits(kept.values, kept.indices, rest, temperature)
