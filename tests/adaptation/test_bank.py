"""The domain bank: Gaussians against slow references, frozen entries, files, answers under routed prompts."""

from __future__ import annotations

import importlib.util
import json
import stat
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from tiny_families import TINY
from tiny_transformers import tiny_vit

from fedprompt.adaptation import DomainBank, image_styles, predict
from fedprompt.artifacts import write_arrays
from fedprompt.backbones import Backbone
from fedprompt.config import Annotation, Study
from fedprompt.data.phantoms import write_phantoms
from fedprompt.errors import ConfigurationError, DataError, RunError
from fedprompt.models import PromptedClassifier, build_model
from fedprompt.training.local import load_arrays, trained_arrays

MARK = "f" * 64
CENTRES = ((0.0, 0.0, 0.0, 0.0), (2.0, 0.0, 1.0, 0.0), (0.0, 3.0, 0.0, -1.0))
SCALE = np.array([1.0, 0.5, 2.0, 0.1])


def arrays_of(value: float) -> dict[str, np.ndarray]:
    return {"a.tokens": np.full((2, 3), value, np.float32), "head.bias": np.array([value], np.float32)}


def styles_of(scanner: int, count: int = 40, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng([seed, scanner])
    return CENTRES[scanner] + rng.normal(size=(count, 4)) * SCALE


def bank_of(*scanners: int) -> DomainBank:
    bank = DomainBank(MARK)
    for scanner in scanners:
        bank.add(f"scanner-{scanner}", arrays_of(scanner), styles_of(scanner, 40 + 20 * scanner))
    return bank


def shrunk(styles: np.ndarray) -> np.ndarray:
    variance = styles.var(axis=0, ddof=1)
    return 0.8 * variance + 0.2 * variance.mean()


def test_routes_are_the_posterior_of_the_sessions_with_equal_priors() -> None:
    images = np.concatenate([styles_of(scanner, 5, seed=1) for scanner in range(3)])
    weights = bank_of(0, 1, 2).route(images)
    known = [styles_of(scanner, 40 + 20 * scanner) for scanner in range(3)]
    gaussians = [multivariate_normal(s.mean(axis=0), np.diag(shrunk(s))) for s in known]
    for image, row in zip(images, weights, strict=True):
        likelihoods = np.array([gaussian.pdf(image) for gaussian in gaussians])
        np.testing.assert_allclose(row, likelihoods / likelihoods.sum(), rtol=1e-4)


def test_images_go_to_their_scanner_and_extreme_ones_still_have_weights() -> None:
    bank = bank_of(0, 1, 2)
    for scanner in range(3):
        found = bank.route(styles_of(scanner, 200, seed=2)).argmax(axis=1)
        assert (found == scanner).mean() > 0.8
    weights = bank.route(np.full((1, 4), 1e6))
    assert weights.sum() == pytest.approx(1)


def test_a_sessions_reach_is_measured_from_each_image_to_the_others() -> None:
    known = styles_of(0)
    distances = []
    for number, image in enumerate(known):
        others = np.delete(known, number, axis=0)
        distances.append(((image - others.mean(axis=0)) ** 2 / shrunk(others)).mean())
    entry = bank_of(0).entries[0]
    assert entry.reach == pytest.approx(np.mean(distances) + 4 * np.std(distances, ddof=1))
    inside = ((known - known.mean(axis=0)) ** 2 / shrunk(known)).mean(axis=1)
    np.testing.assert_allclose(entry.distances(known), inside, rtol=1e-5)


def test_only_images_beyond_the_reach_of_every_session_are_far() -> None:
    bank = bank_of(0, 1)
    assert bank.far(styles_of(1, 300, seed=3)).mean() < 0.02
    assert bank.far(styles_of(1, 300, seed=3) + 40 * SCALE).all()
    entry = bank.entries[0]
    direction = np.array([[0.0, 0.0, 0.0, 1.0]])
    edge = np.sqrt(4 * entry.reach * entry.variance[3])
    alone = bank_of(0)
    assert alone.far(entry.mean + direction * edge * 1.001).all()
    assert not alone.far(entry.mean + direction * edge * 0.999).any()


def test_few_images_reach_far_enough_for_their_like() -> None:
    far = []
    for seed in range(40):
        bank = DomainBank(MARK)
        bank.add("new", arrays_of(0), styles_of(0, 5, seed=seed))
        far.append(bank.far(styles_of(0, 50, seed=1000 + seed)).mean())
    assert np.mean(far) < 0.1


def test_the_invariant_prompt_is_the_running_mean_over_sessions() -> None:
    bank, running = DomainBank(MARK), 0.0
    assert bank.start() == {}
    for session, value in enumerate((4.0, 1.0, 7.0), start=1):
        bank.add(f"s{session}", arrays_of(value), styles_of(0, 10 * session))  # not weighted by images
        running += (value - running) / session
        start = bank.start()
        assert start.keys() == arrays_of(0).keys()
        for name, array in arrays_of(running).items():
            np.testing.assert_allclose(start[name], array, rtol=1e-6)
            assert start[name].dtype == array.dtype


def test_an_entry_never_changes() -> None:
    bank, arrays, styles = DomainBank(MARK), arrays_of(1), styles_of(0)
    bank.add("first", arrays, styles)
    before = bank.route(styles_of(1)), bank.entries[0].mean.copy(), bank.entries[0].reach
    arrays["a.tokens"] += 5
    styles += 5
    bank.start()["a.tokens"] += 5
    bank.add("second", arrays_of(2), styles_of(1))
    entry = bank.entries[0]
    np.testing.assert_array_equal(entry.arrays["a.tokens"], arrays_of(1)["a.tokens"])
    np.testing.assert_array_equal(entry.mean, before[1])
    assert entry.reach == before[2]


def test_its_size_does_not_grow_with_the_images(tmp_path: Path) -> None:
    sizes = []
    for count in (10, 1000):
        bank = DomainBank(MARK)
        bank.add("scanner", arrays_of(1), styles_of(0, count))
        bank.save(tmp_path / str(count))
        sizes.append((bank.nbytes, bank.entries[0].nbytes))
        content = (tmp_path / str(count) / "bank.safetensors").stat().st_size
        assert bank.nbytes <= content < bank.nbytes + 2000
    assert sizes[0] == sizes[1] == (4 * (6 + 1 + 4 + 4),) * 2


def test_a_bank_comes_back_from_its_private_folder(tmp_path: Path) -> None:
    folder = tmp_path / "site" / "bank"
    bank = DomainBank(MARK, block=7)
    for scanner in range(3):
        bank.add(f"scanner {scanner}", arrays_of(scanner), styles_of(scanner))
        bank.save(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert [path.name for path in folder.iterdir()] == ["bank.safetensors"]
    again = DomainBank.load(folder, MARK)
    assert (again.block, again.nbytes) == (7, bank.nbytes)
    for old, new in zip(bank.entries, again.entries, strict=True):
        assert (old.name, old.images, old.reach) == (new.name, new.images, new.reach)
        assert old.arrays.keys() == new.arrays.keys()
        assert all(np.array_equal(old.arrays[name], new.arrays[name]) for name in old.arrays)
    images = styles_of(1, 30, seed=9)
    np.testing.assert_array_equal(again.route(images), bank.route(images))
    np.testing.assert_array_equal(again.far(images), bank.far(images))
    again.add("one more", arrays_of(9), styles_of(2))
    DomainBank(MARK).save(tmp_path / "empty")
    assert DomainBank.load(tmp_path / "empty", MARK).entries == ()


def test_foreign_and_damaged_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"bank\.safetensors: no such file"):
        DomainBank.load(tmp_path, MARK)
    bank_of(0, 1).save(tmp_path)
    with pytest.raises(DataError, match="expected a bank of backbone eeeeeeeeeeee, got ffffffffffff"):
        DomainBank.load(tmp_path, "e" * 64)
    file = tmp_path / "bank.safetensors"
    content = file.read_bytes()
    for damaged in (content[:-1], content[:-1] + bytes([content[-1] ^ 1]), b""):
        file.write_bytes(damaged)
        with pytest.raises(DataError, match=r"bank\.safetensors"):
            DomainBank.load(tmp_path, MARK)
    write_arrays(file, arrays_of(1), {"study": "x", "round": 3})
    with pytest.raises(DataError, match="expected a domain bank of schema 1, got another file"):
        DomainBank.load(tmp_path, MARK)
    described: dict[str, object] = {"kind": "domain-bank", "schema": 1, "backbone": MARK, "block": 4}
    described["entries"] = [{"name": "a", "images": 3, "reach": 1.0}]
    for arrays in ({}, {"0/mean": np.zeros(4, np.float32), "0/variance": np.zeros(4, np.float32)}):
        write_arrays(file, arrays, described)
        with pytest.raises(DataError, match="expected whole entries"):
            DomainBank.load(tmp_path, MARK)


def test_what_cannot_be_an_entry_is_refused_and_leaves_the_bank_as_it_was() -> None:
    bank = bank_of(0)
    with pytest.raises(ConfigurationError, match="expected the name of a new scanner, got 'scanner-0' again"):
        bank.add("scanner-0", arrays_of(1), styles_of(1))
    with pytest.raises(DataError, match="expected at least 3 images, got 2"):
        bank.add("new", arrays_of(1), styles_of(1, 2))
    with pytest.raises(DataError, match="expected images that differ, got 6 alike"):
        bank.add("new", arrays_of(1), np.ones((6, 4)))
    with pytest.raises(RunError, match=r"'head\.bias' is missing"):
        bank.add("new", {"a.tokens": np.zeros((2, 3), np.float32)}, styles_of(1))
    with pytest.raises(RunError, match="expected shape"):
        bank.add("new", {**arrays_of(1), "a.tokens": np.zeros((3, 3), np.float32)}, styles_of(1))
    with pytest.raises(RunError, match="finite"):
        bank.add("new", arrays_of(np.nan), styles_of(1))
    with pytest.raises(ValueError, match=r"expected styles of shape \(images, 4\)"):
        bank.add("new", arrays_of(1), styles_of(1)[:, :3])
    with pytest.raises(ValueError, match="finite styles"):
        bank.route(np.full((1, 4), np.nan))
    assert [entry.name for entry in bank.entries] == ["scanner-0"]
    for ask in (DomainBank(MARK).route, DomainBank(MARK).far):
        with pytest.raises(RunError, match="expected at least one entry, got none"):
            ask(np.zeros((1, 4)))


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return TINY["vit"](tmp_path_factory.mktemp("vit"), None)


@pytest.fixture
def model(vit: Backbone) -> PromptedClassifier:
    study = Study(
        task="classification",
        classes=("a", "b", "c"),
        backbone={"name": "vit"},
        prompts={"tokens": {"count": 2, "blocks": 2}},
    )
    made = build_model(vit, study, Annotation.FULL)
    assert isinstance(made, PromptedClassifier)
    return made


def test_styles_are_mean_and_deviation_of_the_hidden_state_in_front_of_a_block(vit: Backbone) -> None:
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found = image_styles(vit, images, 1)
    hidden = vit.encode(images, stop=1)[0].detach().numpy().astype(np.float64)
    expected = np.concatenate([hidden.mean(axis=1), hidden.std(axis=1, ddof=1)], axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert not np.allclose(found, image_styles(vit, images, 2))


def test_an_image_is_answered_by_the_entries_that_its_style_points_to(
    model: PromptedClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(1)
    rng = np.random.default_rng(2)
    bank = DomainBank(MARK)
    for scanner in range(2):
        arrays = {
            name: rng.normal(size=array.shape).astype(np.float32)
            for name, array in trained_arrays(model).items()
        }
        bank.add(f"scanner-{scanner}", arrays, styles_of(scanner))
    line = np.linspace(2 * np.subtract(*CENTRES[:2]), CENTRES[1], 4001)  # from beyond the first
    other = bank.route(line)[:, 1]
    even, slight = (line[np.abs(np.log(other / wanted)).argmin()] for wanted in (0.5, 8e-4))
    styles = np.array([CENTRES[0], CENTRES[1], even, np.full(4, 99.0), slight])
    state = model.encode(torch.randn(5, 3, 32, 32, generator=generator))

    seen: list[int] = []
    probabilities = model.probabilities
    monkeypatch.setattr(model, "probabilities", lambda s: seen.append(len(s[0])) or probabilities(s))
    found = predict(bank, model, state, styles)
    assert sum(seen) == 3 * 2 + 1 + 1  # the far and the last image under one prompt, the others under two

    weights, far = bank.route(styles), bank.far(styles)
    assert far.tolist() == [False, False, False, True, False]
    assert 0.4 < weights[2, 0] < 0.6
    assert 5e-4 < weights[4, 1] < 1e-3
    for row in range(5):
        expected = np.zeros(3)
        parts = [(weights[row, i], entry.arrays) for i, entry in enumerate(bank.entries)]
        for weight, arrays in [(1.0, bank.start())] if far[row] else parts:
            load_arrays(model, arrays)
            expected += weight * probabilities((state[0][row : row + 1],))[0].numpy()
        np.testing.assert_allclose(found[row], expected, atol=1e-3)  # small weights are left out
        np.testing.assert_allclose(found[row].sum(), 1, atol=1e-6)


def test_the_benchmark_runs_on_phantoms(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_phantoms(tmp_path / "data", seed=0, size=48, task="classification", limit=6)
    (tmp_path / "vit").mkdir()
    tiny_vit(tmp_path / "vit")
    script = Path(__file__).parents[2] / "benchmarks" / "derm" / "scanner.py"
    spec = importlib.util.spec_from_file_location("benchmark_of_scanners", script)
    assert spec is not None
    assert spec.loader is not None
    benchmark = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = benchmark  # dataclasses look their module up
    spec.loader.exec_module(benchmark)
    threads = torch.get_num_threads()
    benchmark.main(
        f"--data {tmp_path / 'data'} --backbone {tmp_path / 'vit'} --sequence ashford,brookside,cedarhill "
        f"--seeds 0 --rounds 1 --steps 2 --batch-size 4 --size 32 --blocks 2 --style-block 1 --json "
        f"--feature-cache {tmp_path / 'features'}".split()
    )
    torch.set_num_threads(threads)
    results = json.loads(capsys.readouterr().out)["results"]
    lines = benchmark.table([benchmark.Result(**result) for result in results]).splitlines()
    assert len(lines) == 2 + len(results)
    assert len({line.count("|") for line in lines}) == 1
    assert [(r["session"], r["scanner"]) for r in results] == [
        (1, "ashford"),
        *((2, name) for name in ("ashford", "brookside")),
        *((3, name) for name in ("ashford", "brookside", "cedarhill")),
    ]
    assert all(0 <= r["bank"]["auroc"] <= 1 and 0 <= r["routed"] <= 1 for r in results)
