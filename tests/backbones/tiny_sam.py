"""Tiny random SAM and SAM 2 folders as transformers saves them: 64 pixels, image embeddings 16 x 8 x 8."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

__all__ = ["SIDE", "images", "save_tiny_sam", "save_tiny_sam2"]

SIDE = 64

_DECODER = {
    "hidden_size": 16,
    "mlp_dim": 24,
    "num_attention_heads": 2,
    "iou_head_hidden_dim": 16,
}


def images(count: int = 2, seed: int = 0) -> torch.Tensor:
    """Images as `encode` takes them."""
    return torch.randn((count, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(seed))


def save_tiny_sam(folder: Path, seed: int = 0) -> Path:
    """Four blocks; the second and the last attend globally; windows of 3 leave the grid of 8 padded."""
    from transformers import SamConfig, SamModel

    config = SamConfig(
        vision_config={
            "hidden_size": 32,
            "output_channels": 16,
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
            "image_size": SIDE,
            "patch_size": 8,
            "window_size": 3,
            "global_attn_indexes": [1, 3],
            "num_pos_feats": 8,
            "mlp_dim": 48,
        },
        prompt_encoder_config={"hidden_size": 16, "image_size": SIDE, "patch_size": 8},
        mask_decoder_config=_DECODER,
    )
    return _save(SamModel, config, folder, seed)


def save_tiny_sam2(folder: Path, seed: int = 0, *, video: bool = False) -> Path:
    """Four stages of one or two blocks; the features of the decoder have strides 2, 4 and 8."""
    from transformers import Sam2Config, Sam2Model, Sam2VideoConfig, Sam2VideoModel

    parts: dict[str, Any] = {
        "vision_config": {
            "backbone_config": {
                "model_type": "sam2_hiera_det_model",
                "hidden_size": 8,
                "image_size": [SIDE, SIDE],
                "patch_kernel_size": [3, 3],
                "patch_stride": [2, 2],
                "patch_padding": [1, 1],
                "blocks_per_stage": [1, 1, 2, 1],
                "embed_dim_per_stage": [8, 16, 32, 64],
                "num_attention_heads_per_stage": [1, 1, 2, 2],
                "window_size_per_stage": [8, 4, 7, 4],
                "global_attention_blocks": [3],
            },
            "backbone_channel_list": [64, 32, 16, 8],
            "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
            "fpn_hidden_size": 16,
        },
        "prompt_encoder_config": {"hidden_size": 16, "image_size": SIDE, "patch_size": 8},
        "mask_decoder_config": _DECODER,
    }
    if video:
        memory = {"memory_attention_hidden_size": 16, "memory_attention_feed_forward_hidden_size": 16}
        memory |= {"memory_attention_num_layers": 1, "memory_encoder_hidden_size": 16}
        return _save(Sam2VideoModel, Sam2VideoConfig(**parts, **memory), folder, seed)
    return _save(Sam2Model, Sam2Config(**parts), folder, seed)


def _save(model: Any, config: Any, folder: Path, seed: int) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = model(config)
    generator = torch.Generator().manual_seed(seed)
    # Fresh networks of this family are almost zero: no position, no relative position, weights of 1e-10.
    for module in network.modules():
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            if tensor.is_floating_point():
                nn.init.normal_(tensor, std=0.3, generator=generator)
            if isinstance(module, nn.LayerNorm) and tensor is module.weight:
                tensor.data += 1
    network.save_pretrained(folder)
    processor = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.2, 0.25], "size": {"longest_edge": SIDE}}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder
