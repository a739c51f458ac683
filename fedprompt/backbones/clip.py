"""Frozen CLIP models (Radford et al., ICML 2021) from `transformers`: images and texts in one space."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from fedprompt.backbones.attention import Block, Tokens, run_blocks
from fedprompt.backbones.base import Features, Geometry, Preprocessing
from fedprompt.backbones.hub import Encoder, HubBackbone, read_encoder, read_preprocessing
from fedprompt.errors import ConfigurationError, DataError

__all__ = ["CLIP"]

Tokenizer = Any  # of transformers, which takes a second to import and is hardly typed


class CLIP(HubBackbone):
    """CLIP and its descendants, such as PubMedCLIP. Their one feature is the class token (B, D, 1, 1).

    Prompt tokens enter the blocks of the vision tower. `pool` is the projected image, which `logits` compares
    with the text features of classes; there is no decoder.

    Args:
        encoder: Vision and text tower with projections and temperature, as transformers loads them.
        preprocessing: Of images.
        tokenizer: Of texts.
    """

    name: ClassVar[str] = "clip"
    model_types: ClassVar[tuple[str, ...]] = ("clip",)
    model_class: ClassVar[str] = "CLIPModel"
    load_options: ClassVar[Mapping[str, Any]] = {"attn_implementation": "sdpa"}  # has a causal mode
    usual: ClassVar[Preprocessing] = Preprocessing(
        (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711), 224
    )

    def __init__(self, encoder: Encoder, preprocessing: Preprocessing, tokenizer: Tokenizer) -> None:
        super().__init__(encoder, preprocessing)
        self.tokenizer = tokenizer
        self.longest = int(encoder.config.text_config.max_position_embeddings)  # text, in tokens
        vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()))
        self._vocabulary = hashlib.sha256(vocabulary.encode()).hexdigest()

    @classmethod
    def from_pretrained(cls, source: Path | str, classes: int | None = None, **options: Any) -> Self:
        """The model of a local transformers folder or of a hub id; errors as in `HubBackbone`."""
        if classes is not None:
            raise ConfigurationError(f"{source}: expected a task without masks for backbone clip, got masks")
        encoder = read_encoder(cls, source)
        tokenizer = _read_tokenizer(source, encoder)
        return cls(encoder, read_preprocessing(source, cls.usual), tokenizer, **options)

    def config(self) -> dict[str, object]:
        """The vocabulary's digest, since it decides what a class name means."""
        return {"vocabulary": self._vocabulary}

    @classmethod
    def rebuild(cls, config: Mapping[str, Any], encoder: Path) -> Self:
        found = cls.from_pretrained(encoder)
        if config["vocabulary"] != found.config()["vocabulary"]:
            raise DataError(
                f"{encoder}: expected the tokenizer that this folder was written with, got another"
            )
        return found

    def save_encoder(self, folder: Path) -> None:
        super().save_encoder(folder)
        self.tokenizer.save_pretrained(folder)

    @property
    def leading(self) -> int:
        """Rows of the hidden state in front of the patches."""
        return 1

    def encode(self, images: Tensor, stop: int | None = None) -> Features:
        vision = self.encoder.vision_model
        hidden = vision.pre_layrnorm(vision.embeddings(images, interpolate_pos_encoding=True))
        if stop is None:
            return self._features(run_blocks(self._blocks(), hidden))
        return (run_blocks(self._blocks()[:stop], hidden),)

    def resume(self, state: Features, start: int, tokens: Tokens | None = None) -> Features:
        return self._features(run_blocks(self._blocks(), state[0], start, tokens))

    def pool(self, features: Features) -> Tensor:
        """The image in the space that it shares with texts (B, E), not normalised."""
        pooled: Tensor = self.encoder.visual_projection(features[-1].flatten(1))
        return pooled

    def logits(self, pooled: Tensor, text: Tensor) -> Tensor:
        """Logits (B, C): cosine of images (B, E) and texts (C, E), divided by the model's temperature."""
        # A cosine times 100 keeps one decimal in bfloat16.
        with torch.autocast(pooled.device.type, enabled=False):
            cosine = F.normalize(pooled.float(), dim=1) @ F.normalize(text.float(), dim=1).T
            scaled: Tensor = cosine * self.encoder.logit_scale.float().exp()
        return scaled

    def tokenise(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Texts to token ids (C, L), padded on the right, and the position of each text's last token (C,).

        Raises:
            ConfigurationError: A text is longer than the model's positions.
        """
        read = self.tokenizer(
            list(texts), padding=True, padding_side="right", return_tensors="pt", verbose=False
        )
        lengths = read["attention_mask"].sum(dim=1)
        longest = int(lengths.argmax())
        if lengths[longest] > self.longest:
            raise ConfigurationError(
                f"class text {texts[longest]!r}: expected at most {self.longest} tokens of the text model, "
                f"got {int(lengths[longest])}"
            )
        return read["input_ids"], lengths - 1

    def embed_words(self, ids: Tensor) -> Tensor:
        """Token ids (C, L) to word embeddings (C, L, D), without positions."""
        words: Tensor = self.encoder.text_model.embeddings.token_embedding(ids)
        return words

    def text_features(self, embeddings: Tensor, ends: Tensor) -> Tensor:
        """Word embeddings (C, L, D) of texts that end at positions `ends` (C,) to text features (C, E)."""
        model = self.encoder.text_model
        placed = model.embeddings(inputs_embeds=embeddings)
        hidden = model.encoder(inputs_embeds=placed, attention_mask=None, is_causal=True).last_hidden_state
        last = hidden[torch.arange(len(ends), device=hidden.device), ends]
        features: Tensor = self.encoder.text_projection(model.final_layer_norm(last))
        return features

    def _geometry(self, decoder_channels: tuple[int, ...]) -> Geometry:
        config = self.encoder.config.vision_config
        return Geometry(
            channels=(config.hidden_size,),
            strides=(0,),
            decoder_channels=decoder_channels,
            pooled=self.encoder.config.projection_dim,
            blocks=config.num_hidden_layers,
            width=config.hidden_size,
            heads=config.num_attention_heads,
            multiple=config.patch_size,
        )

    def _blocks(self) -> list[Block]:
        return [_block(layer) for layer in self.encoder.vision_model.encoder.layers]

    def _features(self, hidden: Tensor) -> Features:
        token: Tensor = self.encoder.vision_model.post_layernorm(hidden[:, 0])
        return (token[:, :, None, None],)


def _block(layer: Encoder) -> Block:
    attention = layer.self_attn
    return Block(
        own=partial(layer, attention_mask=None),
        norm_attention=layer.layer_norm1,
        query=attention.q_proj,
        key=attention.k_proj,
        value=attention.v_proj,
        out=attention.out_proj,
        norm_mlp=layer.layer_norm2,
        mlp=layer.mlp,
        heads=attention.num_heads,
        scale=attention.scale,
    )


def _read_tokenizer(source: Path | str, encoder: Encoder) -> Tokenizer:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        ids = tokenizer("a")["input_ids"]
    except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        cause = str(error).strip().splitlines()[0]
        raise DataError(f"{source}: expected a CLIP tokenizer, got: {cause}") from None
    # Without its files, transformers makes up an empty tokenizer, in which every word is the end of the text.
    text = encoder.config.text_config
    end = max(ids) if text.eos_token_id == 2 else text.eos_token_id  # 2: files older than the right number
    if len(tokenizer) > text.vocab_size or ids.count(end) != 1 or ids[-1] != end:
        raise DataError(f"{source}: expected the tokenizer of its CLIP text model, got none or another")
    return tokenizer
