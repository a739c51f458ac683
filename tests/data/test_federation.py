"""Federation folders: which sites they hold, and whose annotation kind wins."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedprompt.config import Annotation, Study, study_from_mapping
from fedprompt.data.federation import read_federation
from fedprompt.errors import ConfigurationError, DataError


def add_site(folder: Path, toml: str | None = None) -> Path:
    folder.mkdir(parents=True)
    (folder / "cases.csv").write_text("image,mask,split,patient\n")
    if toml is not None:
        (folder / "site.toml").write_text(toml)
    return folder


def test_sites_come_from_subfolders_sorted_by_id(tmp_path: Path) -> None:
    add_site(tmp_path / "a", 'id = "zeta"\nannotation = "point"\npixel-spacing = [0.5, 0.25]\n')
    add_site(tmp_path / "beta")
    (tmp_path / ".notes").mkdir()
    (tmp_path / "README.md").touch()
    beta, zeta = read_federation(tmp_path, Study())
    assert (beta.id, beta.annotation, beta.data) == ("beta", Annotation.FULL, (tmp_path / "beta").resolve())
    assert (zeta.id, zeta.annotation, zeta.data) == ("zeta", Annotation.POINT, (tmp_path / "a").resolve())
    assert zeta.pixel_spacing == (0.5, 0.25)


def test_the_data_of_a_site_may_lie_elsewhere(tmp_path: Path) -> None:
    add_site(tmp_path / "store")
    (tmp_path / "sites/one").mkdir(parents=True)
    (tmp_path / "sites/one/site.toml").write_text('id = "one"\ndata = "../../store"\n')
    (site,) = read_federation(tmp_path / "sites", Study())
    assert site.data == (tmp_path / "store").resolve()


def test_the_study_decides_on_annotation_where_it_says_something(tmp_path: Path) -> None:
    for name in ("one", "two", "three"):
        add_site(tmp_path / name, f'id = "{name}"\nannotation = "point"\n')
    study = study_from_mapping({"sites": {"one": {"annotation": "box"}, "two": {}}}, "study")
    kinds = {site.id: site.annotation for site in read_federation(tmp_path, study)}
    assert kinds == {"one": Annotation.BOX, "two": Annotation.POINT, "three": Annotation.POINT}


def test_a_duplicate_id_names_both_folders(tmp_path: Path) -> None:
    add_site(tmp_path / "a", 'id = "b"\n')
    add_site(tmp_path / "b")
    with pytest.raises(DataError, match=r"/b: site id 'b' is already used by .*/a"):
        read_federation(tmp_path, Study())


def test_a_study_site_that_is_not_there_is_named(tmp_path: Path) -> None:
    add_site(tmp_path / "one")
    add_site(tmp_path / "two")
    study = study_from_mapping({"sites": {"one": {}, "tow": {}}}, "study")
    with pytest.raises(ConfigurationError, match=r"sites\.tow: no such site in .*; expected one of one, two"):
        read_federation(tmp_path, study)


def test_folders_that_are_no_federation(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        read_federation(tmp_path / "nowhere", Study())
    with pytest.raises(DataError, match=r"expected subfolders with a cases\.csv, got none"):
        read_federation(tmp_path, Study())
    with pytest.raises(DataError, match="the folder of one site"):
        read_federation(add_site(tmp_path / "one"), Study())


def test_a_site_without_table_is_named(tmp_path: Path) -> None:
    add_site(tmp_path / "one")
    (tmp_path / "two").mkdir()
    study = study_from_mapping({"sites": {"one": {}, "two": {}}}, "study")
    with pytest.raises(DataError, match=r"two/cases\.csv: no such file"):
        read_federation(tmp_path, study)
    (tmp_path / "two/site.toml").write_text('id = "two"\n')
    with pytest.raises(DataError, match=r"two/cases\.csv: no such file"):
        read_federation(tmp_path, Study())


def test_a_wrong_site_file_or_folder_name_is_a_configuration_error(tmp_path: Path) -> None:
    add_site(tmp_path / "Site One")
    with pytest.raises(ConfigurationError, match=r"got 'Site One'"):
        read_federation(tmp_path, Study())
    (tmp_path / "Site One/site.toml").write_text('id = "one"\nannotations = "box"\n')
    with pytest.raises(ConfigurationError, match=r"site\.toml: annotations"):
        read_federation(tmp_path, Study())
