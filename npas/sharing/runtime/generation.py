"""`WeightPass`: generate the weights of one forward pass from banks and coefficients.

A layer's weight is generated once per pass; `reading.py` decides which are generated together.
"""

import weakref
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from npas.sharing.generators import schemes
from npas.sharing.generators.bases import BASES, CHANNELS, basis_weight, channel_weight
from npas.sharing.generators.codebook import CODEBOOK, CodebookBlock, codebook_weight
from npas.sharing.generators.hashing import HASH, hashed_weight
from npas.sharing.generators.low_rank import add_correction, factor_names
from npas.sharing.generators.upsample import UPSAMPLERS
from npas.sharing.layers import SCALES, bank_name, indices_name, shared_value
from npas.sharing.layout.allocation import LayerAllocation, learned_name
from npas.sharing.runtime.bank import (
    MODIFIED,
    AnyBlock,
    BankReader,
    BufferPool,
    full_precision,
    mix,
    versions,
)
from npas.sharing.runtime.reading import Batch, Reading, Rows
from npas.sharing.torch_private import hidden_from_checkpoints

Key = tuple[int, torch.dtype]

CHANGED = (
    "one of the variables needed for gradient computation has been modified by an inplace operation"
)


@dataclass(frozen=True)
class _Forgotten:
    """A placeholder for a generated weight, or a view of it, that autograd saves."""

    key: Key
    shape: torch.Size
    stride: tuple[int, ...]
    offset: int | torch.SymInt


class WeightPass:
    """The bank readers, coefficients and weights of one forward pass.

    `kept` weights outlive the pass and have no gradients. With `recompute` a weight is freed as
    soon as no operation uses it, and generated again for a later use or for backward. A weight that
    is identical for several layers stays.
    """

    def __init__(
        self,
        root: nn.Module,
        reading: Reading,
        pool: BufferPool,
        *,
        kept: bool = False,
        recompute: bool = False,
    ) -> None:
        self._root = root
        self._reading = reading
        self._pool = pool
        self._is_kept = kept
        self._recompute = recompute
        self._tensors: dict[str, Tensor] = {}
        self._dtypes: dict[int, tuple[torch.dtype, str]] = {}  # and the device type if it rounds
        self._readers: dict[int, BankReader] = {}
        self._alphas: dict[str, Tensor] = {}
        self._made: dict[tuple[int, torch.dtype, tuple[int, ...]], Tensor] = {}  # not read yet
        self._weights: dict[Key, Tensor] = {}
        self._versions: dict[Key, int] = {}
        self._passing: weakref.WeakValueDictionary[Key, Tensor] = weakref.WeakValueDictionary()
        self._latest: Tensor | None = None  # most layers read their weight twice in a row
        self._again: tuple[Key, Tensor] | None = None  # some use it many times
        self._storages: dict[int, Key] = {}
        self._made_of: dict[Key, tuple[int, ...]] = {}
        self._read: dict[int, None] = {}  # layers in order of their first use

    def weight(self, index: int) -> Tensor:
        """Return the layer's weight, generating it at the first call."""
        self._read.setdefault(index)
        key = index, self._dtype(index)
        weight = self._weights.get(key)
        if weight is None and self._recompute:
            weight = self._passing.get(key)
        if weight is None:
            # Kept weights must also be usable outside inference mode.
            mode = torch.inference_mode(False) if self._is_kept else nullcontext()
            with mode, torch.set_grad_enabled(torch.is_grad_enabled() and not self._is_kept):
                weight = self._generate(index, key[1])
        if weight._version != self._versions[key]:
            raise written(self._reading.places[index][1].name)
        return weight

    def take(self, index: int) -> Tensor:
        """Return the layer's weight and drop it from the pass, unless other layers read it too."""
        weight = self.weight(index)
        if index not in self._reading.common:
            del self._weights[index, self._dtype(index)]
        return weight

    def plain_weight(self, index: int) -> Tensor:
        """Return the layer's weight by plain operations, for compilers and function transforms."""
        dtype, (_, layer) = self._dtype(index), self._reading.places[index]
        with full_precision(self._bank(index).device):
            rows = self._reading.rows.get(index)
            row = layer.scale if rows is None else rows.layers.index(index)
            alpha_K = self._alpha(rows)[row].to(dtype)
            templates = layer.templates, layer.template_size
            return self._shape(index, mix(self._bank(index).to(dtype), alpha_K, *templates))

    def find_written(self) -> str | None:
        """Return the name of a weight whose version counter moved since it was generated."""
        for key, weight in list(self._weights.items()):
            if weight._version != self._versions[key]:
                return self._reading.places[key[0]][1].name
        return None

    def pack(self, tensor: Tensor) -> object:
        """Return what autograd saves for a tensor: a placeholder if it is a generated weight."""
        if tensor.layout is not torch.strided:  # has no storage
            return hold(tensor)
        storage = tensor.untyped_storage()._cdata
        key = self._storages.get(storage)
        weight = None if key is None else self._passing.get(key)
        if key is None or weight is None or weight.untyped_storage()._cdata != storage:
            return hold(tensor)
        if tensor.dtype != weight.dtype:  # a weight viewed as complex
            return hold(tensor)
        return _Forgotten(key, tensor.shape, tensor.stride(), tensor.storage_offset())

    def unpack(self, packed: object) -> Tensor:
        """Return the tensor given to `pack`; RuntimeError if its inputs have changed since."""
        if not isinstance(packed, _Forgotten):
            return give_back(packed, CHANGED)
        again = self._again
        if again is None or again[0] != packed.key:
            weight = self._passing.get(packed.key)
            again = self._again = self._latest = None  # freed before the next one is made
            if weight is None:
                weight = self._generate_again(*packed.key)
            again = self._again = packed.key, weight.detach()
        return again[1].as_strided(packed.shape, packed.stride, packed.offset)

    def _dtype(self, index: int) -> torch.dtype:
        """Return the dtype of the layer's weight: autocast's, if the layer is known to cast it.

        Kept weights are mixed in the bank's dtype and then cast, as materialized weights are.
        """
        if index not in self._dtypes:
            bank_P = self._bank(index)
            device = bank_P.device.type
            rounds = index in self._reading.low and bank_P.dtype == torch.float32
            self._dtypes[index] = bank_P.dtype, device if rounds and device != "meta" else ""
        dtype, device = self._dtypes[index]
        if device and torch.is_autocast_enabled(device):
            return torch.get_autocast_dtype(device)
        return dtype

    def _generate(self, index: int, dtype: torch.dtype) -> Tensor:
        """Generate the weights of a layer's batch, hiding saved tensors from checkpoints."""
        batch = self._batch(index)
        keep = not self._recompute or index in self._reading.common
        group = self._reading.places[index][0]
        bank_P = self._bank(index)
        mixed_dtype = bank_P.dtype if self._is_kept else dtype
        with (
            saved_tensors_hooks(hold, give_back),
            hidden_from_checkpoints(),
            full_precision(bank_P.device),
        ):
            if group not in self._readers:
                self._readers[group] = BankReader(bank_P, self._pool)
            made = self._values(batch, self._readers[group], mixed_dtype)
            alphas = [self._alpha(rows) for rows in batch.alphas]
            mixed = self._readers[group].mix(made, self._blocks(batch), alphas, self._read)
            for i, values in zip(batch.layers, mixed, strict=True):
                weight, key = self._shape(i, values).to(dtype), (i, dtype)
                if self._is_kept:  # matmul depends on it
                    weight = weight.detach().requires_grad_(bank_P.requires_grad)
                self._versions[key] = weight._version
                if keep:
                    self._weights[key] = weight
        if not keep:
            self._passing[key] = self._latest = weight
            self._storages[weight.untyped_storage()._cdata] = key
            self._made_of[key] = versions(*self._inputs(index))
            return weight
        return self._weights[index, dtype]

    def _values(self, batch: Batch, reader: BankReader, dtype: torch.dtype) -> list[Tensor]:
        """Return the values of a batch's layers, made together with all of its set.

        Each batch gets its autograd node when it is read: backward runs late nodes first, and nodes
        made with the set's first batch would collect the gradients of all its layers.
        """
        version = versions(self._bank(batch.layers[0]))
        found = [self._made.pop((i, dtype, version), None) for i in batch.layers]
        if any(values is None for values in found):  # the first of its set
            whole = batch.made_with or batch
            alphas = [self._alpha(rows) for rows in whole.alphas]
            values = reader.weights(self._blocks(whole), alphas, dtype)
            made = dict(zip(whole.layers, values, strict=True))
            found = [made.pop(i) for i in batch.layers]
            self._made |= {(i, dtype, version): values for i, values in made.items()}
        return [values for values in found if values is not None]

    def _blocks(self, batch: Batch) -> Sequence[AnyBlock]:
        """Return a batch's blocks, with the layers' indices if they read a codebook."""
        if not isinstance(batch.blocks[0], CodebookBlock):  # as all of a group do, or none
            return batch.blocks
        return [
            block.bind(self._tensor(indices_name(i)))
            for i, block in zip(batch.layers, batch.blocks, strict=True)
            if isinstance(block, CodebookBlock)
        ]

    def _batch(self, index: int) -> Batch:
        """Return the batch that a layer is generated in: with recompute, the layer alone."""
        return self._reading.alone(index) if self._recompute else self._reading.batches[index]

    @torch.no_grad()
    def _generate_again(self, index: int, dtype: torch.dtype) -> Tensor:
        if versions(*self._inputs(index)) != self._made_of[index, dtype]:
            raise RuntimeError(MODIFIED)
        batch, reader = self._batch(index), self._readers[self._reading.places[index][0]]
        with full_precision(self._bank(index).device):
            alphas = [self._alpha(rows) for rows in batch.alphas]
            (values,) = reader.weights(self._blocks(batch), alphas, dtype)
            return self._shape(index, values)

    def _inputs(self, index: int) -> list[Tensor]:
        """Return the tensors that the layer's weight depends on."""
        learned = self._learned(index)
        own = [*([] if learned is None else [learned]), *self._factors(index)]
        return [self._bank(index), self._alpha(self._reading.rows.get(index)), *own]

    def _tensor(self, name: str) -> Tensor:
        """Return one of the root's tensors as this pass first read it.

        `functional_call` replaces them temporarily, and backward must use the same ones.
        """
        if name not in self._tensors:
            self._tensors[name] = shared_value(self._root, name)
        return self._tensors[name]

    def _bank(self, index: int) -> Tensor:
        return self._tensor(bank_name(self._reading.places[index][0]))

    def _learned(self, index: int) -> Tensor | None:
        layer = self._reading.places[index][1]
        return self._tensor(learned_name(index, layer)) if layer.learned[0] else None

    def _factors(self, index: int) -> list[Tensor]:
        """Return B and A of the layer's low-rank correction; [] if it has none."""
        rank = self._reading.places[index][1].rank
        return [self._tensor(name) for name in factor_names(index)] if rank else []

    def _shape(self, index: int, values: Tensor) -> Tensor:
        """Return the layer's weight from its values: reshaped, and with its low-rank correction."""
        weight, factors = self._upsampled(index, values), self._factors(index)
        return add_correction(weight, *factors) if factors else weight

    def _upsampled(self, index: int, values: Tensor) -> Tensor:
        """Return the values in the layer's shape, upsampled if necessary."""
        _, layer = self._reading.places[index]
        if layer.upsampler is None or values.ndim > 1:
            return values.view(layer.shape)
        learned = self._learned(index)
        if learned is not None and learned.is_floating_point():
            learned = learned.to(values.dtype)
        return _shaped(values, learned, layer).view(layer.shape)

    def _alpha(self, rows: Rows | None) -> Tensor:
        """Return alpha_LK times each layer's scale, L x K; for None the scales, S x 1."""
        name = "" if rows is None else rows.name
        if name not in self._alphas:
            scales = self._tensor(SCALES)
            if rows is None:
                self._alphas[name] = scales[:, None].clone()  # DDP may write to buffers
            else:
                alpha_LK = rows.coefficients(self._tensor)
                # Picked one by one, as an index tensor would synchronize a GPU.
                each, places = scales.unbind(0), self._reading.places
                scale_L = torch.stack([each[places[i][1].scale] for i in rows.layers])
                self._alphas[name] = alpha_LK.to(scales.device) * scale_L[:, None]
        return self._alphas[name]


def written(name: str) -> RuntimeError:
    """Return the error for a generated weight that was modified in place."""
    return RuntimeError(
        f"the generated weight {name!r} was modified in place, which changes no parameter:"
        " initialize the network before npas.share, or call npas.materialize before you change"
        " weights (merging adapters does, too)"
    )


def hold(tensor: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """Return a tensor that autograd saves, detached, and its version.

    Detached because an output refers to the node that saves it; memory and version are shared.
    """
    return tensor.detach(), versions(tensor)


def give_back(held: object, message: str = MODIFIED) -> Tensor:
    """Return the tensor given to `hold`; RuntimeError if it was modified in place since."""
    assert isinstance(held, tuple)
    if versions(held[0]) != held[1]:
        raise RuntimeError(message)
    return held[0]


def _shaped(values: Tensor, learned: Tensor | None, layer: LayerAllocation) -> Tensor:
    """Return the flat weight; `learned` are the upsampler's weights, None if it has none."""
    if layer.upsampler is None:
        return values
    if layer.upsampler == HASH:
        return hashed_weight(values, layer.source[1], layer.size, layer.first)
    if layer.upsampler == CODEBOOK:
        assert learned is not None
        bank, row = layer.template_size, layer.source[1]
        return codebook_weight(values, learned.view(-1), bank, row, layer.size)
    if layer.upsampler in BASES:
        assert learned is not None
        return basis_weight(values, learned, layer)
    if layer.upsampler == CHANNELS:
        assert learned is not None
        return channel_weight(values, learned, layer)
    if layer.upsampler not in UPSAMPLERS:
        return schemes.weight(values, learned, layer)
    upsampler = UPSAMPLERS[layer.upsampler]
    return upsampler.weight(values, learned, layer.source, layer.matrix)
