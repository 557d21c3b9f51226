"""The benchmark of engines: chunks run through them, and times are taken."""

from __future__ import annotations

import json

import pytest

from benchmarks.__main__ import main


@pytest.mark.parametrize("remote", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_chunks_run_and_overheads_are_compared(tmp_path, remote: int) -> None:
    pytest.importorskip("fireworks")
    if remote:
        pytest.importorskip("jobflow_remote")
    output = tmp_path / "speed.json"
    words = ["--launches", "2", "--width", "4", "--remote", str(remote)]
    code = main(["engines", *words, "--output", str(output)])
    result = json.loads(output.read_text())["engines"]["result"]
    rows = result["engines"]
    assert [row["engine"] for row in rows] == ["FireWorks", *["jobflow-remote"] * (2 if remote else 0)]
    assert [row["jobs"] for row in rows] == [2, *[remote] * (len(rows) - 1)]
    for row in rows:
        assert row["share"] == pytest.approx(row["overhead_s"] / result["chunk_s"])
        assert row["acceptable"] == (row["overhead_s"] <= 15.0)
    assert code == (0 if all(row["acceptable"] for row in rows) else 1)
