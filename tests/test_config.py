import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from ruamel.yaml import YAML

from pipeline.config import RunConfig, read_config, validated
from pipeline.config.reading import as_parameters
from pipeline.errors import ConfigError

LEAST = """
input: {url: /data/in.zarr}
output: {url: /data/out.zarr}
model: {checkpoint: /models/em.pt}
"""


def yaml(text):
    """What a YAML holds."""
    return YAML(typ="safe", pure=True).load(text)


def config_of(folder, text=LEAST, *overrides):
    """A YAML, written and read."""
    (folder / "run.yaml").write_text(text, encoding="utf-8")
    return read_config(RunConfig, folder / "run.yaml", overrides)


def refusal(folder, text=LEAST, *overrides):
    """The text of the refusal of a YAML."""
    with pytest.raises(ConfigError) as refused:
        config_of(folder, text, *overrides)
    assert len(str(refused.value).splitlines()) < 40
    return str(refused.value)


# --- what a run needs ---------------------------------------------------------------------------------------------------


def test_a_class_of_a_library_and_its_arguments_stay_as_written(tmp_path):
    """For another process too: an argument that is null is a value, and the class is called `class`."""
    model = {"checkpoint": "net.pth", "architecture": {"class": "a.b.Net", "arguments": {"norm": None, "n": [1, 2.5]}}}
    content = {"input": {"url": "/i.zarr"}, "output": {"url": "/o.zarr"}, "model": model, "tiles": None}
    config = validated(RunConfig, content, source="any")
    assert (config.model.architecture.class_, config.model.architecture.arguments["norm"]) == ("a.b.Net", None)
    sent = as_parameters(RunConfig, content, source="any")
    assert sent["model"] == {**model, "checkpoint": str(Path("net.pth").absolute())}
    assert "tiles" not in sent
    assert validated(RunConfig, sent, source="any") == config
    for written, why in {
        "{class: Net}": "model.architecture: class is 'Net', expected a package and a class",
        "{arguments: {}}": "model.architecture.class: required, but not there",
        "{class: a.Net, arguments: {n: .inf}}": "arguments hold what JSON has not",
        "{class: a.Net, arguments: {n: 2026-11-30}}": "arguments hold what JSON has not",
        "{class: a.Net, argument: {}}": "did you mean 'arguments'?",
    }.items():
        assert why in refusal(tmp_path, LEAST.replace("checkpoint:", f"architecture: {written}, checkpoint:"))


def test_three_paths_are_a_run(tmp_path):
    """Everything else has a default, and each default is a promise: another value would be another output."""
    assert config_of(tmp_path).model_dump() == {
        "input": {
            "url": "/data/in.zarr",
            "level": 0,
            "axes": "auto",
            "channels": "all",
            "nonfinite": "fail",
            "missing": "fail",
        },
        "output": {
            "url": "/data/out.zarr",
            "dtype": "float32",
            "activation": None,
            "chunks": "auto",
            "shards": "auto",
        },
        "model": {
            "checkpoint": "/models/em.pt",
            "padding": None,
            "architecture": None,
            "trust": False,
            "output": 0,
            "name": None,
            "version": "latest",
            "registry": None,
            "statistics": None,
            "frozen_from": None,
            "digest": None,
            "ensemble": None,
            "exact": True,
            "window": None,
        },
        "normalize": None,
        "tiles": {"core": "auto", "halo": "auto"},
        "compute": {
            "device": "auto",
            "dtype": "auto",
            "tolerance": "auto",
            "threads": "auto",
            "augment": "none",
            "device_memory_gb": "auto",
        },
        "cluster": {
            "kind": "local",
            "workers": "auto",
            "memory_gb": "auto",
            "retries": 2,
            "wait_minutes": "auto",
            "host": "127.0.0.1",
            "interface": None,
            "security": "auto",
            "dashboard": False,
            "address": None,
            "slurm": None,
            "kubernetes": None,
        },
        "log": {"level": "info", "format": "text"},
    }


@pytest.mark.parametrize("key", ["input.url", "output.url", "model: checkpoint"])
def test_each_of_the_three_paths_is_required(tmp_path, key):
    """A default for a path would be a guess at someone's data."""
    section = re.split(r"\W", key)[0]
    assert f"{key}: required, but not there" in refusal(tmp_path, re.sub(f"{section}: .*", f"{section}: {{}}", LEAST))
    assert f"{section}: required, but not there" in refusal(tmp_path, re.sub(f"{section}: .*", "", LEAST))


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ("{name: em}", "no registry says where it is kept"),
        ("{checkpoint: a.pt, registry: /models}", "name and registry"),
        ("{name: em, registry: /models, version: newest}", "version: should be 'latest'"),
    ],
)
def test_a_model_is_a_file_or_a_name_in_a_registry(tmp_path, model, told):
    """Half of one and half of the other would leave open which network computes."""
    assert told in refusal(tmp_path, re.sub("model: .*", f"model: {model}", LEAST))
    config = config_of(tmp_path, re.sub("model: .*", "model: {name: em, registry: /models, version: 3}", LEAST))
    assert (config.model.name, config.model.version, config.model.registry) == ("em", 3, "/models")


def test_every_key_can_be_given(tmp_path):
    """One YAML with nothing left to chance."""
    found = config_of(
        tmp_path,
        """
        input: {url: /data/in.zarr, level: 1, axes: czyx, nonfinite: zero}
        output: {url: /data/out.zarr, dtype: uint8, activation: sigmoid, chunks: [32, 64, 64], shards: none}
        model: {checkpoint: /models/em.pt, padding: valid}
        normalize: {mode: percentile, low: 0.5, high: 99.5}
        tiles: {core: [64, 128, 128], halo: [48, 48, 48]}
        compute: {device: cpu, dtype: bfloat16, threads: 8}
        cluster: {kind: local, workers: 4, memory_gb: 7.5, retries: 0}
        log: {level: debug, format: json}
        """,
    )
    assert found.output.chunks == (32, 64, 64)
    assert found.output.shards == "none"
    assert (found.tiles.core, found.tiles.halo) == ((64, 128, 128), (48, 48, 48))
    assert found.normalize.model_dump() == {"mode": "percentile", "low": 0.5, "high": 99.5}
    assert (found.cluster.memory_gb, found.compute.threads) == (7.5, 8)
    assert (found.log.level, found.log.format) == ("debug", "json")


def test_a_run_is_frozen(tmp_path):
    """What was validated is what runs."""
    with pytest.raises(ValidationError):
        config_of(tmp_path).cluster.workers = 3


# --- refusals -----------------------------------------------------------------------------------------------------------

REFUSALS = {
    "an unknown key": ("inptu: {}", ["inptu: unknown key; did you mean 'input'?"]),
    "an unknown key of a section": ("tiles: {cores: auto}", ["tiles.cores: unknown key; did you mean 'core'?"]),
    "an unknown key like no other": ("zzz: 1", ["zzz: unknown key; known are input, output, model"]),
    "a key that is no word": ("1: 2", ["1: Keys should be strings"]),
    "two numbers": (
        "tiles: {core: [64, 64]}",
        ["tiles.core: should be 'auto', or three numbers, z, y, x (found [64, 64])"],
    ),
    "four numbers": ("tiles: {core: [1, 64, 64, 64]}", ["three numbers, z, y, x"]),
    "one number": ("tiles: {core: 64}", ["tiles.core: should be 'auto', or three numbers, z, y, x (found 64)"]),
    "no voxels": ("tiles: {core: [0, 64, 64]}", ["tiles.core", "greater than or equal to 1 (found 0)"]),
    "part of a voxel": ("tiles: {halo: [1.5, 64, 64]}", ["tiles.halo", "integer"]),
    "another word than auto": (
        "output: {url: /o, shards: some}",
        ["output.shards", "'auto' or 'none'", "found 'some'"],
    ),
    "no workers": (
        "cluster: {workers: 0}",
        ["cluster.workers: should be 'auto', or should be greater than or equal to 1 (found 0)"],
    ),
    "a cluster of another kind": ("cluster: {kind: sulrm}", ["cluster.kind: should be 'local'", "(found 'sulrm')"]),
    "no memory": ("cluster: {memory_gb: 0}", ["cluster.memory_gb: should be 'auto', or should be greater than 0"]),
    "endless memory": ("cluster: {memory_gb: .inf}", ["cluster.memory_gb: should be 'auto', or should be a finite"]),
    "fewer than no retries": ("cluster: {retries: -1}", ["cluster.retries: should be greater than or equal to 0"]),
    "a type that is none": (
        "compute: {dtype: float8}",
        ["compute.dtype: should be 'auto', 'float32'", "(found 'float8')"],
    ),
    "a negative level": ("input: {url: /i, level: -1}", ["input.level: should be greater than or equal to 0"]),
    "no path": ("input: {url: ''}", ["input.url: a path is needed"]),
    "a path that is a number": ("input: {url: 3}", ["input.url: a path is needed"]),
    "percentiles in the wrong order": (
        "normalize: {mode: percentile, low: 99, high: 1}",
        ["normalize: low (99.0 %) must be below high (1.0 %)"],
    ),
    "eight bits of raw logits": (
        "output: {url: /o, dtype: uint8, activation: none}",
        ["output: dtype uint8 stores rint(255 * clip(v, 0, 1))", "Set output.activation to sigmoid or softmax"],
    ),
    "an output in the cloud": (
        "output: {url: 's3://bucket/out.zarr'}",
        ["output.url 's3://bucket/out.zarr' is not a local"],
    ),
    "a level of logs that is none": (
        "log: {level: trace}",
        ["log.level: should be 'debug', 'info'", "(found 'trace')"],
    ),
    "what looks like a date": ("tiles: {core: 2026-13-45}", ["is not YAML"]),
    "duplicate keys": ("tiles: {core: auto}\ntiles: {halo: auto}", ["is not YAML", 'duplicate key "tiles"']),
    "duplicate keys of a section": ("tiles: {core: auto, core: auto}", ["is not YAML", 'duplicate key "core"']),
    "a brace that is not closed": ("tiles: {", ["is not YAML"]),
    "a tab": ("\ttiles: {}", ["is not YAML"]),
    "code": ("x: !!python/object/apply:os.system [ls]", ["is not YAML", "could not determine a constructor"]),
    "a zero byte": ("x: \0", ["is not YAML"]),
}


@pytest.mark.parametrize(("section", "told"), REFUSALS.values(), ids=REFUSALS)
def test_what_cannot_be_a_run_is_refused_with_what_was_found(tmp_path, section, told):
    """The key by its whole name, what it may be, and what it is."""
    name = section.partition(":")[0]
    text = refusal(tmp_path, re.sub(f"(?m)^{re.escape(name)}: .*$", "", LEAST) + section)
    for part in told:
        assert part in text


@pytest.mark.parametrize("text", ["", "3", "[1, 2]", "just words", "null"])
def test_a_file_without_keys_is_refused(tmp_path, text):
    """The wrong file was named."""
    assert "not keys. See configs/example.yaml" in refusal(tmp_path, text)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    """The commonest mistake of all."""
    with pytest.raises(ConfigError, match=r"none.yaml' cannot be read.*Check the path"):
        read_config(RunConfig, tmp_path / "none.yaml")


def test_a_file_that_is_no_text_is_refused(tmp_path):
    """A checkpoint named by mistake."""
    (tmp_path / "weights.pt").write_bytes(b"PK\x03\x04\xff\xfe")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_config(RunConfig, tmp_path / "weights.pt")


def test_all_violations_are_told_at_once(tmp_path):
    """Nobody should mend a configuration one error at a time."""
    text = refusal(
        tmp_path,
        """
        input: {level: -1}
        output: {url: /data/out.zarr, dtype: uint8, activation: none}
        tiles: {core: [1, 2], hallo: 3}
        cluster: {workers: none}
        """,
    )
    keys = [
        "input.url",
        "input.level",
        "output: dtype uint8",
        "model: required",
        "tiles.core",
        "tiles.hallo",
        "cluster.workers",
    ]
    assert "cannot be a run (7 problems)" in text
    assert len(text.splitlines()) == 8
    for key in keys:
        assert f"\n  {key}" in text


def test_a_key_of_several_types_is_told_once(tmp_path):
    """`auto` or a number: both expectations on one line, not the library's inner names on two."""
    text = refusal(tmp_path, LEAST + "compute: {threads: many}")
    assert len(text.splitlines()) == 2
    assert "compute.threads: should be 'auto', or should be a valid integer" in text


def test_a_file_full_of_problems_is_told_in_short(tmp_path):
    """Another program's YAML must not scroll the cause off the screen."""
    text = refusal(tmp_path, LEAST + "\n".join(f"key{i}: 1" for i in range(200)))
    assert "(200 problems)" in text
    assert text.endswith("and 170 more")


def test_a_long_value_is_told_in_short(tmp_path):
    """A pasted array in the place of three numbers."""
    assert len(refusal(tmp_path, LEAST + f"tiles: {{core: {list(range(5000))}}}")) < 400


# --- input and output stay apart ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("/data/in.zarr", "/data/in.zarr"),
        ("/data/in.zarr", "/data/in.zarr/prediction"),
        ("/data/all.zarr/raw", "/data/all.zarr"),
        ("/data/in.zarr", "/data/x/../in.zarr/0"),
        ("file:///data/in.zarr", "/data/in.zarr/0"),
    ],
)
def test_an_output_inside_its_input_is_refused_and_the_reverse(tmp_path, source, target):
    """The input store is never written to, however its path is written."""
    text = refusal(tmp_path, LEAST, f"input.url={source}", f"output.url={target}")
    assert "lie inside one another" in text
    assert "Set output.url to a path of its own" in text


def test_an_output_inside_its_input_is_refused_behind_a_link(tmp_path):
    """Links to data are usual on clusters."""
    (tmp_path / "in.zarr").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "in.zarr")
    text = refusal(tmp_path, LEAST, f"input.url={tmp_path}/link", f"output.url={tmp_path}/in.zarr/out")
    assert "lie inside one another" in text


def test_neighbours_of_like_names_are_fine(tmp_path):
    """`in.zarr` is not inside `in`, whatever their letters say."""
    found = config_of(tmp_path, LEAST, "input.url=/data/in", "output.url=/data/in.zarr")
    assert (found.input.url, found.output.url) == ("/data/in", "/data/in.zarr")


# --- paths and the environment ------------------------------------------------------------------------------------------


def test_paths_are_relative_to_the_working_directory(tmp_path, monkeypatch):
    """And absolute in the plan: workers have another one."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    found = config_of(tmp_path, LEAST, "input.url=in.zarr", "model.checkpoint=../em.pt")
    assert found.input.url == str(tmp_path / "elsewhere" / "in.zarr")
    assert found.model.checkpoint == str(tmp_path / "em.pt")


def test_links_are_kept_as_they_are_written(tmp_path):
    """A link to the newest data names what its owner meant; where it leads today is not for us to write down."""
    (tmp_path / "today").mkdir()
    (tmp_path / "newest").symlink_to(tmp_path / "today")
    assert config_of(tmp_path, LEAST, f"input.url={tmp_path}/newest").input.url == str(tmp_path / "newest")


def test_home_is_expanded_and_a_stranger_is_no_crash(tmp_path, monkeypatch):
    """`~` as shells have it; a user that is not there is left for the store to refuse."""
    monkeypatch.setenv("HOME", "/home/me")
    assert config_of(tmp_path, LEAST, "input.url=~/in.zarr").input.url == "/home/me/in.zarr"
    assert config_of(tmp_path, LEAST, "input.url=~nobody-at-all/in.zarr").input.url.endswith("/~nobody-at-all/in.zarr")


def test_other_urls_are_left_alone(tmp_path):
    """They are not paths."""
    assert config_of(tmp_path, LEAST, "input.url=s3://bucket/in.zarr").input.url == "s3://bucket/in.zarr"


def test_the_environment_is_expanded_everywhere(tmp_path, monkeypatch):
    """Batch jobs name their scratch directory this way; also inside lists and overrides."""
    monkeypatch.setenv("SCRATCH", "/scratch/7")
    monkeypatch.setenv("WIDTH", "128")
    found = config_of(
        tmp_path, LEAST + 'tiles: {core: [64, "${WIDTH}", 128]}', "output.url=${SCRATCH}/${WIDTH}/out.zarr"
    )
    assert found.output.url == "/scratch/7/128/out.zarr"
    assert found.tiles.core == (64, 128, 128)


def test_a_variable_that_is_not_set_is_an_error(tmp_path, monkeypatch):
    """As an empty string it would be a path from the root."""
    monkeypatch.delenv("SCRATCH", raising=False)
    text = refusal(tmp_path, LEAST, "output.url=${SCRATCH}/out.zarr")
    assert "names the environment variable SCRATCH, which is not set" in text


def test_the_environment_is_expanded_in_parameters_too(monkeypatch):
    """A deployment's parameters reach the flow as a plain dict, and hold the name of a secret, never the secret."""
    content = {"input": {"url": "${DATA}/in.zarr"}, "output": {"url": "out.zarr"}, "model": {"checkpoint": "m.pt"}}
    monkeypatch.setenv("DATA", "/data")
    assert RunConfig.model_validate(content).input.url == "/data/in.zarr"
    assert content["input"]["url"] == "${DATA}/in.zarr"
    monkeypatch.delenv("DATA")
    with pytest.raises(ConfigError, match="names the environment variable DATA, which is not set"):
        RunConfig.model_validate(content)


# --- credentials --------------------------------------------------------------------------------------------------------

SECRET = "s3cr3t"
SIGNED = f"https://bucket.host.org/v.zarr?X-Amz-Signature={SECRET}"
WITH_USER = f"https://me:{SECRET}@host.org/v.zarr"


@pytest.mark.parametrize("key", ["input.url", "output.url", "model.checkpoint", "model.registry"])
@pytest.mark.parametrize("url", [WITH_USER, SIGNED], ids=["user", "signed"])
def test_a_url_with_credentials_is_refused_without_repeating_them(tmp_path, key, url):
    """It would stand in the plan, which is shared with the output; and a refusal is pasted into tickets."""
    text = refusal(tmp_path, LEAST, f"{key}={url}")
    assert f"{key}: the URL carries " in text
    assert "would stand in the plan, the ledger, the report and the logs" in text
    assert "environment variables or the profile of the storage library" in text
    assert SECRET not in text


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (LEAST + f"extra: {WITH_USER}", "extra: unknown key"),
        (LEAST + f"? {WITH_USER}\n: 1", "(not shown: it carries credentials): unknown key"),
        (LEAST + f"tiles: {{core: '{WITH_USER}'}}", "tiles.core: should be 'auto'"),
        (LEAST + f"tiles: {{core: [1, '{'x' * 80}', '{WITH_USER}']}}", "tiles.core"),
        (re.sub("input: .*", f"input: {WITH_USER}", LEAST), "input: should be a valid dictionary"),
        (LEAST.replace("/data/in.zarr", WITH_USER) + "tiles: {", "is not YAML:\n  ParserError, line "),
        (f"input: {{url: {WITH_USER}, url: {SIGNED}}}", "is not YAML:\n  DuplicateKeyError, line 1"),
        (LEAST.replace("/data/in.zarr", repr(WITH_USER.replace("host", "${NOT_SET}"))), "environment variable NOT_SET"),
    ],
    ids=["a key", "as a key", "in the place of numbers", "in a list", "as a section", "torn", "twice", "half expanded"],
)
def test_no_refusal_shows_credentials_that_were_found_elsewhere(tmp_path, text, told):
    """A URL at the wrong place, or in a file that is no YAML, is as secret as at the right one."""
    found = refusal(tmp_path, text)
    assert told in found
    assert SECRET not in found


@pytest.mark.parametrize(
    "override",
    [f"input.url {WITH_USER}", f"={WITH_USER}", f"input.url={{a: {WITH_USER}", f"input.url.deep={WITH_USER}", SIGNED],
)
def test_no_refusal_of_an_override_shows_credentials(tmp_path, override):
    """Command lines end in the logs of schedulers."""
    assert SECRET not in refusal(tmp_path, LEAST, override)


def test_credentials_that_the_environment_puts_into_a_url_are_refused_too(tmp_path, monkeypatch):
    """What is expanded is what would be written down."""
    monkeypatch.setenv("PASSWORD", SECRET)
    text = refusal(tmp_path, LEAST, "input.url=https://me:${PASSWORD}@host.org/v.zarr")
    assert "the URL carries a user or a password" in text
    assert SECRET not in text


def test_the_error_of_the_library_below_shows_no_values():
    """Prefect validates the parameters of a deployment by itself, and logs what pydantic says."""
    with pytest.raises(ValidationError) as refused:
        RunConfig.model_validate({**yaml(LEAST), "input": {"url": WITH_USER}})
    assert SECRET not in str(refused.value)


def test_a_url_without_credentials_is_told_in_full(tmp_path):
    """The negative control: who mistypes wants to see what he typed."""
    assert "'s3://bucket/out.zarr' is not a local path" in refusal(tmp_path, LEAST, "output.url=s3://bucket/out.zarr")


# --- overrides ----------------------------------------------------------------------------------------------------------


def test_overrides_are_yaml_and_the_last_one_counts(tmp_path):
    """`--set` takes what the file takes, numbers, lists and null included."""
    found = config_of(
        tmp_path,
        LEAST + "normalize: {mode: zscore}",
        "cluster.workers=3",
        "cluster.workers=5",
        "tiles.core=[64, 128, 128]",
        "output={url: /other.zarr, dtype: uint8}",
        "output.activation=sigmoid",
        "normalize=null",
        "cluster.memory_gb=2.5",
        "model.checkpoint=/models/a=b.pt",
    )
    assert found.cluster.workers == 5
    assert found.tiles.core == (64, 128, 128)
    assert (found.output.url, found.output.dtype, found.output.activation) == ("/other.zarr", "uint8", "sigmoid")
    assert found.normalize is None
    assert found.cluster.memory_gb == 2.5
    assert found.model.checkpoint == "/models/a=b.pt"


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("cluster.workers", "is not key=value"),
        ("=3", "is not key=value"),
        ("tiles.core=[1, 2", "is not YAML"),
        ("tiles.core=2026-13-45", "is not YAML"),
        ("tiles={core: auto, core: auto}", "is not YAML"),
        ("input.url.deep=3", "'url' holds a value, not keys"),
        ("cluster.worker=3", "cluster.worker: unknown key; did you mean 'workers'?"),
        ("clusters.workers=3", "clusters: unknown key; did you mean 'cluster'?"),
        ("cluster.workers=many", "cluster.workers: should be 'auto', or should be a valid integer"),
    ],
)
def test_an_override_that_cannot_be_is_refused(tmp_path, override, told):
    """A typing mistake on the command line must not run with the file's value."""
    assert told in refusal(tmp_path, LEAST, override)


# --- anything at all ----------------------------------------------------------------------------------------------------

KEYS = sorted(
    {key for field in validated(RunConfig, yaml(LEAST), source="least").model_dump().values() for key in field or {}}
)

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.dates() | st.just("auto"),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9) | st.integers(), inner, max_size=4),
    max_leaves=12,
)
sections = st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=9), anything, max_size=6) | anything
contents = st.fixed_dictionaries({}, optional=dict.fromkeys([*RunConfig.model_fields, "extra"], sections))


@given(contents)
def test_any_content_is_a_run_or_one_short_refusal(content):
    """Whatever YAML holds, the answer is a ConfigError that names keys, and never a traceback."""
    try:
        validated(RunConfig, content, source="any.yaml")
    except ConfigError as error:
        text = str(error)
    else:
        return
    assert text.startswith("Configuration 'any.yaml' cannot be a run (") or "environment variable" in text
    assert len(text) < 6000


def test_the_example_is_a_run_of_defaults():
    """The file that people copy shows every key, and each at its default."""
    example = Path(__file__).parents[1] / "configs" / "example.yaml"
    found = read_config(RunConfig, example).model_dump()
    least = validated(RunConfig, yaml(LEAST), source="least").model_dump()
    for section, keys in least.items():
        for key, value in (keys or {}).items():
            if key not in ("url", "checkpoint"):
                assert found[section][key] == value, f"{section}.{key}"


def test_a_section_whose_keys_are_all_commented_out_is_absent(tmp_path):
    """What `configs/example.yaml` becomes when a user comments out what he leaves at its default."""
    path = tmp_path / "run.yaml"
    path.write_text(f"{LEAST}\ntiles:\n")
    assert read_config(RunConfig, path).tiles == RunConfig.model_fields["tiles"].default
    assert read_config(RunConfig, path, ["tiles.core=[8, 8, 8]"]).tiles.core == (8, 8, 8)


def test_a_run_directory_in_the_place_of_the_input_is_refused(tmp_path):
    """The plan and the locks would be written into the input store."""
    text = "input: {url: /data/w.run}\noutput: {url: /data/w}\nmodel: {checkpoint: /models/em.pt}\n"
    assert "inside one another" in refusal(tmp_path, text)


# --- clusters -----------------------------------------------------------------------------------------------------------

SLURM = {"kind": "slurm", "workers": 2, "memory_gb": 4, "slurm": {"walltime": "1-02:03:04", "cores": 8}}
PODS = {"kind": "kubernetes", "workers": 2, "memory_gb": 4, "kubernetes": {"image": "i", "cores": 1}}


def clustered(cluster, **sections):
    """A run with this cluster."""
    content = {"input": {"url": "i.zarr"}, "output": {"url": "o.zarr"}, "model": {"checkpoint": "m.pt"}, **sections}
    return validated(RunConfig, {**content, "cluster": cluster}, source="run.yaml")


def test_pods_of_one_configuration_are_one_pool():
    """Workers that are begun while Prefect starts are found again by their configuration, mappings in it or not."""
    found, same = (
        clustered({**PODS, "kubernetes": {**PODS["kubernetes"], "env": {"A": "b"}}}).cluster for _ in range(2)
    )
    assert hash(found) == hash(same)
    assert found == same
    assert found != clustered(PODS).cluster


def test_a_walltime_is_read_as_slurm_reads_it():
    """A job that is drained an hour late is ended in mid-tile."""
    found = clustered(SLURM).cluster.slurm
    assert found.walltime_seconds == 86400 + 2 * 3600 + 3 * 60 + 4


POD = {"image": "i", "cores": 1}


@pytest.mark.parametrize(
    ("cluster", "told"),
    [
        (
            {"kind": "slurm"},
            r"kind slurm needs slurm \(walltime, cores\), workers \(jobs\), memory_gb \(of a worker\) too",
        ),
        ({**SLURM, "workers": "auto"}, r"kind slurm needs workers \(jobs\) too; see configs/slurm\.yaml"),
        ({"kind": "address"}, r"kind address needs address \(of a scheduler that runs"),
        ({**SLURM, "slurm": {"walltime": "90", "cores": 8}}, r"cluster\.slurm\.walltime"),
        ({**SLURM, "slurm": {"walltime": "1:00:00"}}, r"cluster\.slurm\.cores: required"),
        ({**SLURM, "slurm": {**SLURM["slurm"], "gpus": 2}}, r"cluster\.slurm\.gpus"),
        ({"security": {"ca_file": "ca.pem"}}, r"cluster\.security"),
        ({"wait_minutes": 0}, r"cluster\.wait_minutes"),
        ({"kind": "cloud"}, r"cluster\.kind"),
        (
            {"kind": "kubernetes"},
            r"kind kubernetes needs kubernetes \(image, cores\), workers \(pods\), memory_gb \(of a worker\) too",
        ),
        (
            {**PODS, "memory_gb": "auto"},
            r"kind kubernetes needs memory_gb \(of a worker\) too; see configs/kubernetes\.yaml",
        ),
        ({**PODS, "kubernetes": {"image": "i", "cores": 1, "user": 0}}, r"cluster\.kubernetes\.user"),
        ({**PODS, "kubernetes": {"image": "i", "cores": 1, "namespace": "My Lab"}}, r"cluster\.kubernetes\.namespace"),
        (
            {**PODS, "kubernetes": {"image": "i", "cores": 1, "volumes": [{"claim": "c", "path": "data"}]}},
            r"cluster\.kubernetes\.volumes",
        ),
        ({**PODS, "kubernetes": {"image": "i", "cores": 1, "tolerations": [{"efect": "NoSchedule"}]}}, r"tolerations"),
        (
            {**PODS, "kubernetes": {**POD, "tolerations": [{"key": "a", "operator": "Exists", "value": "b"}]}},
            r"Exists takes no value",
        ),
        ({**PODS, "kubernetes": {**POD, "tolerations": [{"key": "a", "operator": "Equal"}]}}, r"Equal needs a value"),
        ({**PODS, "kubernetes": {**POD, "tolerations": [{"value": "b"}]}}, r"without a key"),
        ({**PODS, "kubernetes": {**POD, "labels": {"a": "b c"}}}, r"cluster\.kubernetes\.labels"),
        ({**PODS, "kubernetes": {**POD, "node_selector": {"a b": "c"}}}, r"cluster\.kubernetes\.node_selector"),
        (
            {
                **PODS,
                "kubernetes": {**POD, "volumes": [{"claim": c, "path": p} for c, p in (("a", "/d"), ("b", "/d/"))]},
            },
            r"more than once",
        ),
    ],
)
def test_a_cluster_that_cannot_be_is_refused_with_what_it_lacks(cluster, told):
    """Before a job is in any queue."""
    with pytest.raises(ConfigError, match=told):
        clustered(cluster)


def test_a_cluster_of_cards_does_not_compute_on_processors():
    """One of the two is a mistake, and only the user knows which."""
    with pytest.raises(ConfigError, match=r"cluster\.kind is 'cuda'.*compute\.device is 'cpu'"):
        clustered({"kind": "cuda"}, compute={"device": "cpu"})


@pytest.mark.parametrize("name", ["local", "cuda", "slurm", "slurm-allocation", "kubernetes", "address"])
def test_each_kind_of_cluster_has_an_example_that_is_one(name):
    """They are what people copy."""
    found = read_config(RunConfig, Path(__file__).parents[1] / "configs" / f"{name}.yaml")
    assert found.cluster.kind == name


# --- what is larger than it looks ----------------------------------------------------------------------------------------


def bomb(start, line):
    """Twelve lines, each of ten of the line before."""
    return start + "".join(line.format(n=n, of=",".join([f"*a{n - 1}"] * 10)) for n in range(1, 12))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (bomb("a0: &a0 [x]\n", "a{n}: &a{n} [{of}]\n"), "aliases stand for more"),
        (
            bomb(
                "a0: &a0 {{x: 1}}\n".format(),
                "a{n}: &a{n} {{{{<<: [{of}]}}}}\n".replace("{{{{", "{{").replace("}}}}", "}}"),
            ),
            "aliases stand for more",
        ),
        ("input: &a {url: *a}", "in itself, line 1"),
        ("&a {*a : 1}", "in itself, line 1"),
        ("a: " + "[" * 100_000 + "]" * 100_000, "levels deep"),
        ("a: " + "{a: " * 200 + "1" + "}" * 200, "levels deep"),
        ("- " * 20_000 + "a", "levels deep"),
        ("\n".join(" " * n + "a:" for n in range(100)), "levels deep"),
        ("#" * (2**21 + 1), "characters"),
        ("a: 0x" + "f" * 10_000, "bits"),
        ("a: !!python/object/apply:os.system ['x']", "tag"),
        ("a: !!int x", "not YAML"),
    ],
    ids=[
        "aliases",
        "merges",
        "itself",
        "its own key",
        "deep",
        "deep keys",
        "dashes",
        "indented",
        "long",
        "digits",
        "a program",
        "a tag",
    ],
)
def test_a_yaml_that_stands_for_more_than_its_text_is_refused_at_once(tmp_path, text, told):
    """Ten lines of aliases took 75 s and ended in no memory; one that names itself ended in a traceback."""
    assert told in refusal(tmp_path, text)


def test_anchors_of_a_common_use_are_read(tmp_path):
    """Only what grows is refused."""
    config = config_of(tmp_path, LEAST + "tiles: {core: &size [8, 8, 8]}\n", "output.chunks=[8, 8, 8]")
    assert config.tiles.core == (8, 8, 8)
    assert (
        config_of(
            tmp_path, LEAST.replace("/data/in.zarr", "&u /a.zarr").replace("/models/em.pt", "*u")
        ).model.checkpoint
        == "/a.zarr"
    )


def test_a_yaml_in_another_encoding_is_named_as_that(tmp_path):
    """UTF-16 is what some editors save."""
    (tmp_path / "run.yaml").write_bytes(LEAST.encode("utf-16"))
    with pytest.raises(ConfigError, match="UTF-8"):
        read_config(RunConfig, tmp_path / "run.yaml")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tiles.core", [10**18] * 3),
        ("tiles.halo", [10**18] * 3),
        ("output.chunks", [2**63, 1, 1]),
        ("output.shards", [10**18] * 3),
        ("cluster.workers", 10**18),
        ("cluster.retries", 10**18),
        ("cluster.memory_gb", 1e300),
        ("cluster.wait_minutes", 1e300),
        ("compute.threads", 10**18),
        ("compute.device_memory_gb", 1e300),
    ],
)
def test_numbers_beyond_all_machines_are_refused_by_their_key(tmp_path, key, value):
    """Each ended in minutes of a search, or in the traceback of an overflow."""
    assert key in refusal(tmp_path, LEAST, f"{key}={value}")


@pytest.mark.parametrize("key", ["input.url", "output.url", "model.checkpoint"])
@pytest.mark.parametrize("path", ["/data/" + "x" * 300, "/data/" + "é" * 130, "/x" * 3000, '"/data/a\\0b"'])
def test_a_path_that_no_file_system_takes_is_refused(tmp_path, key, path):
    """A name of 300 characters ended in the traceback of an OSError."""
    text = refusal(tmp_path, LEAST, f"{key}={path}")
    assert key in text or "null byte" in text


def test_a_folder_whose_name_is_no_text_is_refused_by_its_key_before_any_work(tmp_path, monkeypatch):
    """The report's page and Prefect's database could not hold it, which a run would notice when all tiles are done."""
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    monkeypatch.chdir(folder)  # paths are relative to where a command runs
    content = {"input": {"url": "in.zarr"}, "output": {"url": "out.zarr"}, "model": {"checkpoint": "/m.safetensors"}}
    with pytest.raises(ConfigError, match=r"not UTF-8 text.*output\.url: '.*caf\\udce9/out\.zarr'.*Rename"):
        validated(RunConfig, content, source="run.yaml")
