"""Tiny random transformers, saved as `transformers` saves real ones, to be read back through our own code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

__all__ = ["tiny_clip", "tiny_dinov2", "tiny_tokenizer", "tiny_vit"]

_WHOLE_WORDS = ("a", "photo", "of", "mole", "melanoma")  # the other words are spelled


def tiny_vit(folder: Path, *, seed: int = 1) -> Path:
    """Three blocks of width 24 on a grid of 4 x 4 patches of 8 pixels, with an unneeded classifier."""
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(**_size(), image_size=32, patch_size=8, num_labels=3)
    _save(ViTForImageClassification, config, folder, seed)
    return _with_preprocessing(folder, mean=0.5, std=0.25, side=32)


def tiny_dinov2(folder: Path, *, registers: int = 0, swiglu: bool = False, seed: int = 2) -> Path:
    """Three blocks of width 24 on a grid of 4 x 4 patches of 7 pixels."""
    import transformers

    given = {"image_size": 28, "patch_size": 7, "mlp_ratio": 2, "use_swiglu_ffn": swiglu, **_size()}
    if registers:
        config: Any = transformers.Dinov2WithRegistersConfig(**given, num_register_tokens=registers)
        _save(transformers.Dinov2WithRegistersModel, config, folder, seed)
    else:
        _save(transformers.Dinov2Model, transformers.Dinov2Config(**given), folder, seed)
    return _with_preprocessing(folder, mean=0.4, std=0.2, side=28)


def tiny_clip(folder: Path, *, positions: int = 24, seed: int = 3) -> Path:
    """A vision tower as `tiny_vit`, a text tower of two blocks of width 20, a common space of 16."""
    from transformers import CLIPConfig, CLIPModel

    tokenizer = tiny_tokenizer()
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 20,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": positions,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {**_size(), "image_size": 32, "patch_size": 8}
    _save(CLIPModel, CLIPConfig(text_config=text, vision_config=vision, projection_dim=16), folder, seed)
    tokenizer.save_pretrained(folder)
    return _with_preprocessing(folder, mean=0.45, std=0.3, side=32)


def tiny_tokenizer(words: tuple[str, ...] = _WHOLE_WORDS) -> Any:
    """CLIP's tokenizer with a vocabulary of characters and a few whole words; the end has the highest id."""
    from transformers import CLIPTokenizer

    characters = [chr(code) for code in range(33, 127)]
    vocabulary = {token: i for i, token in enumerate([*characters, *(c + "</w>" for c in characters)])}
    merges: list[tuple[str, str]] = []
    for word in words:
        *letters, last = word
        parts = [*letters, last + "</w>"]
        while len(parts) > 1:
            pair, parts = (parts[0], parts[1]), [parts[0] + parts[1], *parts[2:]]
            merges += [pair] if pair not in merges else []
            vocabulary.setdefault(parts[0], len(vocabulary))
    for special in ("<|startoftext|>", "<|endoftext|>"):
        vocabulary[special] = len(vocabulary)
    return CLIPTokenizer(vocab=vocabulary, merges=merges)


def _size() -> dict[str, int]:
    return {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3}


def _save(network: Any, config: Any, folder: Path, seed: int) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = network(config)
        with torch.no_grad():
            for parameter in model.parameters():  # the library's values are too regular to tell parts apart
                parameter.add_(0.15 * torch.randn_like(parameter))
    model.save_pretrained(folder)


def _with_preprocessing(folder: Path, *, mean: float, std: float, side: int) -> Path:
    size = {"height": side, "width": side}
    stored = {"image_mean": [mean] * 3, "image_std": [std] * 3, "size": size, "do_normalize": True}
    (folder / "preprocessor_config.json").write_text(json.dumps(stored), encoding="utf-8")
    return folder
