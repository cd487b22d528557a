"""The YAML of a dataset: what it explains is what there is, and what cannot be is refused at once."""

from pathlib import Path

import pytest

from pipeline.config import read_config, validated
from pipeline.dataset.settings import DatasetConfig
from pipeline.errors import ConfigError

YAML = Path(__file__).parents[2] / "configs" / "dataset.yaml"

LEAST = {"volumes": "inbox", "output": {"url": "out"}, "model": {"checkpoint": "m.pt"}}


def test_the_shipped_yaml_names_every_key_that_a_run_has_not_with_its_default():
    """A key that nobody can find does not exist; a default that is not the real one misleads."""
    found = read_config(DatasetConfig, YAML)
    plain = validated(DatasetConfig, LEAST, source="least")
    for name in ("input", "concurrency", "keep", "watch", "price"):
        assert getattr(found, name) == getattr(plain, name)
        assert f"\n{name}:" in YAML.read_text()
        section = getattr(plain, name)
        for key in getattr(type(section), "model_fields", ()):
            assert f"\n  {key}:" in YAML.read_text(), f"{name}.{key}"
    assert "# staging:" in YAML.read_text()


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"volumes": []}, "volumes"),
        ({"output": {"url": "s3://bucket/out"}}, "Set staging to a folder that all workers see"),
        ({"staging": "scratch"}, "only for an output.url on an object store"),
        ({"keep": {"versions": -1}}, "keep.versions"),
        ({"watch": {"quiet": 3}}, "did you mean 'quiet_minutes'"),
        ({"cluster": {"kind": "cuda"}, "compute": {"device": "cpu"}}, "a worker a GPU"),
        ({"output": {"url": "https://u:secret@host/out"}}, "carries"),
        ({"volumes": [{"url": "a.zarr", "nme": "x"}]}, "volumes"),
    ],
)
def test_what_cannot_be_is_refused_with_what_to_do(keys, said):
    """All of it before a volume is looked at."""
    with pytest.raises(ConfigError) as refused:
        validated(DatasetConfig, {**LEAST, **keys}, source="set.yaml")
    assert said in str(refused.value)
    assert "secret" not in str(refused.value)


def test_a_volume_inside_its_own_output_is_refused_by_name(tmp_path):
    """The input store is never written to."""
    config = validated(DatasetConfig, {**LEAST, "output": {"url": str(tmp_path)}}, source="set.yaml")
    with pytest.raises(ConfigError, match="lie inside one another"):
        config.run(str(tmp_path / "x"), str(tmp_path / "x" / "versions" / "f" / "x.ome.zarr"), {})
