"""``fieldflows model``: what there is, what it says, and pickles only on request."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

from fieldflows import load_model
from fieldflows.models import bundled_models


class Evil:
    """A pickle that leaves a trace if it is loaded."""

    def __reduce__(self):
        return (Path.touch, (Path("executed"),))


def test_list_names_every_bundled_model(cli) -> None:
    rows = {row["name"]: row for row in json.loads(cli("model", "list", "--json").out)}
    assert set(rows) == {*bundled_models(), "toy"}
    assert rows["toy"]["sha256"] == load_model("toy").info.sha256
    table = cli("model", "list")
    assert table.code == 0
    assert all(name in table.out for name in rows)


def test_info(cli) -> None:
    facts = json.loads(cli("model", "info", "toy", "--json").out)
    assert facts["sha256"] == load_model("toy").info.sha256
    assert facts["has_energy_surface"] is True
    text = cli("model", "info", "toy")
    assert facts["sha256"] in text.out
    missing = cli("model", "info", "tpy")
    assert missing.code == 2
    assert "No model 'tpy'" in missing.err


def test_a_pickle_is_refused_without_trust_and_not_opened(cli) -> None:
    Path("evil.model").write_bytes(pickle.dumps(Evil()))
    answer = cli("model", "import", "evil.model")
    assert answer.code == 2
    assert "--trust-pickle" in answer.err
    assert "run any code" in answer.err
    assert answer.err.count("\n") == 1
    assert not Path("executed").exists()
    assert list(Path().glob("*.safetensors")) == []
    # Nor does naming it as a model open it.
    assert cli("model", "info", "evil.model").code == 2
    assert not Path("executed").exists()


def test_a_missing_file_is_said(cli) -> None:
    answer = cli("model", "import", "nothing.model", "--trust-pickle")
    assert answer.code == 2
    assert answer.err.startswith("Error: No backbone 'nothing.model': no such file or foundation name. Known: ")
