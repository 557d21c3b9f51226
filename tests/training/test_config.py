import pytest
import yaml

from fieldflows.errors import SettingsError
from fieldflows.training.config import LossSection, Term, TrainingConfig


def config(**sections):
    return TrainingConfig.from_dict({"dataset": {"path": "built"}, **sections})


def test_yaml_round_trip(tmp_path):
    path = tmp_path / "train.yaml"
    made = config(run={"epochs": 7, "batch_edges": 500}, loss={"terms": {"forces": {"weight": 2.0, "kind": "l1"}}})
    path.write_text(made.to_yaml())
    again = TrainingConfig.from_yaml(path)
    assert again.model_dump() == made.model_dump()
    assert again.loss.labels == ("forces",)


def test_environment_variables_and_relative_paths(tmp_path, monkeypatch):
    (tmp_path / "data.yaml").write_text("name: x\n")
    (tmp_path / "train.yaml").write_text("dataset: {config: data.yaml}\n")
    assert TrainingConfig.from_yaml(tmp_path / "train.yaml").dataset.config == str(tmp_path / "data.yaml")
    monkeypatch.setenv("SOME_FOLDER", "/elsewhere")
    (tmp_path / "train.yaml").write_text("dataset: {path: '${SOME_FOLDER}/built'}\n")
    assert TrainingConfig.from_yaml(tmp_path / "train.yaml").dataset.path == "/elsewhere/built"
    monkeypatch.delenv("SOME_FOLDER")
    with pytest.raises(SettingsError, match="SOME_FOLDER"):
        TrainingConfig.from_yaml(tmp_path / "train.yaml")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("dataset: {}", "exactly one"),
        ("dataset: {path: a, config: b}", "exactly one"),
        ("dataset: {path: a}\nrun: {epoch: 3}", "Did you mean 'epochs'"),
        ("dataset: {path: a}\nmodel: {architecture: {chanels: 3}}", "Did you mean 'channels'"),
        ("dataset: {path: a}\nloss: {terms: {polarisation: {}}}", "Did you mean 'polarization'"),
        ("dataset: {path: a}\nloss: {terms: {forces: {wieght: 1}}}", "Did you mean 'weight'"),
        ("dataset: {path: a}\nloss: {terms: {stress: {normalization: atoms}}}", "not an observable per atom"),
        ("dataset: {path: a}\nloss: {terms: {forces: {weight: 0}}}", "positive weight"),
        ("dataset: {path: a}\nloss: {terms: {forces: {scale: -1}}}", "positive"),
        ("dataset: {path: a}\noptimizer: {learning_rate: -1}", "greater than 0"),
        ("dataset: {path: a}\noptimizer: {sized_by: minutes}", "max_minutes"),
        ("dataset: {path: a}\noptimizer: {element_sharing: 1}", "element_similarity"),
        ("dataset: {path: a}\nrun: {position_noise: 0.1}\nloss: {terms: {forces: {}}}", "does not go with"),
        ("dataset: {path: a}\nmodel: {architecture: {num_interactions: 1}}", "greater than or equal to 2"),
        ("dataset: [", "no YAML"),
        ("just text", "must be a mapping"),
        ("", "must be a mapping"),
    ],
)
def test_wrong_files_are_explained(tmp_path, text, found):
    path = tmp_path / "train.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=found) as caught:
        TrainingConfig.from_yaml(path)
    assert "\n" not in str(caught.value)


def test_missing_file(tmp_path):
    with pytest.raises(SettingsError, match="Cannot read"):
        TrainingConfig.from_yaml(tmp_path / "none.yaml")


def test_digest_covers_what_decides_the_result_and_nothing_else():
    base = config()
    same = [
        config(run={"max_minutes": 5}),
        config(run={"threads": 2}),
        config(run={"checkpoint_steps": 10}),
        TrainingConfig.from_dict({"dataset": {"path": "moved"}}),
    ]
    other = [
        config(run={"epochs": 99}),
        config(run={"seed": 1}),
        config(optimizer={"learning_rate": 0.1}),
        config(model={"architecture": {"channels": 8}}),
        config(loss={"directions": "random"}),
    ]
    assert {item.digest for item in same} == {base.digest}
    assert base.digest not in {item.digest for item in other}
    constant = [config(optimizer={"schedule": "constant"}, run={"epochs": n}).digest for n in (5, 6)]
    assert constant[0] == constant[1], "without a cosine a run may be prolonged"


def test_symmetry_counts_only_where_it_has_an_effect():
    """Runs that began before the option existed have the digest of runs without it."""
    base = config()
    assert base.symprec == 1e-3
    off = config(run={"symmetry": False})
    assert off.symprec is None
    assert base.without_symmetry().digest == off.digest != base.digest
    assert config(run={"symprec": 1e-4}).digest != base.digest
    assert config(run={"symprec": 1e-4, "symmetry": False}).digest == off.digest
    for sections in (
        {"loss": {"directions": "random"}},
        {"loss": {"terms": {"forces": {}, "polarization": {}}}},
        {"run": {"position_noise": 0.02}},
    ):
        made = config(**sections)
        assert made.symprec is None
        assert made.digest == made.without_symmetry().digest


def test_every_field_says_what_it_means():
    def fields(model):
        for name, field in model.model_fields.items():
            yield f"{model.__name__}.{name}", field
            if hasattr(field.annotation, "model_fields"):
                yield from fields(field.annotation)

    silent = [name for name, field in [*fields(TrainingConfig), *fields(Term)] if not field.description]
    assert silent == []


def test_labels_follow_the_glossary():
    section = LossSection(terms={"polarizability": Term(), "energy": Term(), "forces": Term(weight=0.0)})
    assert section.labels == ("energy", "polarizability")


def test_workflow_files_are_valid(monkeypatch):
    from pathlib import Path

    monkeypatch.setenv("FIELDFLOWS_DATA", "/somewhere")
    files = sorted((Path(__file__).parents[2] / "workflows").glob("train_*.yaml"))
    assert files
    for path in files:
        loaded = TrainingConfig.from_yaml(path)
        data = yaml.safe_load(path.read_text())
        assert loaded.model.name == data["model"]["name"]
        sections = [loaded.dataset, *(head.dataset for head in loaded.heads.values())]
        configs = [section.config for section in sections if section is not None]
        assert configs
        assert all(Path(config).is_file() for config in configs)
