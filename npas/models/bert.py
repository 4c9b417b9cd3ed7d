"""BERT and ALBERT, by the classes of `transformers`, for classification, answers or pre-training.

BERT is from Devlin et al. (2019, arXiv 1810.04805), ALBERT from Lan et al. (2020, arXiv
1909.11942), which repeats one layer and factorizes the embedding. Parameters are named as in
published checkpoints. For classification the network ends in a pooler and a linear layer; for
answers (SQuAD) in a linear layer, without a pooler; for pre-training in the heads for masked tokens
and sentence order (in BERT the "next sentence" head).

    answers:      BERT-large 334,094,338   BERT-base 108,893,186
                  ALBERT-large 16,636,418  ALBERT-base 11,094,530
    pre-training: BERT-large 336,226,108   BERT-base 110,106,428
                  ALBERT-large 17,847,474  ALBERT-base 11,813,810

ALBERT-large is published with 18M parameters: 17,683,968 with the pooler and without heads.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import nn

from npas.models import InputSpec, _checks, _hub
from npas.utils.checks import Ranged

OUTPUTS = ("text", "span", "pretraining")
MOST_WIDTH = 100_000
# Our keys, and their names in a checkpoint's config.
SHAPE = {
    "layers": "num_hidden_layers",
    "hidden": "hidden_size",
    "heads": "num_attention_heads",
    "intermediate": "intermediate_size",
    "vocab_size": "vocab_size",
    "positions": "max_position_embeddings",
}
DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob")
# The prefixes of parameters that a checkpoint may lack.
HEADS = (
    "qa_outputs.", "cls.", "predictions.", "sop_classifier.", "classifier.", "bert.pooler.",
    "albert.pooler.",
)  # fmt: skip


@dataclass
class Config(Ranged, section="model."):
    """The `model.*` keys of BERT and ALBERT.

    `embedding` is the width of ALBERT's factorized embedding; `pretrained` a folder or a name on
    the Hugging Face hub with initial weights of this shape.
    """

    family: str = "bert"
    arch: Literal["bert", "albert"] = "bert"
    layers: Annotated[int, "[1, 1000]"] = 12
    hidden: Annotated[int, "[1, 100000]"] = 768
    heads: int = 12
    intermediate: Annotated[int, "[1, 100000]"] = 3072
    vocab_size: Annotated[int, "[1, 10000000]"] = 30_522
    embedding: int | None = None
    dropout: Annotated[float, "[0, 1)"] = 0.1
    positions: Annotated[int, "[1, 100000]"] = 512
    pretrained: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _checks.divides(self, "hidden")
        if self.arch == "albert" and not 1 <= (self.embedding or 0) <= MOST_WIDTH:
            raise ValueError(f"model.embedding={self.embedding}: an ALBERT needs a width, e.g. 128")
        if self.arch == "bert" and self.embedding not in (None, self.hidden):
            raise ValueError(f"model.embedding={self.embedding} is for ALBERT only: set it to null")


def build(
    config: Config, spec: InputSpec, architecture: Mapping[str, Any] | None = None
) -> nn.Module:
    """Build the network for texts of `spec.input_shape[0]` tokens.

    On the meta device, and with an `architecture`, no weights are loaded. Raises ValueError if
    texts are longer than `positions`, or the checkpoint cannot be loaded or has another shape.
    """
    if spec.input_shape[0] > config.positions:
        raise ValueError(
            f"the task's texts have {spec.input_shape[0]} tokens, and"
            f" model.positions={config.positions}: set task.max_length to at most that"
        )
    import transformers

    bert = config.arch == "bert"
    purpose = "SequenceClassification" if spec.outputs == "text" else "QuestionAnswering"
    kind: Any = getattr(transformers, f"{'Bert' if bert else 'Albert'}For{purpose}")
    if spec.outputs == "pretraining":
        from npas.models import _pretraining

        kind = _pretraining.BertForPreTraining if bert else _pretraining.AlbertForPreTraining
    shape: dict[str, Any] = {theirs: getattr(config, ours) for ours, theirs in SHAPE.items()}
    shape |= dict.fromkeys(DROPOUTS, config.dropout)
    if spec.outputs == "text":
        shape["num_labels"] = spec.num_classes
    if not bert:
        shape["embedding_size"] = config.embedding
    if architecture is not None:
        return kind(kind.config_class.from_dict(dict(architecture), attn_implementation="sdpa"))
    if config.pretrained is None or torch.get_default_device().type == "meta":
        return kind(kind.config_class(**shape, attn_implementation="sdpa"))
    return _load(config, config.pretrained, kind, shape.get("num_labels"))


def architecture(network: Any) -> dict[str, Any]:
    """Return transformers' config of a network that was built here."""
    return json.loads(network.config.to_json_string(use_diff=False))


def _load(config: Config, name: str, kind: Any, labels: int | None) -> nn.Module:
    """Load a checkpoint of the config's shape; other settings are the checkpoint's own."""
    from transformers import AutoConfig

    files, what = ("config.json", *_hub.WHOLE, "model-*.safetensors"), f"model.pretrained={name}"
    folder = _hub.find_folder("model.pretrained", name, files, _hub.WHOLE)
    with _hub.reading(what):
        theirs: Any = AutoConfig.from_pretrained(folder)
    keys = {**SHAPE, "arch": "model_type"}
    if config.arch == "albert":
        keys["embedding"] = "embedding_size"
    for ours, key in keys.items():
        value, found = getattr(config, ours), getattr(theirs, key, None)
        if value != found:
            raise ValueError(
                f"{what} has {ours} {found}, and model.{ours}={value}: choose the"
                " checkpoint's shape, such as model=bert_base"
            )
    for key in DROPOUTS:
        setattr(theirs, key, config.dropout)
    if labels is not None:
        theirs.num_labels = labels
    how = {"config": theirs, "attn_implementation": "sdpa"}
    how["ignore_mismatched_sizes"] = labels is not None  # a head for other classes starts fresh
    return _hub.load(what, kind, folder, lambda network, key: key.startswith(HEADS), **how)
