"""A tiny random BERT and tiny tasks that it can learn."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

GOOD, BAD, NEUTRAL = ("fine", "great", "lovely"), ("poor", "awful", "dull"), ("film", "plot", "the", "a", "cast", "end")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def make_model(directory: Path, seed: int) -> Path:
    vocabulary = {word: index for index, word in enumerate((*SPECIAL, *GOOD, *BAD, *NEUTRAL))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, mask_token="[MASK]", **names).save_pretrained(directory)
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=32,
    )
    BertForMaskedLM(config).save_pretrained(directory)
    return directory


def sentences(num: int, seed: int) -> list[tuple[str, str]]:
    """(text, label): the one word of praise or blame decides."""
    generator = torch.Generator().manual_seed(seed)

    def draw(limit: int) -> int:
        return int(torch.randint(limit, (), generator=generator))

    rows = []
    for index in range(num):
        words = [NEUTRAL[draw(len(NEUTRAL))] for _ in range(2 + draw(6))]
        words.insert(draw(len(words)), (GOOD, BAD)[index % 2][draw(3)])
        rows.append((" ".join(words), ("good", "bad")[index % 2]))
    return rows


def write_tsv(path: Path, rows: list[tuple[str, ...]], header: str = "text\tlabel") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *("\t".join(row) for row in rows)]) + "\n", encoding="utf-8")
    return path
