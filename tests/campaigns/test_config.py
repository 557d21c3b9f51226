"""Campaign files: what is wrong is said with its line, and what they say does not depend on where they are read."""

from __future__ import annotations

from pathlib import Path

import pytest

from fieldflows.campaigns.config import CampaignConfig
from fieldflows.campaigns.yaml_lines import load_with_lines
from fieldflows.errors import SettingsError

GOOD = """\
name: oxides
inputs:
  - files: [a.cif, "more/*.cif"]
  - mp_ids: [mp-149, mp-1265]
    limit: 5
model: {name: toy}
stages:
  - name: optical
    settings: {ionic: false}
  - name: lattice
    where: n < 3 and band_gap > 0.5
    settings:
      ionic: true
chunks: {minutes: 2}
engine: {name: local, workers: 2}
"""


def test_a_good_file(tmp_path: Path) -> None:
    path = tmp_path / "campaign.yaml"
    path.write_text(GOOD)
    config = CampaignConfig.from_yaml(path)
    assert [stage.name for stage in config.stages] == ["optical", "lattice"]
    assert config.inputs[0].files == (str(tmp_path / "a.cif"), str(tmp_path / "more/*.cif"))
    assert config.inputs[1].way == "mp_ids"
    assert (config.chunks.minutes, config.chunks.structures, config.engine.workers) == (2.0, 200, 2)


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("name: oxides", "name: an oxide", 1, "is no name"),
        ("name: oxides", "title: oxides", 1, "there is no key 'title'"),
        ("inputs:", "input:", 2, "Did you mean 'inputs'"),
        ("    limit: 5", "    limit: 0", 5, "greater than or equal to 1"),
        ("    limit: 5", "    limits: 5", 5, "Did you mean 'limit'"),
        ("    limit: 5", "    files: [b.cif]", 4, "give one of mp_ids, mp_query, files, dataset, campaign"),
        ("{name: toy}", "{name: toy, dtype: float16}", 6, "float64"),
        ("{name: toy}", "{name: toy, device: gpu}", 6, "'gpu' is no device"),
        ("name: lattice", "name: optical", 10, "two stages are called 'optical'"),
        ("    where: n <", "    after: optic\n    where: n <", 10, "Did you mean 'optical'"),
        ("where: n < 3", "where: m < 3", 11, "no field 'm'"),
        ("where: n < 3", "where: n <", 11, "cannot be read"),
        ("      ionic: true", "      ionics: true", 12, "no setting 'ionics'"),
        ("      ionic: true", "      ionic: perhaps", 12, "setting 'ionic"),
        ("{minutes: 2}", "{minutes: -2}", 14, "greater than 0"),
        ("name: local", "name: slurm", 15, "'local', 'fireworks' or 'remote'"),
        ("    settings: {ionic", "    task: dance\n    settings: {ionic", 9, "no task 'dance'"),
        ("chunks:", "name: again\nchunks:", 14, "stands twice (first in line 1)"),
        ("chunks: {minutes: 2}", "chunks: {minutes: 2", 15, "no valid YAML"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(old: str, new: str, line: int, words: str) -> None:
    assert old in GOOD
    with pytest.raises(SettingsError) as caught:
        CampaignConfig.from_text(GOOD.replace(old, new, 1), "c.yaml")
    assert f"c.yaml, line {line}: " in str(caught.value)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no campaign file"):
        CampaignConfig.from_yaml(tmp_path / "none.yaml")
    with pytest.raises(SettingsError, match="holds no campaign"):
        CampaignConfig.from_text("- a\n- b\n")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SettingsError, match="cannot be read"):
        CampaignConfig.from_yaml(tmp_path / "binary.yaml")


def test_tags_that_name_classes_make_nothing() -> None:
    with pytest.raises(SettingsError, match="line 2"):
        load_with_lines("a: 1\nb: !!python/object/apply:os.system ['true']\n", "c.yaml")


def test_the_digest_knows_what_decides_results() -> None:
    base = CampaignConfig.from_text(GOOD)
    for same in (GOOD.replace("minutes: 2", "minutes: 3"), GOOD.replace("workers: 2", "workers: 1")):
        assert CampaignConfig.from_text(same).digest == base.digest
    for other in (GOOD.replace("n < 3", "n < 4"), GOOD.replace("mp-149", "mp-148"), GOOD.replace("toy", "dielectric")):
        assert CampaignConfig.from_text(other).digest != base.digest


def test_the_store_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHERE", "mongodb://me:secret@db.example.org/x")
    config = CampaignConfig.from_text(GOOD + "store: $WHERE\n")
    assert config.store == "mongodb://me:secret@db.example.org/x"
    assert "secret" not in str(config.public_dict())
