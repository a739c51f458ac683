"""Which arithmetic a site uses, and what it says when memory runs out."""

from __future__ import annotations

import pytest
import torch

from fedprompt.errors import ConfigurationError, RunError
from fedprompt.training.precision import Precision

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("wanted", ["auto", "fp32", "bf16", "fp16"])
def test_a_cpu_computes_in_float32_whatever_is_asked(wanted: str) -> None:
    precision = Precision.choose(wanted, CPU)
    with precision.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
    assert not precision.scaler().is_enabled()


@pytest.mark.parametrize(
    ("wanted", "able", "dtype"),
    [
        ("auto", True, torch.bfloat16),
        ("auto", False, torch.float32),
        ("fp32", True, torch.float32),
        ("bf16", True, torch.bfloat16),
        ("fp16", False, torch.float16),
    ],
)
def test_a_gpu_takes_what_is_asked_and_auto_what_it_has(
    monkeypatch: pytest.MonkeyPatch, wanted: str, able: bool, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: able)
    assert Precision.choose(wanted, CUDA).dtype == dtype


def test_a_gpu_without_bf16_refuses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla T4")
    with pytest.raises(ConfigurationError, match="expected fp16 or fp32 on a Tesla T4"):
        Precision.choose("bf16", CUDA)


def test_low_precision_computes_matrix_products_in_it() -> None:
    with Precision(CPU, torch.bfloat16).autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("batch", "dtype", "advice"),
    [
        (16, torch.float32, 'try training.batch-size below 16 or backbone.precision "bf16"'),
        (16, torch.bfloat16, "try training.batch-size below 16$"),
        (1, torch.bfloat16, "try a smaller image.size$"),
    ],
)
def test_exhausted_memory_is_one_sentence_with_numbers_and_advice(
    monkeypatch: pytest.MonkeyPatch, batch: int, dtype: torch.dtype, advice: str
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (3 << 29, 16 << 30))
    with (
        pytest.raises(RunError, match=advice) as caught,
        Precision(CUDA, dtype).memory(batch),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory")
    assert f"a batch of {batch}, got 1.5 GiB free of 16.0 GiB" in str(caught.value)
    assert "GiB" not in caught.value.public
