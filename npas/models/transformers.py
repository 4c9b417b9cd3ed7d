"""Build any encoder of transformers that classifies texts, by its folder or name on the hub.

What is built is what its config.json says (`AutoModelForSequenceClassification`), with the task's
classes; with `model.pretrained=true` from its weights, whose head starts fresh where it has other
classes. No code of a repository is run.

    distilbert-base-uncased: 66,955,010 parameters for 2 classes; roberta-base: 124,647,170
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from npas.models import InputSpec, _hub

OUTPUTS = ("text",)
WHOLE = ("model.safetensors", "model.safetensors.index.json")


@dataclass
class Config:
    """The `model.*` keys of a transformers encoder. ValueError for an empty name.

    `name` is a folder, or a name on the Hugging Face hub ("name@revision" for a revision of it).
    """

    family: str = "transformers"
    name: str = "distilbert-base-uncased"
    pretrained: bool = False

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise ValueError("model.name must not be empty: name a folder, or a network of the hub")


def build(
    config: Config, spec: InputSpec, architecture: Mapping[str, Any] | None = None
) -> nn.Module:
    """Build the network for `spec.num_classes` classes of texts of `spec.input_shape[0]` tokens.

    On the meta device, and with an `architecture`, no weights are read. ValueError, in one line,
    for one that cannot be had or that classifies no texts.
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
    lost: list[str] = []
    try:
        with _hub.quietly():
            how: Any = {"num_labels": spec.num_classes, "trust_remote_code": False}
            theirs = transformers.AutoConfig.from_pretrained(folder, **how)
            if not loads:
                network = auto.from_config(theirs, trust_remote_code=False)
            else:
                network, told = auto.from_pretrained(
                    folder,
                    config=theirs,
                    trust_remote_code=False,
                    dtype=torch.float32,
                    ignore_mismatched_sizes=True,
                    output_loading_info=True,
                )
                lost = [*told["missing_keys"], *(key for key, *_ in told["mismatched_keys"])]
    except Exception as error:  # whatever a broken file makes its readers say
        why = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise ValueError(
            f"model.name={config.name} is no network for classifying texts ({why}): choose another"
        ) from error
    _check_length(config, network, spec.input_shape[0])
    inner = f"{network.base_model_prefix}."
    if absent := sorted(key for key in lost if key.startswith(inner) and "pooler" not in key):
        raise ValueError(
            f"model.name={config.name} lacks {absent[0]} ({len(absent)} parameters in all): its"
            " weights are another network's"
        )
    return cast(nn.Module, network.train())


def architecture(network: Any) -> dict[str, Any]:
    """Return transformers' config of a network that was built here."""
    from npas.models import bert

    return bert.architecture(network)


def _check_length(config: Config, network: nn.Module, length: int) -> None:
    """ValueError if texts are longer than the network has positions for."""
    most = getattr(network.config, "max_position_embeddings", None)
    if not isinstance(most, int) or most < 1:
        return
    for module in network.modules():  # RoBERTa's kind counts positions from its padding on
        if hasattr(module, "position_embeddings") and isinstance(
            padding := getattr(module, "padding_idx", None), int
        ):
            most -= padding + 1
    if length > most:
        raise ValueError(
            f"the task's texts have {length} tokens, and model.name={config.name} takes {most}: set"
            " task.max_length to at most that"
        )
