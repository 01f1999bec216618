"""BERTScore: words matched by the likeness of their vectors in an encoder (Zhang et al., ICLR 2020).

The figures are those of the package ``bert-score`` without idf weights or rescaling. That package fails on an
empty prediction with transformers 5, so its matching is done here.
"""

from collections.abc import Sequence
from typing import Any

import torch
from einops import einsum, reduce
from torch import Tensor

from headedit.errors import HeadEditError
from headedit.evaluation.scores.metrics.rows import check_rows

LAYERS = {
    "distilbert-base-uncased": 5,
    "bert-base-uncased": 9,
    "bert-base-multilingual-cased": 9,
    "roberta-base": 10,
    "roberta-large": 17,
    "microsoft/deberta-large-mnli": 18,
    "microsoft/deberta-xlarge-mnli": 40,
}
"""The layer whose vectors agree best with people's judgement, as its authors chose it for each encoder."""

Words = tuple[Tensor, Tensor]
"""Unit vectors of a text's tokens [tokens, width], and which of them are words rather than marks [tokens]."""


def bertscore(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    model: str = "distilbert-base-uncased",
    layer: int | None = None,
    batch_size: int = 64,
    device: str | None = None,
) -> dict[str, float]:
    """Computes precision, recall and F1 of the greedy matching of tokens, the mean over rows.

    Args:
        predictions: one text per row; an empty one scores 0.
        references: one or more texts per row; the best of a row counts, for each of the three separately.
        model: hub id or folder of an encoder with its tokenizer. The default is what the GEM benchmark uses;
            figures of different encoders cannot be compared.
        layer: whose vectors are compared, counted from 1; needed for an encoder that ``LAYERS`` does not name.
        batch_size: texts per batch.
        device: such as ``cpu`` or ``cuda:0``; by default a GPU if there is one.

    Returns:
        ``bertscore`` (F1), ``bertscore_precision`` and ``bertscore_recall``, 0 to 100.

    Raises:
        HeadEditError: the rows cannot be scored, the encoder is unavailable, or it has no such layer.
    """
    check_rows(predictions, references)
    encoder, tokenizer = _load(model)
    depth = _depth(encoder, model, layer)
    encoder.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    texts = {text.strip() for accepted in references for text in accepted} | {text.strip() for text in predictions}
    words = _embed(encoder, tokenizer, sorted(texts, key=len), depth, batch_size)
    total = torch.zeros(3)
    for prediction, accepted in zip(predictions, references, strict=True):
        predicted = words[prediction.strip()]
        matches = torch.stack([_match(predicted, words[reference.strip()]) for reference in accepted])
        total += matches.max(dim=0).values
    precision, recall, f1 = (100 * total / len(predictions)).tolist()
    return {"bertscore": f1, "bertscore_precision": precision, "bertscore_recall": recall}


def _match(predicted: Words, reference: Words) -> Tensor:
    """Precision, recall and F1 of one pair, [3]. A word may be matched with a mark, but only words are counted."""
    (p, p_word), (r, r_word) = predicted, reference
    if not p_word.any() or not r_word.any():
        return torch.zeros(3)
    likeness = einsum(p, r, "predicted width, reference width -> predicted reference")
    precision = reduce(likeness, "predicted reference -> predicted", "max")[p_word].mean()
    recall = reduce(likeness, "predicted reference -> reference", "max")[r_word].mean()
    return torch.stack([precision, recall, 2 * precision * recall / (precision + recall)])


@torch.no_grad()
def _embed(encoder: Any, tokenizer: Any, texts: Sequence[str], layer: int, batch_size: int) -> dict[str, Words]:
    from transformers import GPT2Tokenizer, RobertaTokenizer

    inner_space = isinstance(tokenizer, (GPT2Tokenizer, RobertaTokenizer))  # their first word is like any other
    marks = torch.tensor([i for i in (tokenizer.cls_token_id, tokenizer.sep_token_id) if i is not None])
    positions = encoder.config.max_position_embeddings
    longest = tokenizer.model_max_length if tokenizer.model_max_length <= positions else positions - 2
    words: dict[str, Words] = {}
    for start in range(0, len(texts), batch_size):
        batch = texts[start : start + batch_size]
        inputs = tokenizer(
            [f" {text}" if inner_space and text else text for text in batch],
            padding=True,
            truncation=True,
            max_length=longest,
            return_tensors="pt",
        )
        hidden = encoder(**inputs.to(encoder.device), output_hidden_states=True).hidden_states[layer]
        unit = torch.nn.functional.normalize(hidden.float(), dim=-1).cpu()  # [texts, tokens, width]
        ids, kept = inputs["input_ids"].cpu(), inputs["attention_mask"].cpu().bool()
        for row, text in enumerate(batch):
            here = kept[row]
            words[text] = unit[row, here], ~torch.isin(ids[row, here], marks)
    return words


def _depth(encoder: Any, model: str, layer: int | None) -> int:
    """The layer to compare by: the one given, or the one known for this encoder."""
    chosen = LAYERS.get(model) if layer is None else layer
    layers = encoder.config.num_hidden_layers
    if chosen is None:
        raise HeadEditError(f"bertscore: no layer is known for '{model}'. Give layer=, from 1 to {layers}.")
    if not 1 <= chosen <= layers:
        raise HeadEditError(f"bertscore: layer {chosen} of '{model}' was asked for; it has {layers}.")
    return chosen


def _load(model: str) -> tuple[Any, Any]:
    from transformers import AutoModel, AutoTokenizer

    try:
        encoder, tokenizer = AutoModel.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    except Exception as error:  # transformers, the hub client and safetensors each raise their own
        lines = str(error).strip().splitlines() or [""]
        raise HeadEditError(
            f"bertscore: no encoder with a tokenizer could be loaded from '{model}'. Give model= a folder that "
            f"save_pretrained wrote, or the id of one on the hub. The loader said: {type(error).__name__}: {lines[0]}"
        ) from None
    if encoder.config.is_encoder_decoder:
        raise HeadEditError(f"bertscore: '{model}' is an encoder with a decoder. Give model= an encoder alone.")
    return encoder.eval(), tokenizer
