"""SAM: the library's numbers with idle prompts, tokens in every kind of block, masks from class prompts."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_sam import SIDE, images, save_tiny_sam
from torch.nn import functional as F

from fedprompt.backbones.attention import Tokens
from fedprompt.backbones.base import fingerprint, freeze
from fedprompt.backbones.sam import SAM
from fedprompt.backbones.sam_attention import SamBlock
from fedprompt.errors import ConfigurationError, DataError

BLOCKS = range(4)  # 0 and 2 attend within windows, 1 and 3 globally


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_sam(tmp_path_factory.mktemp("sam"))


@pytest.fixture(scope="module")
def library(folder: Path) -> Any:
    from transformers import SamModel

    return SamModel.from_pretrained(folder).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def sam(folder: Path) -> SAM:
    backbone = SAM.from_pretrained(folder)
    freeze(backbone)
    return backbone


def drawn(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def tokens_in(block: int, gate: float = 0.7) -> Tokens:
    return Tokens(enter={block: drawn(3, 32)}, gates={block: torch.tensor([gate, -gate])})


# image encoder


def test_the_embedding_is_the_librarys(sam: SAM, library: Any) -> None:
    (embedding,) = sam.encode(images())
    torch.testing.assert_close(embedding, library.get_image_embeddings(images()), rtol=0, atol=1e-5)
    assert embedding.shape == (2, *sam.geometry.channels, SIDE // sam.geometry.strides[0], SIDE // 8)
    assert sam.pool((embedding,)).shape == (2, sam.geometry.pooled)


@pytest.mark.parametrize("block", BLOCKS)
def test_stopping_in_front_of_a_block_and_going_on_changes_nothing(
    sam: SAM, library: Any, block: int
) -> None:
    seen = []
    hook = library.vision_encoder.layers[block].register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    expected = library.get_image_embeddings(images())
    hook.remove()
    state = sam.encode(images(), stop=block)
    torch.testing.assert_close(state[0], seen[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(sam.resume(state, block)[0], expected, rtol=0, atol=1e-5)


def test_zero_gates_are_the_library_whatever_the_tokens(sam: SAM, library: Any) -> None:
    tokens = Tokens({b: 9 * drawn(3, 32, seed=b) for b in BLOCKS}, {b: torch.zeros(2) for b in BLOCKS})
    (embedding,) = sam.resume(sam.encode(images(), stop=0), 0, tokens)
    torch.testing.assert_close(embedding, library.get_image_embeddings(images()), rtol=0, atol=1e-5)


@pytest.mark.parametrize("block", BLOCKS)
def test_open_gates_change_every_position_in_windowed_and_global_blocks(sam: SAM, block: int) -> None:
    state = sam.encode(images(), stop=block)
    (idle,), (prompted,) = sam.resume(state, block), sam.resume(state, block, tokens_in(block))
    assert ((idle - prompted).abs().amax(dim=1) > 1e-4).all()


@pytest.mark.parametrize("block", BLOCKS)
def test_a_prompted_block_equals_a_loop_over_windows_and_heads(sam: SAM, block: int) -> None:
    state, tokens = sam.encode(images(), stop=block), tokens_in(block)
    layer = sam.encoder.vision_encoder.layers[block]
    hidden = slow_block(layer, state[0], tokens.enter[block], tokens.gates[block])
    expected = sam.resume((hidden,), block + 1)
    torch.testing.assert_close(sam.resume(state, block, tokens), expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("block", [0, 1])
def test_projections_without_a_bias_are_prompted_too(sam: SAM, block: int) -> None:
    layer = copy.deepcopy(sam.encoder.vision_encoder.layers[block])
    layer.attn.qkv.bias = None
    hidden, tokens, gate = drawn(2, 8, 8, 32), drawn(3, 32), torch.tensor([0.5, 2])
    got, _ = SamBlock(layer).prompted(hidden, tokens, gate, travels=True)
    torch.testing.assert_close(got, slow_block(layer, hidden, tokens, gate), rtol=1e-4, atol=2e-5)


def slow_block(layer: Any, hidden: torch.Tensor, tokens: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """Window by window, head by head, straight from the definition; the image's part is the library's."""
    side = layer.window_size or hidden.shape[1]
    attention, heads = layer.attn, len(gate)
    normed = layer.layer_norm1(hidden)
    spare = -hidden.shape[1] % side
    padded = F.pad(normed, (0, 0, 0, spare, 0, spare))
    _, key, value = attention.qkv(layer.layer_norm1(tokens)).chunk(3, dim=-1)
    attended = torch.zeros_like(padded)
    for top in range(0, padded.shape[1], side):
        for left in range(0, padded.shape[2], side):
            window = padded[:, top : top + side, left : left + side]
            out = attention(window)[0]
            query = attention.qkv(window).chunk(3, dim=-1)[0]
            given = []
            for head in range(heads):
                part = slice(16 * head, 16 * head + 16)
                weight = (query[..., part] @ key[:, part].T / 4).softmax(dim=-1)
                given.append(gate[head] * (weight @ value[:, part]))
            out = out + torch.cat(given, dim=-1) @ attention.proj.weight.T
            attended[:, top : top + side, left : left + side] = out
    hidden = hidden + attended[:, : hidden.shape[1], : hidden.shape[2]]
    return hidden + layer.mlp(layer.layer_norm2(hidden))


def test_shallow_tokens_travel_through_windows_and_learn_from_the_image_in_global_blocks(sam: SAM) -> None:
    layers = sam.encoder.vision_encoder.layers
    entered, gates = drawn(3, 32), {b: drawn(2, seed=10 + b) for b in BLOCKS}
    state = sam.encode(images(), stop=0)
    after_0 = slow_block(layers[0], state[0], entered, gates[0])
    after_1 = slow_block(layers[1], after_0, entered, gates[1])
    learned = [slow_tokens(layers[1], after_0[i], entered) for i in range(2)]
    after_2 = torch.cat([slow_block(layers[2], after_1[i : i + 1], learned[i], gates[2]) for i in range(2)])
    after_3 = torch.cat([slow_block(layers[3], after_2[i : i + 1], learned[i], gates[3]) for i in range(2)])
    got = sam.resume(state, 0, Tokens({0: entered}, gates))
    torch.testing.assert_close(got, sam.resume((after_3,), 4), rtol=1e-4, atol=5e-5)


def slow_tokens(layer: Any, hidden: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Tokens (P, D) behind a global block on one image (h, w, D)."""
    seen = layer.layer_norm1(torch.cat([hidden.flatten(0, 1), tokens]))
    query, key, value = layer.attn.qkv(seen).chunk(3, dim=-1)
    heads = []
    for head in range(2):
        part = slice(16 * head, 16 * head + 16)
        weight = (query[-len(tokens) :, part] @ key[:, part].T / 4).softmax(dim=-1)
        heads.append(weight @ value[:, part])
    tokens = tokens + layer.attn.proj(torch.cat(heads, dim=-1))
    return tokens + layer.mlp(layer.layer_norm2(tokens))


def test_an_entry_replaces_what_travelled(sam: SAM) -> None:
    state = sam.encode(images(), stop=1)
    gates = {1: torch.zeros(2), 3: torch.ones(2)}
    got = sam.resume(state, 1, Tokens({1: drawn(3, 32), 3: drawn(2, 32, seed=2)}, gates))
    later = sam.resume(sam.encode(images(), stop=3), 3, Tokens({3: drawn(2, 32, seed=2)}, {3: torch.ones(2)}))
    torch.testing.assert_close(got, later, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("block", BLOCKS)
def test_tokens_of_one_image_stay_with_it(sam: SAM, block: int) -> None:
    state, gates = sam.encode(images(), stop=block), {b: torch.ones(2) for b in range(block, 4)}
    own = drawn(2, 3, 32)
    (together,) = sam.resume(state, block, Tokens({block: own}, gates))
    for image in range(2):
        (alone,) = sam.resume((state[0][image : image + 1],), block, Tokens({block: own[image]}, gates))
        torch.testing.assert_close(together[image : image + 1], alone, rtol=1e-4, atol=2e-5)


def test_gradients_reach_tokens_and_gates_only(sam: SAM) -> None:
    tokens, gates = drawn(3, 32).requires_grad_(), [torch.zeros(2, requires_grad=True) for _ in BLOCKS]
    state = sam.encode(images(), stop=0)
    sam.resume(state, 0, Tokens({0: tokens}, dict(enumerate(gates))))[0].square().mean().backward()
    assert all(gate.grad is not None and gate.grad.abs().min() > 0 for gate in gates)
    sam.resume(state, 0, Tokens({0: tokens}, dict.fromkeys(BLOCKS, torch.ones(2))))[
        0
    ].square().mean().backward()
    assert tokens.grad is not None
    assert tokens.grad.abs().min() > 0
    assert all(parameter.grad is None for parameter in sam.parameters())


# mask decoder


def ask(library: Any, **prompts: torch.Tensor) -> torch.Tensor:
    output = library(pixel_values=images(), multimask_output=False, **prompts)
    masks: torch.Tensor = output.pred_masks[:, :, 0]
    return masks


def clicks(sam: SAM, count: int, classes: int) -> dict[str, torch.Tensor]:
    return {
        "input_points": sam.start_points(count).expand(2, classes, -1, -1),
        "input_labels": torch.ones(2, classes, count, dtype=torch.long),
    }


@pytest.mark.parametrize(("count", "classes"), [(1, 1), (4, 2), (7, 3)])
def test_untrained_prompts_are_the_library_clicked_on_a_grid(
    sam: SAM, library: Any, count: int, classes: int
) -> None:
    logits = sam.decode_masks(
        sam.encode(images()), torch.zeros(classes, count, 16), torch.zeros(classes, 16, 4, 4)
    )
    assert logits.shape == (2, classes + 1, *sam.mask_size())
    assert sam.mask_size() == (4 * SIDE // 8, 4 * SIDE // 8)
    assert not logits[:, 0].any()
    torch.testing.assert_close(logits[:, 1:], ask(library, **clicks(sam, count, classes)), rtol=0, atol=1e-5)


def test_start_points_lie_evenly_in_the_image(sam: SAM) -> None:
    assert sam.start_points(1).tolist() == [[31.5, 31.5]]
    assert sam.start_points(4).tolist() == [[15.5, 15.5], [47.5, 15.5], [15.5, 47.5], [47.5, 47.5]]
    for count in range(1, 65):
        places = sam.start_points(count)
        assert len(places.unique(dim=0)) == count
        torch.testing.assert_close(places.mean(dim=0), torch.full((2,), 31.5), rtol=0, atol=SIDE / 10)
        assert (places > 0).all()
        assert (places < SIDE).all()


def test_offsets_move_the_masks_of_their_class_only(sam: SAM) -> None:
    features = sam.encode(images())
    still = sam.decode_masks(features, torch.zeros(2, 4, 16), torch.zeros(2, 16, 4, 4))
    sparse, dense = torch.zeros(2, 4, 16), torch.zeros(2, 16, 4, 4)
    sparse[0], dense[1] = drawn(4, 16), drawn(16, 4, 4)
    for moved, own in (
        (sam.decode_masks(features, sparse, torch.zeros_like(dense)), 1),
        (sam.decode_masks(features, torch.zeros_like(sparse), dense), 2),
    ):
        changed = (moved - still).abs().amax(dim=(0, 2, 3)) > 1e-3
        assert changed.tolist() == [index == own for index in range(3)]


def test_a_dense_embedding_is_added_to_that_of_no_mask_at_any_grid(sam: SAM, library: Any) -> None:
    offset = drawn(16)
    dense = offset.view(1, 16, 1, 1).expand(1, 16, 2, 2)
    got = sam.decode_masks(sam.encode(images()), torch.zeros(1, 4, 16), dense)[:, 1:]
    before = library.prompt_encoder.no_mask_embed.weight.data.clone()
    library.prompt_encoder.no_mask_embed.weight.data += offset
    expected = ask(library, **clicks(sam, 4, 1))
    library.prompt_encoder.no_mask_embed.weight.data = before
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


POINTS = torch.tensor([[[[3.0, 60], [20, 9]], [[0, 0], [64, 64]]], [[[31, 7], [5, 5]], [[1, 2], [3, 4]]]])
LABELS = torch.tensor([[[1, 0], [0, 0]], [[1, 1], [0, 1]]])
BOXES = torch.tensor([[[0.0, 0, 64, 64], [3, 5, 20, 30]], [[7, 8, 9, 10], [30, 1, 50, 60]]])


@pytest.mark.parametrize("given", ["points", "boxes", "both"])
def test_a_users_points_and_boxes_join_the_learned_ones(sam: SAM, library: Any, given: str) -> None:
    points = None if given == "boxes" else (POINTS, LABELS)
    boxes = None if given == "points" else BOXES
    prompts = clicks(sam, 4, 2)
    if points:
        prompts["input_points"] = torch.cat([prompts["input_points"], POINTS], dim=2)
        prompts["input_labels"] = torch.cat([prompts["input_labels"], LABELS], dim=2)
    if boxes is not None:
        prompts["input_boxes"] = boxes
    zeros = torch.zeros(2, 4, 16), torch.zeros(2, 16, 4, 4)
    got = sam.decode_masks(sam.encode(images()), *zeros, points=points, boxes=boxes)
    torch.testing.assert_close(got[:, 1:], ask(library, **prompts), rtol=0, atol=1e-5)


def test_a_class_without_a_box_or_a_click_gets_none(sam: SAM) -> None:
    features, learned = sam.encode(images()), (drawn(2, 4, 16), drawn(2, 16, 4, 4))
    boxes = BOXES.clone()
    boxes[0, 1] = torch.nan
    everywhere = sam.decode_masks(features, *learned, boxes=BOXES)
    some = sam.decode_masks(features, *learned, boxes=boxes)
    torch.testing.assert_close(some[1], everywhere[1])
    torch.testing.assert_close(some[0, 1], everywhere[0, 1])
    # What SAM makes of a point that is none: the embedding "not a point", as often as a box has corners.
    none = sam.decode_masks(features, *learned, points=(POINTS[:, :, :1], torch.full((2, 2, 1), -1)))
    torch.testing.assert_close(some[0, 2], none[0, 2], rtol=0, atol=1e-5)


def test_gradients_reach_class_prompts_and_features_only(sam: SAM) -> None:
    sparse, dense = torch.zeros(2, 4, 16, requires_grad=True), torch.zeros(2, 16, 4, 4, requires_grad=True)
    (embedding,) = sam.encode(images())
    embedding.requires_grad_()
    logits = sam.decode_masks((embedding,), sparse, dense, boxes=BOXES)
    target = torch.arange(2).view(2, 1, 1).expand(2, *sam.mask_size())
    F.cross_entropy(logits, target).backward()
    for tensor in (sparse, dense, embedding):
        assert tensor.grad is not None
        assert (tensor.grad.flatten(1).abs().sum(dim=1) > 0).all()
    assert not torch.equal(sparse.grad[0], sparse.grad[1])  # type: ignore[index]
    assert all(parameter.grad is None for parameter in sam.parameters())


# files and wrong input


def test_preprocessing_comes_from_the_folder_and_the_size_from_the_network(sam: SAM, folder: Path) -> None:
    grey = torch.full((1, 3, SIDE, SIDE), 0.5)
    torch.testing.assert_close(sam.preprocess(grey)[0, :, 0, 0], torch.tensor([0.5, 0.0, -0.4]))
    stored = json.loads((folder / "preprocessor_config.json").read_text())
    assert sam.preprocessing.size == stored["size"]["longest_edge"]
    assert sam.usual.size != SIDE


def test_a_saved_encoder_is_rebuilt(sam: SAM, tmp_path: Path) -> None:
    sam.save_encoder(tmp_path)
    again = SAM.rebuild(json.loads(json.dumps(sam.config())), tmp_path)
    assert fingerprint(again) == fingerprint(sam)
    assert again.classes is None
    assert again.head is None


def test_only_the_native_size_fits(sam: SAM) -> None:
    sam.check_size(SIDE)
    for side in (32, 128):
        with pytest.raises(
            ConfigurationError, match=rf"image\.size: backbone sam expected 64, .* got {side}"
        ):
            sam.check_size(side)


def test_a_folder_of_another_type_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(ConfigurationError, match="expected an encoder of type sam, got vit"):
        SAM.from_pretrained(tmp_path)


def test_missing_weights_are_not_made_up(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = save_tiny_sam(tmp_path) / "model.safetensors"
    arrays = load_file(weights)
    del arrays["prompt_encoder.no_mask_embed.weight"]
    save_file(arrays, weights, metadata={"format": "pt"})
    with pytest.raises(DataError, match="expected all weights of a sam, got none for prompt_encoder"):
        SAM.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("points", "boxes", "message"),
    [
        ((POINTS + 1, LABELS), None, r"points: expected x and y from 0 to 64 .* got \(65, 65\)"),
        ((POINTS * torch.nan, LABELS), None, r"points: expected x and y from 0 to 64 .* got \(nan, nan\)"),
        ((POINTS[:, :1], LABELS), None, r"points: expected .*2 classes.* got \(2, 1, 2, 2\)"),
        ((POINTS, LABELS[..., :1]), None, r"points: expected labels of shape \(2, 2, 2\), got \(2, 2, 1\)"),
        ((POINTS, LABELS + 1), None, r"points: expected labels 1 \(inside\), 0 \(outside\) or -1"),
        (None, BOXES[..., :2], r"boxes: expected left, top, right, bottom.* got \(2, 2, 2\)"),
        (None, BOXES[:1], r"boxes: .* got \(1, 2, 4\)"),
        (None, BOXES + 1, r"boxes: expected left < right .* 0 to 64 .* got \(1, 1, 65, 65\)"),
        (None, BOXES.flip(-1), r"boxes: expected left < right .* got \(64, 64, 0, 0\)"),
    ],
)
def test_wrong_points_and_boxes_are_answered_in_one_sentence(
    sam: SAM, points: Any, boxes: Any, message: str
) -> None:
    features = sam.encode(images())
    with pytest.raises(ConfigurationError, match=message):
        sam.decode_masks(
            features, torch.zeros(2, 4, 16), torch.zeros(2, 16, 4, 4), points=points, boxes=boxes
        )
