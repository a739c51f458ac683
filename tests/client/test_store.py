"""The prompt store: the state before any round that the server may ask for again."""

import numpy as np
import pytest

from client.store import PromptStore
from fedprompt.errors import DataError


def state(value: float) -> dict[str, np.ndarray]:
    return {"a.b": np.full((2, 2), value, np.float32)}


def test_state_comes_back_by_round(tmp_path) -> None:
    store = PromptStore(tmp_path / "store", "study-1")
    assert store.load(up_to=5) == ({}, {})
    for number in (1, 2, 4):
        store.save(number, state(number), {"exp_avg/a.b": np.float32(number).reshape(1)})
    personal, optimiser = store.load(up_to=4)
    assert personal["a.b"][0, 0] == 4
    assert optimiser["exp_avg/a.b"][0] == 4
    assert store.load(up_to=3)[0]["a.b"][0, 0] == 2
    assert store.load(up_to=1) == ({}, {})  # only the last two are kept


def test_a_round_done_again_forgets_the_later_one(tmp_path) -> None:
    store = PromptStore(tmp_path, "study-1", durable=False)
    for number in (1, 2, 3):
        store.save(number, state(number), {})
    store.save(2, state(20), {})
    assert store.load(up_to=9)[0]["a.b"][0, 0] == 20
    store.save(1, state(10), {})  # a server that lost more than the store keeps starts over
    assert store.load(up_to=9)[0]["a.b"][0, 0] == 10


def test_damaged_and_foreign_state_is_refused(tmp_path) -> None:
    store = PromptStore(tmp_path, "study-1")
    store.save(1, state(1), {})
    with pytest.raises(DataError, match="study"):
        PromptStore(tmp_path, "study-2").load(up_to=1)
    path = next(tmp_path.glob("*.safetensors"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=path.name):
        store.load(up_to=1)
