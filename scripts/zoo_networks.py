"""The public architectures of `scripts/zoo.py`: builders without weights, and inputs.

torchvision: every classification model at full size, on small images. timm and transformers: 25
different ones each, transformers at reduced size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Inputs = tuple[tuple[Tensor, ...], dict[str, Tensor]]


@dataclass(frozen=True)
class Case:
    """An architecture: its name, functions that build it and a batch, and a note."""

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], Inputs]
    note: str = ""


def images(size: int, batch: int = 2) -> Callable[[], Inputs]:
    """Return a function that makes a batch of square RGB images."""
    return lambda: ((torch.randn(batch, 3, size, size),), {})


# torchvision --------------------------------------------------------------------------------------

# Images are 64 x 64 unless the architecture needs more.
TORCHVISION_SIZES = {"inception_v3": 299, "alexnet": 96, "maxvit_t": 224}
# These need the image size when built, for their position embeddings.
TORCHVISION_SIZED = ("vit_b_16", "vit_b_32", "vit_l_16", "vit_l_32")


def torchvision_cases() -> list[Case]:
    """Return every classification model of torchvision."""
    from torchvision import models

    def case(name: str) -> Case:
        size = TORCHVISION_SIZES.get(name, 64)
        options: dict[str, Any] = {"weights": None}
        if name in TORCHVISION_SIZED:
            options["image_size"] = size
        elif name == "vit_h_14":
            size = options["image_size"] = 56
        if name in ("googlenet", "inception_v3"):
            options["init_weights"] = True
        return Case(f"torchvision/{name}", lambda: models.get_model(name, **options), images(size))

    return [case(name) for name in models.list_models(module=models)]


# timm ---------------------------------------------------------------------------------------------

# name: (image size, options of create_model)
TIMM: dict[str, tuple[int, dict[str, Any]]] = {
    "vit_tiny_patch16_224": (64, {"img_size": 64}),
    "beit_base_patch16_224": (64, {"img_size": 64, "embed_dim": 96, "depth": 6, "num_heads": 3}),
    "cait_xxs24_224": (64, {"img_size": 64, "depth": 8}),
    "coatnet_nano_rw_224": (224, {}),
    "convit_tiny": (64, {"img_size": 64}),
    "convmixer_768_32": (64, {}),
    "convnextv2_atto": (64, {}),
    "crossvit_tiny_240": (240, {}),
    "davit_tiny": (224, {}),
    "densenet121": (64, {}),
    "dla34": (64, {}),
    "edgenext_xx_small": (64, {}),
    "eva02_tiny_patch14_224": (56, {"img_size": 56}),
    "focalnet_tiny_srf": (64, {}),
    "halonet26t": (256, {}),
    "hrnet_w18_small": (64, {}),
    "levit_128s": (224, {}),
    "mixer_s32_224": (64, {"img_size": 64}),
    "mobilenetv4_conv_small": (64, {}),
    "nf_regnet_b0": (64, {}),
    "resnetv2_50x1_bit": (64, {}),
    "sequencer2d_s": (64, {"layers": (2, 2, 2, 2)}),
    "swinv2_tiny_window8_256": (64, {"img_size": 64, "depths": (1, 1, 2, 1), "embed_dim": 48}),
    "tf_efficientnetv2_b0": (64, {}),
    "xcit_nano_12_p16_224": (64, {"img_size": 64}),
}  # fmt: skip


def timm_cases() -> list[Case]:
    """Return 25 models of timm with different kinds of layers."""

    def case(name: str, size: int, options: dict[str, Any]) -> Case:
        def build() -> nn.Module:
            import timm

            return timm.create_model(name, pretrained=False, **options)

        return Case(f"timm/{name}", build, images(size))

    return [case(name, *row) for name, row in TIMM.items()]


# transformers -------------------------------------------------------------------------------------


def tokens(vocabulary: int = 512, length: int = 16) -> Callable[[], Inputs]:
    """Return a function that makes a batch of token ids."""
    return lambda: ((), {"input_ids": torch.randint(2, vocabulary, (2, length))})


def two_sides(encoder: str, *shape: int) -> Callable[[], Inputs]:
    """Return a function that makes a batch for an encoder-decoder; no shape: both read tokens."""

    def inputs() -> Inputs:
        read = torch.randn(2, *shape) if shape else torch.randint(2, 512, (2, 16))
        return (), {encoder: read, "decoder_input_ids": torch.randint(2, 512, (2, 8))}

    return inputs


def field(name: str, *shape: int) -> Callable[[], Inputs]:
    """Return a function that makes a batch of two random arrays for a keyword."""
    return lambda: ((), {name: torch.randn(2, *shape)})


def text_and_images() -> Inputs:
    """Make a batch for a two-tower model."""
    return (), {
        "input_ids": torch.randint(2, 512, (2, 16)),
        "pixel_values": torch.randn(2, 3, 64, 64),
    }


SMALL = {
    "vocab_size": 512, "hidden_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4,
    "intermediate_size": 384,
}  # fmt: skip
DECODER = SMALL | {"num_key_value_heads": 2, "use_cache": False, "pad_token_id": 0}
VISION = {k: v for k, v in SMALL.items() if k != "vocab_size"} | {"image_size": 64}
ENCODER_DECODER = {
    "vocab_size": 512, "d_model": 96, "encoder_layers": 3, "decoder_layers": 3,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 384,
    "decoder_ffn_dim": 384, "use_cache": False, "pad_token_id": 0, "decoder_start_token_id": 1,
    "bos_token_id": 1, "eos_token_id": 2, "forced_eos_token_id": 2,
}  # fmt: skip
SPEECH = {
    "conv_dim": (96,) * 4, "conv_stride": (5, 2, 2, 2), "conv_kernel": (10, 3, 3, 2),
    "num_feat_extract_layers": 4, "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4, "mask_time_prob": 0.0,
}  # fmt: skip
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 96}

# class: (options of its config, inputs)
TRANSFORMERS: dict[str, tuple[dict[str, Any], Callable[[], Inputs]]] = {
    "AlbertForMaskedLM": (SMALL | {"embedding_size": 64}, tokens()),
    "ASTForAudioClassification": (
        {k: v for k, v in VISION.items() if k != "image_size"}
        | {"num_mel_bins": 32, "max_length": 64},
        field("input_values", 64, 32),
    ),
    "BartForConditionalGeneration": (ENCODER_DECODER, two_sides("input_ids")),
    "BertForMaskedLM": (SMALL, tokens()),
    "BloomForCausalLM": (
        {"vocab_size": 512, "hidden_size": 96, "n_layer": 4, "n_head": 4, "use_cache": False},
        tokens(),
    ),
    "CLIPModel": (
        {
            "text_config": SMALL | {"projection_dim": 64, "eos_token_id": 511},
            "vision_config": VISION | {"patch_size": 16, "projection_dim": 64},
            "projection_dim": 64,
        },
        text_and_images,
    ),
    "DebertaV2ForMaskedLM": (
        SMALL
        | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 32,
           "share_att_key": False, "norm_rel_ebd": "layer_norm", "conv_kernel_size": 3},
        tokens(),
    ),
    "DeepseekV3ForCausalLM": (
        SMALL | EXPERTS
        | {"num_key_value_heads": 4, "n_routed_experts": 8, "n_group": 2, "topk_group": 1,
           "q_lora_rank": 32, "kv_lora_rank": 32, "qk_rope_head_dim": 16, "qk_nope_head_dim": 16,
           "v_head_dim": 24, "first_k_dense_replace": 1, "use_cache": False},
        tokens(),
    ),
    "FunnelForMaskedLM": (
        {"vocab_size": 512, "d_model": 96, "n_head": 4, "d_head": 24, "d_inner": 384,
         "block_sizes": [2, 2]},
        tokens(),
    ),
    "GPT2LMHeadModel": (
        {"vocab_size": 512, "n_embd": 96, "n_layer": 4, "n_head": 4, "n_positions": 64,
         "use_cache": False, "bos_token_id": 1, "eos_token_id": 2},
        tokens(),
    ),
    "JambaForCausalLM": (
        DECODER
        | {"num_experts": 4, "num_experts_per_tok": 2, "attn_layer_period": 2,
           "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1,
           "mamba_d_state": 8, "use_mamba_kernels": False},
        tokens(),
    ),
    "LlamaForCausalLM": (DECODER, tokens()),
    "Mamba2ForCausalLM": (
        {"vocab_size": 512, "hidden_size": 96, "num_hidden_layers": 4, "state_size": 16,
         "head_dim": 24, "num_heads": 8, "n_groups": 1, "chunk_size": 8, "use_cache": False},
        tokens(),
    ),
    "MambaForCausalLM": (
        {"vocab_size": 512, "hidden_size": 96, "num_hidden_layers": 4, "use_cache": False},
        tokens(),
    ),
    "MixtralForCausalLM": (DECODER | {"num_local_experts": 4, "num_experts_per_tok": 2}, tokens()),
    "PerceiverForMaskedLM": (
        {"vocab_size": 512, "d_model": 96, "d_latents": 96, "num_latents": 32,
         "num_self_attends_per_block": 3, "num_self_attention_heads": 4,
         "num_cross_attention_heads": 4, "qk_channels": 96, "v_channels": 96,
         "max_position_embeddings": 16},
        lambda: ((), {"inputs": torch.randint(2, 512, (2, 16))}),
    ),
    "Qwen3MoeForCausalLM": (DECODER | EXPERTS | {"num_experts": 8, "head_dim": 24}, tokens()),
    "RwkvForCausalLM": (
        {"vocab_size": 512, "hidden_size": 96, "num_hidden_layers": 4, "use_cache": False,
         "rescale_every": 0},
        tokens(),
    ),
    "SegformerForSemanticSegmentation": (
        {"hidden_sizes": [16, 32, 64, 96], "depths": [1, 1, 2, 1], "decoder_hidden_size": 64},
        field("pixel_values", 3, 64, 64),
    ),
    "Swinv2ForImageClassification": (
        {"image_size": 64, "embed_dim": 48, "depths": [1, 2, 2], "num_heads": [2, 4, 8],
         "window_size": 4},
        field("pixel_values", 3, 64, 64),
    ),
    "T5ForConditionalGeneration": (
        {"vocab_size": 512, "d_model": 96, "d_kv": 24, "d_ff": 384, "num_layers": 3,
         "num_heads": 4, "use_cache": False, "decoder_start_token_id": 0},
        two_sides("input_ids"),
    ),
    "ViTForImageClassification": (VISION | {"patch_size": 16}, field("pixel_values", 3, 64, 64)),
    "Wav2Vec2ForCTC": (SMALL | SPEECH, field("input_values", 3200)),
    "WhisperForConditionalGeneration": (
        ENCODER_DECODER | {"num_mel_bins": 20, "max_source_positions": 50},
        two_sides("input_features", 20, 100),
    ),
    "XLNetLMHeadModel": (
        {"vocab_size": 512, "d_model": 96, "n_layer": 4, "n_head": 4, "d_inner": 384,
         "use_mems_eval": False, "use_mems_train": False},
        tokens(),
    ),
}  # fmt: skip


NOTES = {
    "RwkvForCausalLM": "`rescale_every=0`: else it writes into its weights in evaluation mode,"
    " which generated weights refuse; materialized, it may",
}


def transformers_cases() -> list[Case]:
    """Return 25 models of transformers: text, vision, speech, experts, state spaces."""

    def case(name: str, options: dict[str, Any], inputs: Callable[[], Inputs]) -> Case:
        def build() -> nn.Module:
            import transformers

            transformers.logging.set_verbosity_error()
            cls = getattr(transformers, name)
            return cls(cls.config_class(**options))

        return Case(f"transformers/{name}", build, inputs, NOTES.get(name, ""))

    return [case(name, *row) for name, row in TRANSFORMERS.items()]


def all_cases() -> list[Case]:
    """Return all cases, small ones first."""
    return [*transformers_cases(), *timm_cases(), *torchvision_cases()]
