"""``fieldflows screen``: results, failures, exit codes, and what survives interrupts and sudden death."""

from __future__ import annotations

import json
import signal
import sqlite3
import time
from pathlib import Path

import pytest
from ase.build import bulk, molecule
from ase.io import write

from fieldflows.schemas.dielectric import DielectricDocument
from fieldflows.store import ResultsCollection, SQLiteStore, get_store


def stored(path: Path) -> list[dict]:
    return list(ResultsCollection.of(get_store(path)).query())


def many(path: Path, count: int) -> Path:
    write(path, [bulk("MgO", "rocksalt", 4.1 + 0.001 * i) for i in range(count)], format="extxyz")
    return path


def wait_for_results(path: Path, at_least: int, process) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and process.poll() is None:
        if path.exists():
            with sqlite3.connect(path, timeout=10) as connection:
                tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master")}
                if "collection_results" in tables:
                    (count,) = connection.execute("SELECT count(*) FROM collection_results").fetchone()
                    if count >= at_least:
                        return
        time.sleep(0.05)
    raise AssertionError(f"no {at_least} results: {process.communicate(timeout=5)}")


def test_results_are_shown_and_stored(cli, crystals: Path) -> None:
    answer = cli("screen", crystals, "--model", "toy", "--store", "s.db")
    assert answer.code == 0
    for word in ("MgO", "NaCl", "GaAs", "Fm-3m", "Z* range", "ε_ion"):
        assert word in answer.out
    assert "3 results in" in answer.err
    assert sorted(doc["formula_pretty"] for doc in stored(Path("s.db"))) == ["GaAs", "MgO", "NaCl"]


def test_json_is_the_stored_documents(cli, crystals: Path) -> None:
    answer = cli("screen", crystals, "--model", "toy", "--store", "s.db", "--json")
    content = json.loads(answer.out)
    assert content["failures"] == []
    assert [DielectricDocument.from_json_dict(doc).formula_pretty for doc in content["results"]] == [
        "MgO",
        "NaCl",
        "GaAs",
    ]
    assert sorted(content["results"], key=lambda d: d["key"]) == sorted(stored(Path("s.db")), key=lambda d: d["key"])


def test_symmetry_can_be_switched_off(cli, tmp_path: Path) -> None:
    """The same numbers from the cell as given; both results are kept, under keys of their own."""
    path = tmp_path / "cubic.extxyz"
    write(path, bulk("MgO", "rocksalt", 4.21, cubic=True), format="extxyz")
    options = ("--model", "toy", "--store", "s.db", "--json")
    with_symmetry, without = (
        json.loads(cli("screen", path, *options, *flags).out)["results"][0]
        for flags in (("--symmetry",), ("--no-symmetry",))
    )
    assert with_symmetry["symmetry_used"]["space_group_number"] == 225
    assert len(with_symmetry["modes"]["frequencies_thz"]) == 3
    assert without["symmetry_used"] is None
    assert len(without["modes"]["frequencies_thz"]) == 21
    for name in ("n", "e_total", "e_ionic"):
        assert without[name] == pytest.approx(with_symmetry[name], rel=1e-8)
    default = json.loads(cli("screen", path, *options).out)["results"][0]
    assert default["key"] == with_symmetry["key"] != without["key"]
    assert len(stored(Path("s.db"))) == 2


def test_the_embedded_store_is_the_default(cli, crystals: Path) -> None:
    assert cli("screen", crystals, "--model", "toy").code == 0
    assert len(stored(Path("home/data/fieldflows/store.db"))) == 3
    assert not list(Path().glob("*.db"))


def test_the_environment_names_the_store(cli, crystals: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIELDFLOWS_STORE", "named.db")
    Path("launchpad.yaml").write_text("host: db.example.org\nname: elsewhere\n")
    assert cli("screen", crystals, "--model", "toy").code == 0
    assert len(stored(Path("named.db"))) == 3


def test_one_bad_among_many(cli, crystals: Path) -> None:
    Path("empty.cif").write_text("")
    write("molecule.xyz", molecule("H2O"))
    answer = cli("screen", "empty.cif", crystals, "molecule.xyz", "missing.cif", "--model", "toy", "--store", "s.db")
    assert answer.code == 1
    assert len(stored(Path("s.db"))) == 3
    for word in ("Failures", "is empty", "not periodic", "does not exist"):
        assert word in answer.out


def test_structures_that_fail_in_the_model(cli) -> None:
    fermium = bulk("MgO", "rocksalt", 4.21)
    fermium.numbers[0] = 100
    write("some.extxyz", [fermium, bulk("MgO", "rocksalt", 4.21)], format="extxyz")
    answer = cli("screen", "some.extxyz", "--model", "toy", "--store", "s.db")
    assert answer.code == 1
    assert "some.extxyz#0" in answer.out
    assert "does not know Fm" in answer.out
    write("one.extxyz", fermium, format="extxyz")
    assert cli("screen", "one.extxyz", "--model", "toy", "--store", "s.db").code == 2


def test_nothing_readable_is_an_error(cli) -> None:
    Path("empty.cif").write_text("")
    answer = cli("screen", "empty.cif", "--model", "toy", "--store", "s.db")
    assert (answer.code, answer.err) == (2, "Error: empty.cif is empty.\n")
    assert cli("screen", "empty.cif", "missing.cif", "--model", "toy", "--store", "s.db").code == 2
    assert not Path("s.db").exists()


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--model", "no-such-model"], "No model 'no-such-model'"),
        (["--model", "broken.safetensors"], "broken.safetensors"),
        (["--model", "toy", "--hessian-model", "nothing"], "No model 'nothing'"),
        (["--model", "toy", "--store", "no/such/folder/s.db"], "does not exist"),
        (["--model", "toy", "--store", "no/such/folder/s.db", "--dry-run"], "does not exist"),
        (["--model", "toy", "--store", "three.extxyz"], "not a store of fieldflows"),
        (["--model", "toy", "--store", "/proc/s.db"], "no permission"),
        (["--model", "toy", "--band-gap", "-1"], "band-gap"),
        (["--model", "toy", "--dtype", "float16"], "dtype must be float32 or float64"),
    ],
)
def test_what_prevents_everything_is_one_line(cli, crystals: Path, words: list[str], reason: str) -> None:
    Path("broken.safetensors").write_bytes(b"\x00" * 100)
    answer = cli("screen", crystals, *words)
    assert answer.code == 2
    assert answer.err.startswith("Error: ")
    assert reason in answer.err
    assert answer.err.count("\n") == 1


def test_a_dry_run_stores_nothing(cli, crystals: Path) -> None:
    Path("empty.cif").write_text("")
    answer = cli("screen", crystals, "empty.cif", "--model", "toy", "--store", "s.db", "--dry-run")
    assert answer.code == 1
    assert not Path("s.db").exists()
    for word in ("nothing is computed", "MgO", "is empty", "s.db"):
        assert word in answer.out
    facts = json.loads(cli("screen", crystals, "--model", "toy", "--store", "s.db", "--dry-run", "--json").out)
    assert (facts["structures"], facts["atoms"], facts["jobs"], facts["unreadable"]) == (3, 6, 1, 0)
    assert not Path("s.db").exists()


def test_a_dry_run_tells_what_is_stored_and_what_cannot_be(cli, crystals: Path) -> None:
    assert cli("screen", crystals, "--model", "toy", "--store", "s.db").code == 0
    fermium = bulk("MgO", "rocksalt", 4.21)
    fermium.numbers[0] = 100
    write("fermium.extxyz", fermium, format="extxyz")
    words = ("screen", crystals, "fermium.extxyz", "--model", "toy", "--store", "s.db", "--dry-run")
    answer = cli(*words)
    assert answer.code == 0
    assert answer.out.count("stored already") == 3
    assert "does not know Fm" in answer.out
    assert json.loads(cli(*words, "--json").out)["stored"] == 3
    assert json.loads(cli(*words, "--json", "--relax").out)["stored"] == 0


def test_a_second_run_reuses_and_says_so(cli, crystals: Path) -> None:
    words = ("screen", crystals, crystals, "--model", "toy", "--store", "s.db")
    first, second = cli(*words), cli(*words)
    assert "3 structures were duplicates" in first.err
    assert "3 of them were there already" in second.err
    assert second.out == first.out
    assert "there already" not in cli(*words, "--recompute").err
    assert len(stored(Path("s.db"))) == 3


def test_options_reach_the_documents(cli, crystals: Path) -> None:
    base = ("screen", crystals, "--model", "toy", "--json")
    electronic = json.loads(cli(*base, "--no-ionic", "--store", "a.db").out)["results"]
    assert {doc["status_ionic"] for doc in electronic} == {"not_requested"}
    gap = json.loads(cli(*base, "--band-gap", "7.8", "--store", "b.db").out)["results"]
    assert {(doc["band_gap"], doc["insulating"]) for doc in gap} == {(7.8, "yes")}
    relaxed = json.loads(cli(*base, "--relax", "--store", "c.db").out)["results"]
    assert all(doc["relaxation"]["converged"] for doc in relaxed)
    separate = json.loads(cli(*base, "--hessian-model", "toy", "--store", "d.db").out)["results"]
    assert {doc["provenance"]["hessian_model"]["name"] for doc in separate} == {"toy"}


@pytest.mark.parametrize(
    ("content", "code", "text"),
    [
        ("JOB_STORE: [", 2, "jobflow cannot read its configuration (JOBFLOW_CONFIG_FILE)"),
        ("JOB_STORE: 3", 2, "jobflow cannot read its configuration"),
        ("JOB_STORE:\n  docs_store:\n    type: SQLiteStore\n    path: named.db\n", 0, "named.db"),
    ],
)
def test_the_configuration_of_jobflow(
    tmp_path: Path, crystals: Path, launch, content: str, code: int, text: str
) -> None:
    (tmp_path / "jobflow.yaml").write_text(content)
    process = launch("screen", crystals, "--model", "toy", env={"JOBFLOW_CONFIG_FILE": str(tmp_path / "jobflow.yaml")})
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert text in err
    assert "Traceback" not in err
    assert len(list(tmp_path.glob("named.db"))) == (code == 0)


def test_a_variable_that_jobflow_does_not_understand(crystals: Path, launch) -> None:
    process = launch("screen", crystals, "--model", "toy", env={"JOBFLOW_JOB_STORE": "store.yaml"})
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "name a file in JOBFLOW_CONFIG_FILE instead" in err


def test_an_all_metal_crystal_is_flagged(cli) -> None:
    write("alloy.extxyz", bulk("NiAl", "cesiumchloride", 2.89), format="extxyz")
    answer = cli("screen", "alloy.extxyz", "--model", "toy", "--store", "s.db", "--json")
    (document,) = json.loads(answer.out)["results"]
    assert document["insulating"] == "unknown"
    assert "all_metal_composition" in [flag["code"] for flag in document["flags"]]


def test_interrupt_keeps_what_is_finished_and_a_rerun_goes_on(cli, tmp_path: Path, launch) -> None:
    file, path = many(tmp_path / "many.extxyz", 100), tmp_path / "s.db"
    process = launch("screen", file, "--model", "toy", "--store", path)
    wait_for_results(path, 8, process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    finished = len(stored(path))
    assert 8 <= finished < 100
    assert f"Interrupted: {finished} of 100 structures are finished and stored" in " ".join(err.split())
    assert out == ""
    again = cli("screen", file, "--model", "toy", "--store", path)
    assert again.code == 0
    assert f"{finished} of them were there already" in again.err
    assert len(stored(path)) == 100


def test_kill_9_in_the_middle_then_rerun_gives_the_same_results(cli, tmp_path: Path, launch) -> None:
    file, path, reference = many(tmp_path / "many.extxyz", 64), tmp_path / "s.db", tmp_path / "r.db"
    process = launch("screen", file, "--model", "toy", "--store", path)
    wait_for_results(path, 8, process)
    process.kill()
    process.communicate(timeout=60)
    assert 8 <= len(stored(path)) < 64
    for target in (path, reference):
        assert cli("screen", file, "--model", "toy", "--store", target).code == 0

    def facts(where: Path) -> dict[str, tuple]:
        return {doc["key"]: (doc["n"], doc["e_total"], doc["born_charge_max"]) for doc in stored(where)}

    assert facts(path) == facts(reference)
    assert len(facts(path)) == 64


def test_two_processes_share_a_store(tmp_path: Path, launch) -> None:
    path, file = tmp_path / "s.db", many(tmp_path / "many.extxyz", 16)
    processes = [launch("screen", file, "--model", "toy", "--store", path) for _ in range(2)]
    for process in processes:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    assert len(stored(path)) == 16
    assert SQLiteStore(path, "outputs").count() == 2


def test_a_full_disk_is_one_line_and_loses_nothing(cli, tmp_path: Path, launch) -> None:
    """The kernel refuses to let files grow beyond a limit, as with a quota."""
    import resource

    file, path = many(tmp_path / "many.extxyz", 30), tmp_path / "s.db"
    assert cli("screen", many(tmp_path / "few.extxyz", 3), "--model", "toy", "--store", path).code == 0
    limit = path.stat().st_size + 120_000
    process = launch(
        "screen",
        *(file, "--model", "toy", "--store", path),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY)),
    )
    out, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "disk full" in err or "disk is full" in err
    assert "Traceback" not in err
    assert out == ""
    kept = len(stored(path))
    assert 3 < kept < 30
    assert cli("screen", file, "--model", "toy", "--store", path).code == 0
    assert len(stored(path)) == 30
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
