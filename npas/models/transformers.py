"""Any text classification network of transformers, from a folder or the Hugging Face hub.

Its config.json determines the architecture (`AutoModelForSequenceClassification`). With
`model.pretrained=true` its weights are loaded; a head for other classes is initialized randomly. No
code of a repository is run.

    distilbert-base-uncased: 66,955,010 parameters for 2 classes; roberta-base: 124,647,170
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from npas.models import InputSpec, _hub
from npas.models.bert import architecture as architecture

OUTPUTS = ("text",)


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
    """Build the network; on the meta device, or with an `architecture`, no weights are loaded."""
    import transformers

    auto = transformers.AutoModelForSequenceClassification
    if architecture is not None:
        kind = transformers.AutoConfig.for_model(str(architecture["model_type"]))
        return auto.from_config(type(kind).from_dict(dict(architecture)))
    loads = config.pretrained and torch.get_default_device().type != "meta"
    files = ("config.json", *((*_hub.WHOLE, "model-*.safetensors") if loads else ()))
    needed = _hub.WHOLE if loads else ("config.json",)
    folder, what = _hub.find_folder("model.name", config.name, files, needed), config.name
    how: Any = {"trust_remote_code": False}
    with _hub.reading(f"model.name={what}", "choose another text classification network"):
        theirs = transformers.AutoConfig.from_pretrained(folder, num_labels=spec.num_classes, **how)
        network = None if loads else auto.from_config(theirs, **how)
    if network is None:
        network = _hub.load(
            f"model.name={what}",
            auto,
            folder,
            lambda own, key: not key.startswith(f"{own.base_model_prefix}.") or "pooler" in key,
            config=theirs,
            ignore_mismatched_sizes=True,
            **how,
        )
    _check_length(config, network, spec.input_shape[0])
    return network.train()


def _check_length(config: Config, network: nn.Module, length: int) -> None:
    most = getattr(network.config, "max_position_embeddings", None)
    if not isinstance(most, int) or most < 1:
        return
    for module in network.modules():  # in RoBERTa, positions start after the padding index
        if hasattr(module, "position_embeddings") and isinstance(
            padding := getattr(module, "padding_idx", None), int
        ):
            most -= padding + 1
    if length > most:
        raise ValueError(f"model.name={config.name} takes {most} tokens: set task.max_length")
