"""BERT and ALBERT of transformers that compute token logits at masked positions only.

All of them would take more memory than the rest of the network.
"""

from typing import Any

import transformers
from torch import Tensor
from transformers.models.albert.modeling_albert import AlbertForPreTrainingOutput
from transformers.models.bert.modeling_bert import BertForPreTrainingOutput


class AtPlaces:
    """A mixin: with `places_BM`, the token logits are of these positions only, BxMxV."""

    def forward(self: Any, *args: Any, places_BM: Tensor | None = None, **given: Any) -> Any:
        if places_BM is None:
            return super().forward(*args, **given)  # type: ignore[misc]
        encoded = self.base_model(*args, **given, return_dict=True)
        states_BLH = encoded.last_hidden_state
        index_BMH = places_BM[:, :, None].expand(-1, -1, states_BLH.shape[2])
        return self.answer(states_BLH.gather(1, index_BMH), encoded.pooler_output)


class BertForPreTraining(AtPlaces, transformers.BertForPreTraining):
    """BERT with heads for masked tokens and sentence order."""

    def answer(self, states_BMH: Tensor, pooled_BH: Tensor) -> Any:
        words, order = self.cls(states_BMH, pooled_BH)
        return BertForPreTrainingOutput(prediction_logits=words, seq_relationship_logits=order)


class AlbertForPreTraining(AtPlaces, transformers.AlbertForPreTraining):
    """ALBERT with heads for masked tokens and sentence order."""

    def answer(self, states_BMH: Tensor, pooled_BH: Tensor) -> Any:
        words, order = self.predictions(states_BMH), self.sop_classifier(pooled_BH)
        return AlbertForPreTrainingOutput(prediction_logits=words, sop_logits=order)
