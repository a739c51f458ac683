"""Manifests: selection, sizes, checks and digests."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprompt.errors import RunError
from fedprompt.manifest import Arrays, Manifest, Scope, TensorSpec, arrays_digest

SPECS = st.builds(
    TensorSpec,
    name=st.from_regex(r"[a-z]{1,6}(\.[a-z]{1,4})?", fullmatch=True),
    shape=st.lists(st.integers(0, 4), max_size=3).map(tuple),
    dtype=st.sampled_from(["float32", "int64"]),
    scope=st.sampled_from(list(Scope)),
)
MANIFESTS = st.lists(SPECS, max_size=5, unique_by=lambda spec: spec.name).map(lambda s: Manifest(tuple(s)))
MANIFEST = Manifest(
    (
        TensorSpec("prompts.universal.map", (1, 4, 4), "float32", Scope.SHARED),
        TensorSpec("prompts.data_aware.row", (1, 4, 4), "float32", Scope.SITE),
        TensorSpec("head.bias", (3,), "float32", Scope.SHARED),
    )
)


def zeros(manifest: Manifest) -> Arrays:
    return {spec.name: np.zeros(spec.shape, spec.dtype) for spec in manifest}


@settings(max_examples=50)
@given(MANIFESTS)
def test_json_keeps_everything(manifest: Manifest) -> None:
    again = Manifest.from_json(manifest.to_json())
    assert again == manifest
    assert again.digest() == manifest.digest()
    assert manifest.size() == sum(array.size for array in zeros(manifest).values())
    assert manifest.nbytes() == sum(array.nbytes for array in zeros(manifest).values())


@settings(max_examples=50)
@given(MANIFESTS, st.sets(st.sampled_from(list(Scope))))
def test_a_selection_and_its_complement_are_the_whole(manifest: Manifest, scopes: set[Scope]) -> None:
    inside, outside = manifest.select(*scopes), manifest.select(*(set(Scope) - scopes))
    assert sorted(inside.names() + outside.names()) == sorted(manifest.names())
    assert {spec.scope for spec in inside} <= scopes
    assert inside.names() == [name for name in manifest.names() if name in inside.names()]


def test_scopes_change_and_names_stay() -> None:
    local = MANIFEST.rescoped({Scope.SHARED: Scope.PERSONAL, Scope.SITE: Scope.PERSONAL})
    assert {spec.scope for spec in local} == {Scope.PERSONAL}
    assert local.names() == MANIFEST.names()
    assert local.digest() != MANIFEST.digest()
    assert len(MANIFEST) == 3


def test_a_name_twice_is_refused() -> None:
    spec = TensorSpec("a", (1,), "float32", Scope.SHARED)
    with pytest.raises(ValueError, match="names a tensor twice: a"):
        Manifest((spec, spec))


def test_the_right_arrays_pass() -> None:
    MANIFEST.check(zeros(MANIFEST))


@pytest.mark.parametrize(
    ("name", "array", "sentence"),
    [
        ("head.bias", None, "'head.bias' is missing"),
        ("other", np.zeros(1, np.float32), "'other' is not in the manifest"),
        ("head.bias", np.zeros(4, np.float32), r"expected shape \(3,\), got \(4,\)"),
        ("head.bias", np.zeros(3, np.float64), "expected dtype float32, got float64"),
        ("head.bias", np.array([0, np.nan, 0], np.float32), "expected finite values"),
        ("head.bias", np.array([0, -np.inf, 0], np.float32), "expected finite values"),
    ],
)
def test_any_other_array_is_refused(name: str, array: np.ndarray | None, sentence: str) -> None:
    arrays = {**zeros(MANIFEST), name: array}
    if array is None:
        del arrays[name]
    with pytest.raises(RunError, match=sentence) as caught:
        MANIFEST.check(arrays)
    assert name not in caught.value.public


def test_the_digest_sees_names_shapes_types_and_bytes_but_no_order() -> None:
    base = {"a": np.arange(6, dtype=np.float32), "b": np.zeros((), np.float32)}
    digest = arrays_digest(base)
    assert arrays_digest(dict(reversed(base.items()))) == digest
    assert arrays_digest({**base, "a": np.arange(12, dtype=np.float32)[::2] / 2}) == digest
    others = [
        {**base, "a": base["a"].reshape(2, 3)},
        {**base, "a": base["a"].astype(np.float64)},
        {**base, "a": np.nextafter(base["a"], np.float32(1))},
        {"a": base["a"], "c": base["b"]},
        {**base, "b": np.zeros(1, np.float32)},
    ]
    assert len({digest, *map(arrays_digest, others)}) == len(others) + 1
