"""Sample, GPU mode and the page of the documentation."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import __main__ as command
from benchmarks import figures, gpu, page, report, sample
from benchmarks.cases import published_crystals, random_model
from benchmarks.response import ANY, SYMMETRIC

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def cells():
    crystals = published_crystals()
    return [crystals["p5"], crystals["q9"]]


@pytest.fixture(scope="module")
def tiny(cells):
    return random_model(cells, channels=4)


def timing(task, tag, variant, value, n_atoms=5, **changes):
    return {
        "task": task,
        "tag": tag,
        "formula": "AB",
        "n_atoms": n_atoms,
        "variant": variant,
        "baseline_ms": 10.0 * value,
        "product_ms": 10.0,
        "ratio": value,
        "ratio_low": 0.9 * value,
        "ratio_high": 1.1 * value,
        "repeats": 3,
        "difference": 1e-12,
        "baseline_rows": None,
        **changes,
    }


@pytest.fixture
def sections():
    environment = {
        "processor": "abacus",
        "cores": 2,
        "threads": 1,
        "gpu": None,
        "python": "3",
        "torch": "2",
        "mace-torch": "0",
        "e3nn": "0",
        "date": "2000-01-01",
    }
    both = {"environment": environment, "settings": {"channels": 4, "dtype": "float64"}}
    tasks = {
        task: {
            **both,
            "timings": [
                timing(task, tag, variant, value, n)
                for tag, n, values in (("p5", 5, (3.0, 12.5)), ("q9", 9, (4.0, 25.0)))
                for variant, value in zip((ANY, SYMMETRIC), values, strict=True)
            ],
        }
        for task in ("response", "ionic", "training", "hessian")
    }
    tasks["dynamics"] = {**both, "timings": [timing("dynamics", "p5", f"mace-torch with {x}", 3.5) for x in "ab"]}
    tasks["scripted"] = {**both, "timings": [timing("scripted", "p5", "TorchScript", 1.0)]}
    return tasks


def test_a_sample_is_measured_crystal_by_crystal(tiny, cells):
    records = list(sample.measure_sample(tiny, cells))
    sample.add_baseline(tiny, cells, records, every=2, rows=1)
    assert [r["atoms"] for r in records] == [5, 9]
    assert [r["space_group"] for r in records] == [221, 154]
    assert [r["field_directions"] for r in records] == [1, 1]
    assert records[0]["displacements"] < records[1]["displacements"] < 27
    assert ["beside" in r for r in records] == [True, False]
    assert records[0]["peak_bytes"] <= records[1]["peak_bytes"]
    assert all(r["cpu_seconds"] > 0 for r in records)
    total = sample.summary(records)
    assert (total["crystals"], total["failed"], total["rows"]) == (2, 0, 42)
    assert total["baseline"]["crystals"] == 1


def test_failures_are_counted(tiny):
    from ase.build import bulk

    records = list(sample.measure_sample(tiny, [bulk("SiO", "rocksalt", a=2.0)]))
    assert sample.summary(records)["failed"] == 1


def test_the_exponent_is_that_of_a_power():
    records = [{"atoms": n, "cpu_seconds": 0.3 * n**1.7} for n in (2, 8, 20, 90)]
    records[0]["cpu_seconds"] = 100.0
    assert sample.exponent(records) == pytest.approx(1.7)


@pytest.mark.slow
@pytest.mark.skipif("FIELDFLOWS_DATA" not in os.environ, reason="needs the shared data files")
def test_the_sample_of_the_data_files():
    crystals = sample.sample_crystals(count=20, large=3, seed=1)
    sizes = [len(atoms) for atoms in crystals]
    assert len(sizes) == 20
    assert sizes == sorted(sizes)
    assert [n for n in sizes if n >= sample.LEAST_LARGE] == sizes[-3:]
    assert sizes[-1] <= sample.MOST_ATOMS


def test_without_data_files_there_is_no_sample(monkeypatch, tmp_path):
    monkeypatch.setenv("FIELDFLOWS_DATA", str(tmp_path))
    assert sample.sample_crystals() is None
    with pytest.raises(SystemExit, match="FIELDFLOWS_DATA"):
        command.main(["sample", "--source", "data"])


def test_crystals_are_turned_and_not_changed(cells):
    copies = gpu.turned(cells, 2)
    assert [len(atoms) for atoms in copies] == [5, 9, 5, 9]
    lengths = {tuple(np.round(atoms.get_all_distances(mic=True).ravel(), 8)) for atoms in copies}
    assert len(lengths) == 2
    assert len({tuple(atoms.cell[:].ravel().round(6)) for atoms in copies}) == 4


def test_the_gpu_benchmark_runs_on_a_cpu(tmp_path, monkeypatch):
    output = tmp_path / "speed.json"
    arguments = ["--device", "cpu", "--channels", "2", "--times", "1", "--baseline-crystals", "1", "--count", "1"]
    assert command.main(["gpu", "--source", "published", *arguments, "--output", str(output)]) == 0
    result = json.loads(output.read_text(encoding="utf-8"))["gpu"]["result"]
    assert (result["crystals"], result["failed"], result["device"]) == (1, 0, "cpu")
    for rates in (result["rates"], result["baseline"]["rates"], result["baseline"]["product_rates_on_the_same"]):
        assert set(rates) == {"response", "pipeline"}
        assert min(rates.values()) > 0
    for item in result["profile"].values():
        seconds = [operation["seconds"] for operation in item["operations"]]
        assert seconds == sorted(seconds, reverse=True)
        assert 0 < sum(seconds) <= item["busy_seconds"]
    text = page.gpu({"gpu": {"result": result}})
    assert "cpu, 1 crystals" in text


def test_every_table_is_filled(sections):
    text = "\n".join(f"<!-- {name}: from speed.json -->\n<!-- end -->" for name in page.TABLES)
    once = page.render(text, sections)
    assert page.render(once, sections) == once
    assert "| p5: AB | 5 | 30 | 10 | **3.0** (2.7 to 3.3) | 10 | **12.5** (11.2 to 13.8) | 1e-12 |" in once
    assert "≥ 3.5 each | 3.0 (p5), 4.0 (q9) | 3.5 |" in once
    assert once.count("Not measured yet.") == 3
    assert "response, ionic, training, hessian, dynamics, scripted: abacus, 2 cores" in once
    with pytest.raises(KeyError):
        page.render("<!-- nothing: from speed.json -->\n<!-- end -->", sections)


def test_a_changed_number_changes_the_page(sections):
    text = "<!-- response: from speed.json -->\n<!-- end -->"
    before = page.render(text, sections)
    sections["response"]["timings"][0]["ratio"] = 9.9
    assert page.render(text, sections) != before


def test_crystals_can_be_measured_one_after_the_other(sections):
    old = sections["response"]
    new = {**old, "timings": [timing("response", "p5", ANY, 8.0)]}
    both = report.joined(old, new)
    assert [(t["tag"], t["ratio"]) for t in both["timings"]] == [("p5", 8.0), ("q9", 4.0), ("q9", 25.0)]
    other = {**new, "settings": {"channels": 8}}
    assert report.joined(old, other) == other


def test_figures_are_drawn(sections, tmp_path):
    drawn = figures.ratios(sections, tmp_path / "ratios.png")
    assert [axis.get_title() for axis in drawn.axes] == list(figures.TITLES.values())
    assert len(drawn.axes[0].patches) == 4
    records = [
        {
            "atoms": n,
            "cpu_seconds": 0.1 * n**1.5,
            "peak_bytes": 1e8 * n,
            "displacements": n,
            "beside": {"baseline_seconds": n},
        }
        for n in (2, 8, 30)
    ]
    section = {"records": records, "summary": {"exponent": 1.5}}
    figures.growth(section, tmp_path / "growth.png")
    for name in ("ratios", "growth"):
        assert Image.open(tmp_path / f"{name}.png").size[0] > 800


def test_the_page_shows_the_numbers_of_its_file():
    sections = report.load(ROOT / page.DATA)
    text = (ROOT / page.PAGE).read_text(encoding="utf-8")
    assert set(page.TABLES) == {m["name"] for m in page.BLOCK.finditer(text)}
    assert page.render(text, sections) == text, "run `python -m benchmarks page`"


def test_the_file_holds_what_the_page_promises():
    """Equal results on both sides, with nothing about time."""
    sections = report.load(ROOT / page.DATA)
    for task in ("response", "ionic", "training", "dynamics", "hessian", "scripted"):
        assert sections[task]["settings"]["channels"] == 128
        assert sections[task]["settings"]["dtype"] == "float64"
        for item in sections[task]["timings"]:
            assert item["difference"] < 1e-7, item
            assert item["ratio_low"] <= item["ratio"] <= item["ratio_high"]
    if "sample" in sections:
        records = sections["sample"]["records"]
        assert len(records) == 200
        found, expected = sections["sample"]["summary"], sample.summary(records)
        assert found.pop("baseline") == pytest.approx(expected.pop("baseline"), rel=1e-9)
        assert found == pytest.approx(expected, rel=1e-9)


def test_figures_of_the_page_exist():
    text = (ROOT / page.PAGE).read_text(encoding="utf-8")
    names = re.findall(r"!\[[^]]+\]\(\.\./images/([\w.]+)\)", text)
    assert names[0] == "speed.png"
    for name in names:
        assert (ROOT / "docs" / "images" / name).is_file()
