"""Any text classification network of transformers, from a folder or the Hugging Face hub.

Its config.json determines the architecture (`AutoModelForSequenceClassification`). With
`model.pretrained=true` its weights are loaded; a head for other classes is initialized randomly. No
code of a repository is run.

    distilbert-base-uncased: 66,955,010 parameters for 2 classes; roberta-base: 124,647,170
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from npas.models import InputSpec, _hub
from npas.models.bert import architecture as architecture

OUTPUTS = ("text",)
WHOLE = ("model.safetensors", "model.safetensors.index.json")


@dataclass
class Config:
    """The `model.*` keys of a transformers encoder.

    `name` is a folder, or a name on the Hugging Face hub ("name@revision" for a revision).
    """

    family: str = "transformers"
    name: str = "distilbert-base-uncased"
    pretrained: bool = False

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise ValueError("model.name must not be empty: set a folder or a network of the hub")


def build(
    config: Config, spec: InputSpec, architecture: Mapping[str, Any] | None = None
) -> nn.Module:
    """Build the network for `spec.num_classes` classes of texts of `spec.input_shape[0]` tokens.

    On the meta device, and with an `architecture`, no weights are loaded. Raises ValueError if it
    cannot be loaded or does not classify texts.
    """
    import transformers

    auto = transformers.AutoModelForSequenceClassification
    if architecture is not None:
        kind = transformers.AutoConfig.for_model(str(architecture["model_type"]))
        network: Any = auto.from_config(type(kind).from_dict(dict(architecture)))
        return cast(nn.Module, network)
    loads = config.pretrained and torch.get_default_device().type != "meta"
    files = ("config.json", *((*WHOLE, "model-*.safetensors") if loads else ()))
    needed = WHOLE if loads else ("config.json",)
    folder = _hub.find_folder("model.name", config.name, files, needed)
    missing: list[str] = []
    try:
        with _hub.quietly():
            how: Any = {"num_labels": spec.num_classes, "trust_remote_code": False}
            theirs = transformers.AutoConfig.from_pretrained(folder, **how)
            if not loads:
                network = auto.from_config(theirs, trust_remote_code=False)
            else:
                network, info = auto.from_pretrained(
                    folder,
                    config=theirs,
                    trust_remote_code=False,
                    dtype=torch.float32,
                    ignore_mismatched_sizes=True,
                    output_loading_info=True,
                )
                missing = [*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])]
    except Exception as error:  # broken files raise many kinds of errors
        raise ValueError(
            f"model.name={config.name} is not a text classification network"
            f" ({_hub.reason(error)}): choose another"
        ) from error
    _check_length(config, network, spec.input_shape[0])
    inner = f"{network.base_model_prefix}."
    if absent := sorted(key for key in missing if key.startswith(inner) and "pooler" not in key):
        raise ValueError(
            f"model.name={config.name} lacks {absent[0]} ({len(absent)} parameters in all): its"
            " weights are those of another network"
        )
    return cast(nn.Module, network.train())


def _check_length(config: Config, network: nn.Module, length: int) -> None:
    """Raise ValueError if texts are longer than the network's position embeddings."""
    most = getattr(network.config, "max_position_embeddings", None)
    if not isinstance(most, int) or most < 1:
        return
    for module in network.modules():  # in RoBERTa, positions start after the padding index
        if hasattr(module, "position_embeddings") and isinstance(
            padding := getattr(module, "padding_idx", None), int
        ):
            most -= padding + 1
    if length > most:
        raise ValueError(
            f"the task's texts have {length} tokens, and model.name={config.name} takes {most}: set"
            " task.max_length to at most that"
        )
