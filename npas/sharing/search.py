"""Plan the network that groups are learned from, and read the layers' vectors for k-means.

    apply(model, plan_search(model, 0.1))        # one group, K = 4 templates for every layer
    ...                                          # a short training
    vectors = search_vectors(model)              # clustered by k-means (Plummer et al., 3.2)

All layers mix the same K templates; each template is a K-th of one bank. A layer reads a template
as a map of about its matrix's aspect ratio (out x rest) and resizes it to its own shape. As the
resize is linear, the K maps are mixed first and the mixture is resized once.

All layers start with the same coefficients (the paper does not say); see `coefficients.Alike`.
"""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from npas.sharing.api import allocation
from npas.sharing.budget import BudgetReport, count_parameters, parse_budget, spell_count
from npas.sharing.generators.coefficients import GENERATORS
from npas.sharing.generators.upsample import UPSAMPLERS
from npas.sharing.layers import LayerSpec, find_layers, generator_name, matrix_form
from npas.sharing.layout.allocation import Allocation, GroupAllocation, LayerAllocation, Scheme

GROUP = "search"
SMALLEST_TEMPLATE = 4

Names = str | Iterable[str] | None


def plan_search(
    model: nn.Module,
    budget: str | float,
    *,
    generator: str = "wavg",
    softmax: bool = False,
    templates: int = 4,
    include: Names = None,
    exclude: Names = None,
    allocator: str = "npas",
) -> Allocation:
    """Return the allocation of the search for groups; the network stays as it is.

    Uses at most `budget`, the dense count, and what makes a template as large as the largest layer,
    since a resize would skip values of a larger one. Less than a thousandth of that, or less than K
    parameters, stay unused. With `allocator="reference"` the bank alone may take the whole budget,
    as in the released code, and its end may stay unread.

    Raises ValueError if the budget is too small; it names the smallest.
    """
    specs = [layer.spec for layer in find_layers(model, include, exclude)]
    kind = "softmax" if softmax else "search"
    mixing = "avg" if generator == "avg" else f"{kind}_{generator}"
    scheme = Scheme(mixing, "inter", templates, allocator)
    is_released = allocator == "reference"
    dense, request = count_parameters(model), parse_budget(budget)
    unshared = dense - sum(spec.size for spec in specs)
    coefficients = GENERATORS[mixing].count([templates] * len(specs))
    fixed = 0 if is_released else unshared + coefficients
    floor = fixed + templates * SMALLEST_TEMPLATE
    largest = max(specs, key=lambda spec: spec.size)
    ceiling = min(dense, fixed + templates * largest.size)
    allowed = min(request.allowed(dense), dense if is_released else max(ceiling, floor))
    if allowed < floor:
        raise ValueError(
            f"budget={request.canonical} allows {allowed:,} parameters, but a search for groups"
            f" with {templates} templates a layer needs at least {floor:,}: ask for"
            f" budget={spell_count(floor)} or more, or name the groups yourself"
        )
    source = _whole_map(allowed - fixed, templates, largest, max(allowed // 1000, len(specs)))
    template = allowed // templates if is_released else math.prod(source)
    maps = {spec.shape: search_map(template, spec) for spec in specs}
    if not is_released:
        maps[largest.shape] = source
    layers = []
    for spec in specs:
        size = math.prod(maps[spec.shape])
        # The released code puts a layer's maps side by side, although they may be smaller than a
        # template. The templates of layers of different shapes are then shifted.
        stride = size if is_released else template
        layers.append(
            LayerAllocation(
                **vars(spec),
                templates=tuple(k * stride for k in range(templates)),
                template_size=size,
                mixing=mixing,
                upsampler="inter",
                source=maps[spec.shape],
            )
        )
    group = GroupAllocation(GROUP, templates * template, tuple(layers))
    used = unshared + group.used
    assert is_released or (used <= allowed and not group.unread), (used, allowed)
    report = BudgetReport(request.canonical, dense, allowed, used)
    return Allocation(scheme, report, unshared, (group,))


def search_map(template: int, layer: LayerSpec) -> tuple[int, int]:
    """Return the map, rows x columns, that a layer reads from `template` values, as released."""
    out, rest = matrix_form(layer.shape)
    rows = min(max(1, math.isqrt(template * out // rest)), template)
    return rows, template // rows


def search_vectors(model: nn.Module) -> dict[str, Tensor]:
    """Return each layer's coefficients, K, or its embedding, by name.

    With `softmax` these are the logits, as in the released code. Raises ValueError for `avg`.
    """
    group, templates = _search_group(model), len(allocation(model).layers[0].templates)
    tensors = dict(model.named_parameters())
    for kind in ("embeddings", "coefficients"):
        if (found := tensors.get(generator_name(kind, 0, templates))) is not None:
            rows = found.detach().cpu().unbind(0)
            return {layer.name: row for layer, row in zip(group.layers, rows, strict=True)}
    raise ValueError("generator='avg' has no coefficients to group layers by: use wavg or emb")


def template_gradients(model: nn.Module, gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the gradient of each layer's loss with respect to a template's values, by name.

    `gradients` are those of the layers' weights. They are backpropagated through the layer's
    resize, so that layers of all shapes can be compared: a positive dot product means that one
    step lowers the loss of both. Coefficients are left out, as they can adapt.
    """
    found = {}
    for layer in _search_group(model).layers:
        values_N = torch.zeros(layer.template_size, requires_grad=True)
        with torch.enable_grad():
            weight = UPSAMPLERS["inter"].weight(values_N, None, layer.source, layer.matrix)
        gradient = gradients[layer.name].detach().float().cpu().reshape(-1)
        (found[layer.name],) = torch.autograd.grad(weight, values_N, gradient)
    return found


def _whole_map(available: int, templates: int, layer: LayerSpec, slack: int) -> tuple[int, int]:
    """Return the largest layer's map, rows x columns, that leaves few of `available` unused.

    Of the row counts near the aspect ratio it takes the one that leaves the fewest values unused;
    if these are more than `slack`, a single row, which leaves less than K.
    """
    template = available // templates
    rows, _ = search_map(template, layer)
    near = range(max(1, rows * 4 // 5), min(rows * 5 // 4 + 1, template) + 1)
    best = min(near, key=lambda r: (template % r, abs(r - rows)))
    if available - templates * (template - template % best) > slack:
        best = 1
    return best, template // best


def _search_group(model: nn.Module) -> GroupAllocation:
    groups = allocation(model).groups
    assert len(groups) == 1 and all(layer.upsampler == "inter" for layer in groups[0].layers)
    return groups[0]
