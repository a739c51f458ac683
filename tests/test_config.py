"""Study and site files: what is read, what is refused, and in which words."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprompt.config import (
    Annotation,
    FedAvgOptions,
    FedLPPAOptions,
    Site,
    Study,
    load_site,
    load_study,
    study_from_mapping,
)
from fedprompt.config.template import study_toml
from fedprompt.errors import ConfigurationError
from fedprompt.families import FAMILIES, default_prompts

SITE_IDS = st.from_regex(r"[a-z0-9][a-z0-9-]{0,8}", fullmatch=True)
POSITIVE = st.floats(1e-9, 1e9, allow_nan=False)
NAMES = ", ".join(FAMILIES)
NAME_WORDS = "up to 63 lower-case letters, digits and hyphens, no hyphen first"
CLASS_NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=5).filter(
    lambda name: name == name.strip() and name.isprintable()
)
FEW = settings(max_examples=40, deadline=None)


@st.composite
def studies(draw: st.DrawFn) -> Study:
    strategy = draw(
        st.one_of(
            st.fixed_dictionaries({"name": st.just("fedlppa")}, optional={"temperature": POSITIVE}),
            st.fixed_dictionaries({"name": st.just("fedprox")}, optional={"mu": POSITIVE}),
            st.fixed_dictionaries({"name": st.sampled_from(["fedavg", "fedadam", "local", "full-finetune"])}),
        )
    )
    values = {
        "name": draw(SITE_IDS),
        "seed": draw(st.integers(0, 2**31 - 1)),
        "classes": draw(st.lists(CLASS_NAMES, min_size=2, max_size=4, unique_by=str.casefold)),
        "strategy": strategy,
        "rounds": {"count": draw(st.integers(1, 100_000)), "quorum": 1, "deadline": draw(POSITIVE)},
        "training": {"learning-rate": draw(POSITIVE), "validation": draw(st.floats(0, 0.99))},
        "sites": draw(
            st.dictionaries(
                SITE_IDS, st.fixed_dictionaries({"annotation": st.sampled_from(list(Annotation))}), max_size=3
            )
        ),
    }
    if draw(st.booleans()):
        values["backbone"] = {"folder": draw(st.text(st.characters(codec="utf-8"), min_size=1, max_size=9))}
    if draw(st.booleans()) and strategy["name"] != "fedlppa":
        values["prompts"] = {"modulation": {}}
    return study_from_mapping(values, "drawn")


@FEW
@given(studies())
def test_a_study_survives_its_commented_file(study: Study) -> None:
    assert study_from_mapping(tomllib.loads(study_toml(study)), "written") == study


@FEW
@given(studies())
def test_a_study_survives_its_mapping_and_keeps_its_digest(study: Study) -> None:
    again = study_from_mapping(study.to_mapping(), "written")
    assert again == study
    assert study_from_mapping(dict(study), "instances").digest() == study.digest()


def test_the_template_names_every_key_and_says_what_it_means() -> None:
    text = study_toml(Study())
    assert study_from_mapping(tomllib.loads(text), "template") == Study()
    for key in (
        "batch-size",
        "learning-rate",
        "fingerprint",
        "self-floor",
        "mu",
        "server-learning-rate",
        "ramp-up",
    ):
        assert re.search(rf"^(# )?{key} = ", text, re.MULTILINE), key
    for line, after in zip(text.splitlines(), text.splitlines()[1:], strict=False):
        if re.match(r"[a-z-]+ = ", after):
            assert line.startswith("# "), f"no comment above {after!r}"
    assert "(at least 32, at most 2048)" in text


def test_a_study_without_prompts_writes_an_empty_table() -> None:
    study = Study().changed(prompts={}, strategy={"name": "full-finetune"})
    assert study_from_mapping(tomllib.loads(study_toml(study)), "written") == study


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[rounds]\ncount = 'many'", "rounds.count: expected an integer, got 'many'"),
        ("[rounds]\ncount = true", "rounds.count: expected an integer, got true"),
        ("[rounds]\ncount = 2.5", "rounds.count: expected an integer, got 2.5"),
        ("[rounds]\ncount = '3'", "rounds.count: expected an integer, got '3'"),
        ("[rounds]\ncount = 0", "rounds.count: expected at least 1, got 0"),
        ("[rounds]\ndeadline = true", "rounds.deadline: expected a number, got true"),
        ("[rounds]\ndeadline = 0", "rounds.deadline: expected a number greater than 0, got 0"),
        ("[rounds]\ndeadline = inf", "rounds.deadline: expected a finite number, got inf"),
        ("rounds = 3", "rounds: expected a table, got 3"),
        ("seed = 3000000000", "seed: expected a number less than 2147483648, got 3000000000"),
        ("name = 2020-01-01", "name: expected a string, got 2020-01-01"),
        (
            "name = 'Big Study'",
            f"name: expected {NAME_WORDS}, got 'Big Study'",
        ),
        (
            "task = 'detection'",
            "task: expected 'segmentation' or 'classification', got 'detection'",
        ),
        ("classes = 'a'", "classes: expected an array, got 'a'"),
        ("classes = ['a']", "classes: expected at least 2 values, got ['a']"),
        ("classes = ['a', 3]", "classes.1: expected a string, got 3"),
        ("classes = ['a', 'a']", "classes: class names must differ"),
        ("classes = ['a', 'A']", "classes: class names must differ"),
        ("classes = ['a', 'b ']", "classes: expected names without blanks around them, got 'b '"),
        ("classes = ['a', '']", "classes: expected names without blanks around them, got ''"),
        (
            "task = 'classification'\n[backbone]\nname = 'clip'\n[prompts.text]\ntemplate = '{} here'",
            "prompts.text.template: expected words and one {} behind them for the class name, got '{} here'",
        ),
        ("[image]\nsize = 31", "image.size: expected at least 32, got 31"),
        (
            "[backbone]\nname = 'vit'\nfolder = 'a'\nhub = 'b/c'",
            "backbone: expected one of folder and hub, got both",
        ),
        ("[backbone]\nname = 'resnet18'", f"backbone.name: expected one of {NAMES}, got 'resnet18'"),
        (
            "task = 'classification'\n[backbone]\nname = 'sam'",
            "backbone.name: expected one that can do classification (embedded-unet, mobilenet-v2, resnet, "
            "convnext, monai-unet, swin-unetr, vit, dinov2, clip), got 'sam'",
        ),
        (
            "[strategy]\nname = 'fedavg'\n[prompts.tokens]",
            "prompts.tokens: does not fit backbone embedded-unet (those that take it in segmentation: vit, "
            "dinov2, sam); for embedded-unet expected some of data-aware, fusion, generated, modulation, "
            "sparsity, universal",
        ),
        (
            "task = 'classification'\n[prompts.sparsity]\n[prompts.fusion]",
            "prompts.sparsity: does not fit backbone embedded-unet (none takes it in classification); for "
            "embedded-unet expected some of data-aware, fusion, generated, universal",
        ),
        (
            "task = 'classification'\n[backbone]\nname = 'vit'\n[prompts.tokens]\n[prompts.domain]",
            "prompts: expected one of [prompts.tokens] and [prompts.domain], got both",
        ),
        (
            "task = 'classification'\nprompts = {}\n[backbone]\nname = 'clip'",
            "prompts: expected some on clip, which has no head, got none: nothing would train",
        ),
        (
            "[strategy]\nname = 'fedavg'\n[prompts.tokens]\n[backbone]\nname = 'sam'",
            "backbone sam needs a [prompts.class-prompts] table: its decoder takes the classes from there",
        ),
        (
            "[backbone]\nfingerprint = 'abc'",
            "backbone.fingerprint: expected 64 hexadecimal digits in lower case, got 'abc'",
        ),
        ("[backbone]\nfolder = 3", "backbone.folder: expected a path, got 3"),
        (
            "[training]\nlearning_rat = 1",
            "training.learning_rat: no such key (did you mean 'learning-rate'?), got 1",
        ),
        (
            "learning-rate = 1",
            "learning-rate: no such key (did you mean 'training.learning-rate'?), got 1",
        ),
        ("[site.paris]", "site: no such key (did you mean 'sites'?), got a table"),
        (
            "[sites.paris]\nanotation = 'box'",
            "sites.paris.anotation: no such key (did you mean 'annotation'?), got 'box'",
        ),
        (
            "[sites.paris]\nannotation = 'scribbel'",
            "sites.paris.annotation: expected 'full', 'scribble', 'noisy-scribble', 'point', 'block' or "
            "'box', got 'scribbel', did you mean 'scribble'?",
        ),
        (
            "[sites.Paris]",
            f"sites.Paris: expected {NAME_WORDS}, got 'Paris'",
        ),
        ("[prompts.univrsal]", "prompts.univrsal: no such key (did you mean 'universal'?), got a table"),
        ("[prompts.sparsity]\nx = 1", "prompts.sparsity.x: no such key (the table has none), got 1"),
        (
            "[prompts.universal]",
            "prompts: expected a [prompts.fusion] table, which injects universal; got none",
        ),
        (
            "[prompts.fusion]",
            "strategy fedlppa needs a [prompts.data-aware] table: affinities come from its rows",
        ),
        (
            "[strategy]\nname = 'fedavgg'",
            "strategy.name: expected 'fedavg', 'fedprox', 'fedadam', 'fedlppa', 'local' or 'full-finetune', "
            "got 'fedavgg', did you mean 'fedavg'?",
        ),
        (
            "[strategy]\nmu = 3",
            "strategy.name: expected 'fedavg', 'fedprox', 'fedadam', 'fedlppa', 'local' or 'full-finetune', "
            "got nothing",
        ),
        ("strategy = 'fedavg'", "strategy: expected a table, got 'fedavg'"),
        (
            "[strategy]\nname = 'fedavg'\nmu = 0.1",
            "strategy.mu: no such key (expected 'max-weight' or 'name'), got 0.1",
        ),
        (
            "[strategy]\nname = 'local'\nmax-weight = 2",
            "strategy.max-weight: expected at most 1, got 2",
        ),
        ("[rounds]\nquorum = 5\n[sites.a]", "rounds.quorum is 5 but [sites] names 1"),
        (
            "[rounds]\ncount = true\nquorum = 0\n[loss]\ncrfs = 1",
            "rounds.count: expected an integer, got true; rounds.quorum: expected at least 1, got 0; "
            "loss.crfs: no such key (did you mean 'crf'?), got 1",
        ),
    ],
)
def test_a_mistake_is_told_in_one_sentence(text: str, sentence: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        study_from_mapping(tomllib.loads(text), "study.toml")
    assert str(caught.value) == f"study.toml: {sentence}"


def test_many_mistakes_are_cut_and_long_values_too() -> None:
    values = {f"key-{n}": "x" * 500 for n in range(30)}
    with pytest.raises(ConfigurationError, match=r"; and 22 more$") as caught:
        study_from_mapping(values, "study.toml")
    assert len(str(caught.value)) < 2500


@FEW
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    ),
    st.sampled_from(["name", "classes", "image", "prompts", "strategy", "sites", "rounds", "other"]),
)
def test_whatever_stands_in_a_file_it_is_taken_or_refused_in_one_line(value: object, key: str) -> None:
    told = "study.toml: "
    try:
        study_from_mapping({key: value}, "study.toml")
    except ConfigurationError as error:
        told = str(error)
    assert told.startswith("study.toml: ")
    assert "Input should" not in told


def test_keys_may_be_written_with_underscores_too() -> None:
    study = study_from_mapping({"training": {"batch_size": 3}}, "study")
    assert study.training.batch_size == 3
    assert "batch-size" in study.to_mapping()["training"]


def test_a_file_makes_paths_absolute(tmp_path: Path) -> None:
    file = tmp_path / "study.toml"
    file.write_text('[backbone]\nfolder = "backbones/unet"\n')
    assert load_study(file).backbone.folder == tmp_path / "backbones" / "unet"
    (tmp_path / "site.toml").write_text('id = "paris"\npixel-spacing = [1, 0.5]\n')
    site = load_site(tmp_path / "site.toml")
    assert (site.id, site.data, site.pixel_spacing) == ("paris", tmp_path, (1.0, 0.5))
    assert site.annotation is Annotation.FULL


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("data = 'x'", "id: expected a value, got nothing"),
        ("id = 'a'\npixel-spacing = [1, 0]", "pixel-spacing.1: expected a number greater than 0, got 0"),
        ("id = 'a'\npixel-spacing = 1", "pixel-spacing: expected an array, got 1"),
        ("id = 'a'\npixel-spacing = [1]", "pixel-spacing.1: expected a value, got nothing"),
        ("id = 'a'\nanotation = 'box'", "anotation: no such key (did you mean 'annotation'?), got 'box'"),
    ],
)
def test_a_mistake_in_a_site_file(tmp_path: Path, text: str, sentence: str) -> None:
    file = tmp_path / "site.toml"
    file.write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        load_site(file)
    assert str(caught.value) == f"{file}: {sentence}"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [(b"a = ", "not a TOML file"), (b"\xff\xfe", "not a TOML file"), (None, "no such file")],
)
def test_a_file_that_is_no_toml(tmp_path: Path, content: bytes | None, sentence: str) -> None:
    file = tmp_path / "study.toml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigurationError, match=sentence) as caught:
        load_study(file)
    assert str(file) in str(caught.value)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load_study(tmp_path)


def test_the_digest_forgets_paths_and_nothing_else() -> None:
    study = Study()
    moved = study.changed(backbone={"folder": "/elsewhere"})
    assert moved.digest() == study.digest()
    assert study.changed(seed=1).digest() != study.digest()
    assert study.changed(loss={"crf": 0.2}).digest() != study.digest()


def test_defaults_follow_task_and_backbone() -> None:
    for name, entry in FAMILIES.items():
        for task, fitting in entry.prompts.items():
            study = Study(task=task, backbone={"name": name}, strategy={"name": "fedavg"})
            assert study.prompts.used() == default_prompts(name, task)
            assert study.prompts.used()
            assert set(study.prompts.used()) <= fitting
            again = study_from_mapping(tomllib.loads(study_toml(study)), "written")
            assert again == study
    assert Study(task="classification").strategy.name == "fedavg"
    assert Study(task="classification").classes == ("nevus", "melanoma", "keratosis")


def test_a_study_is_immutable_and_a_change_is_checked() -> None:
    study = Study()
    assert isinstance(study.strategy, FedLPPAOptions)
    assert isinstance(study.changed(strategy={"name": "fedavg"}).strategy, FedAvgOptions)
    with pytest.raises(ConfigurationError, match=r"rounds\.count"):
        study.changed(rounds={"count": -1})
    with pytest.raises(ValueError, match="frozen"):
        study.seed = 3  # type: ignore[misc]
    assert Site(id="a").data == Path()
