"""The networks that benchmarks time, and a shared one written by hand."""

import argparse
import re
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent.parent
MODELS = HERE / "configs" / "model"


def is_known(model: str) -> bool:
    """Return whether `build` knows a network of this name."""
    if re.fullmatch(r"(encoder|mlp):\d+x\d+", model) or (MODELS / f"{model}.yaml").is_file():
        return True
    from torchvision.models import list_models

    return model in list_models()


def build(arguments: argparse.Namespace) -> Any:
    """Build the dense network that configs/model or torchvision names, an encoder or an MLP."""
    import torch
    from omegaconf import OmegaConf

    from npas import models

    torch.manual_seed(0)
    kind, _, size = arguments.model.partition(":")
    if size:
        network = {"encoder": encoder, "mlp": mlp}[kind](*map(int, size.split("x")))
        return network.to(arguments.device)
    path = MODELS / f"{kind}.yaml"
    values: Any = {"family": "torchvision", "name": kind}
    if path.is_file():
        values = OmegaConf.to_container(OmegaConf.load(path))
    family = models.family(values["family"])
    network = family.build(family.Config(**values), spec(values["family"]))
    return network.to(arguments.device)


def spec(family: str) -> Any:
    """Return CIFAR-100's input for our own networks and ImageNet's for torchvision's."""
    from npas.models import InputSpec

    if family == "torchvision":
        return InputSpec((3, 224, 224), 1000)
    return InputSpec((3, 32, 32), 100)


def encoder(layers: int, width: int) -> Any:
    """Build BERT's encoder, without the vocabulary."""
    from transformers import BertConfig
    from transformers.models.bert.modeling_bert import BertEncoder

    settings = BertConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        intermediate_size=4 * width,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    settings._attn_implementation = "sdpa"
    return BertEncoder(settings)


def mlp(layers: int, width: int) -> Any:
    """Build so many linear layers with rectifiers between."""
    from torch import nn

    parts = (part for _ in range(layers) for part in (nn.Linear(width, width), nn.ReLU()))
    return nn.Sequential(*parts)


def share_by_hand(network: Any, budget: str) -> Any:
    """Mix slices of one bank in each layer's parametrization, as npas's plan lays them out."""
    import torch
    from torch.nn.utils import parametrize

    import npas

    class Mixed(torch.nn.Module):
        def __init__(self, bank: Any, layer: Any) -> None:
            super().__init__()
            self.bank, self.layer = [bank], layer  # in a list it is no parameter of the layer
            count = len(layer.templates)
            self.alpha = torch.nn.Parameter(torch.full((count,), count**-0.5))

        def forward(self, _: Any) -> Any:
            bank, layer = self.bank[0], self.layer
            slices = [bank[at : at + layer.template_size] for at in layer.templates]
            mixed = sum(alpha * values for alpha, values in zip(self.alpha, slices, strict=True))
            if layer.upsampler:
                source, size = mixed.view(1, 1, *layer.source), layer.matrix
                mixed = torch.nn.functional.interpolate(source, size, mode="bilinear")
            return mixed.view(layer.shape)

    for g, group in enumerate(npas.plan(network, budget).groups):
        spread = network.get_parameter(group.layers[0].name).detach().std()
        bank = torch.nn.Parameter(torch.randn(group.bank) * spread)
        network.register_parameter(f"bank_{g}", bank)
        for layer in group.layers:
            owner, _, name = layer.name.rpartition(".")
            module = network.get_submodule(owner)
            module.get_parameter(name).requires_grad_(False)  # what is mixed takes its place
            parametrize.register_parametrization(module, name, Mixed(bank, layer))
    return network


if __name__ == "__main__":
    argparse.ArgumentParser(description=f"{__doc__} Other scripts import it.").parse_args()
