"""Whole datasets on real workers: what is done, skipped and failed, what readers see meanwhile, and what a rerun does."""

import csv
import json
import logging
import os
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from flows.dataset import reprocess_plainly
from pipeline.dataset.estimate import estimate
from pipeline.dataset.outcome import read_mark
from pipeline.dataset.pass_ import volumes_of
from pipeline.errors import ConfigError, DatasetError, ModelError, StorageError
from pipeline.inference import survey
from pipeline.outputs.rundir import RunDirectory
from pipeline.planning import resolve
from tests.dataset.dataset_cases import ARCHITECTURE, DataSet, make_dataset
from tests.pipeline_cases import fill_up, mounted, random_network, save_array, sessions


def go(dataset: DataSet, **how) -> dict[str, str]:
    """Reprocess without Prefect; gives the states, as they were told."""
    told = {}
    try:
        reprocess_plainly(dataset.config, lambda outcome, _: told.update({outcome.name: outcome.state}), **how)
    except DatasetError:
        assert "failed" in told.values()
    else:
        assert "failed" not in told.values()
    return told


def test_twenty_volumes_one_corrupt_and_one_done_already(tmp_path, pooled):
    """The day of an imaging core: one bad volume stops nobody, is named with its reason, and is all that a rerun does."""
    dataset = make_dataset(tmp_path, volumes=20)
    whole = str(dataset.content["volumes"])
    assert go(dataset.having(volumes=str(dataset.volume("v03")))) == {"v03": "done"}
    dataset.corrupt("v07")

    dataset = dataset.having(volumes=whole)
    assert Counter(go(dataset).values()) == {"done": 18, "skipped": 1, "failed": 1}
    failed = next(o for o in dataset.summary["outcomes"] if o["state"] == "failed")
    assert failed["name"] == "v07"
    assert "could not be read" in failed["reason"]
    assert not (dataset.output / "v07" / "current").exists()
    for name in ("v00", "v19"):
        expected = dataset.expected(name, seed=1)
        assert np.abs(dataset.array(name) - expected).max() <= 1e-5 * np.ptp(expected)

    dataset.add_again("v07", seed=7)
    assert Counter(go(dataset).values()) == {"skipped": 19, "done": 1}
    assert Counter(dataset.states().values()) == {"skipped": 19, "done": 1}
    assert Counter(go(dataset).values()) == {"skipped": 20}


NO_TEXT = os.fsdecode(b"caf\xe9")
"""A name from the days of Latin-1."""


def test_a_volume_whose_name_is_no_text_fails_alone_and_in_words(tmp_path, pooled):
    """It was `'utf-8' codec can't encode character` for the whole catalogue, and then for the page of all volumes."""
    dataset = make_dataset(tmp_path, volumes=2)
    dataset.volume("v01").rename(dataset.volume(NO_TEXT))
    dataset.add(os.fsdecode(b"caf\xe8"), seed=3)
    told = go(dataset)
    assert sorted(told.values()) == ["done", "failed", "failed"]
    assert told["v00"] == "done"
    failed = [outcome for outcome in dataset.summary["outcomes"] if outcome["state"] == "failed"]
    assert len({outcome["name"] for outcome in failed}) == 2
    for outcome in failed:
        assert "names what is not UTF-8 text" in outcome["reason"]
        assert "Rename the file or folder (convmv" in outcome["reason"]
    for page in ("summary.html", "summary.csv"):
        assert "caf\\udce9.zarr" in (dataset.output / page).read_text(encoding="utf-8")
    left = estimate(dataset.config, volumes_of(dataset.config)[0])
    assert sorted(left.refused) == sorted(outcome["name"] for outcome in failed)

    dataset.volume(NO_TEXT).rename(dataset.volume("café"))
    assert Counter(go(dataset).values()) == {"done": 1, "skipped": 1, "failed": 1}


def test_a_new_version_of_the_model_does_all_again_and_the_old_one_is_found_when_set_back(tmp_path, pooled):
    """`latest` moves; what the old version made stays, so setting it back costs a switch and no arithmetic."""
    dataset = make_dataset(tmp_path, volumes=3)
    go(dataset)
    before = {name: dataset.current(name) for name in ("v00", "v01", "v02")}
    assert dataset.register(seed=2) == 2
    assert Counter(go(dataset).values()) == {"done": 3}
    assert all(dataset.current(name) != path and path.is_dir() for name, path in before.items())
    expected = dataset.expected("v01", seed=2)
    assert np.abs(dataset.array("v01") - expected).max() <= 1e-5 * np.ptp(expected)
    assert "noise version 2" in dataset.summary["outcomes"][0]["model"]
    report = (dataset.current("v01").with_name("v01.ome.zarr.run") / "report.html").read_text()
    assert "noise version 2" in report

    back = dataset.having(model={"version": 1})
    assert Counter(go(back).values()) == {"done": 3}
    assert {name: dataset.current(name) for name in before} == before
    assert [s.tiles for s in sessions(RunDirectory(before["v00"]))] == [1]  # nothing was computed again


def replace_weights(file: Path, seed: int) -> None:
    """At once: written in place, a plan that is made meanwhile could read half of the file."""
    new = file.with_name("new.pt")
    torch.save(random_network(ARCHITECTURE, seed).state_dict(), new)
    new.replace(file)


def test_a_checkpoint_that_is_overwritten_in_mid_go_publishes_nothing_of_the_second(tmp_path, pooled):
    """One go is one network: readers must not meet two, and the message says what happened, and what to do."""
    dataset = make_dataset(tmp_path, volumes=4, concurrency=1)
    file = tmp_path / "weights.pt"
    torch.save(random_network(ARCHITECTURE, 1).state_dict(), file)
    dataset = DataSet(dataset.folder, {**dataset.content, "model": {"checkpoint": str(file)}})

    with pytest.raises(DatasetError) as raised:
        reprocess_plainly(dataset.config, lambda *_: replace_weights(file, seed=2))
    assert "was overwritten while this go over the dataset was at it" in str(raised.value)
    published = [name for name, state in dataset.states().items() if state == "done"]
    assert published
    for name in dataset.states():
        assert (dataset.output / name / "current").exists() == (name in published)
    for name in published:
        expected = dataset.expected(name, seed=1)
        assert np.abs(dataset.array(name) - expected).max() <= 1e-5 * np.ptp(expected)
    assert set(go(dataset).values()) == {"done"}
    models = {outcome["model"] for outcome in dataset.summary["outcomes"]}
    assert len(models) == 1


def test_a_checkpoint_that_is_written_again_as_it_was_changes_nothing(tmp_path, pooled):
    """The negative control: a copy, or a touch, is no other network."""
    dataset = make_dataset(tmp_path, volumes=2, concurrency=1)
    file = tmp_path / "weights.pt"
    torch.save(random_network(ARCHITECTURE, 1).state_dict(), file)
    dataset = DataSet(dataset.folder, {**dataset.content, "model": {"checkpoint": str(file)}})
    reprocess_plainly(dataset.config, lambda *_: replace_weights(file, seed=1))
    assert set(dataset.states().values()) == {"done"}


def test_a_first_switch_that_failed_does_not_tie_a_volume_to_files_that_were_touched_since(
    tmp_path, pooled, monkeypatch
):
    """Killed, or out of room, between the record and the link: it was refused for ever as published once."""
    dataset = make_dataset(tmp_path, volumes=1)

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.publishing.by_link.LinkedPublication._switch", refuse)
        assert go(dataset) == {"v00": "failed"}
    dataset.add_again("v00", seed=0)
    assert go(dataset) == {"v00": "done"}


def test_old_versions_go_by_the_rule_and_never_the_current_one(tmp_path, pooled):
    """Disks are finite; what readers see is not to be touched."""
    dataset = make_dataset(tmp_path, volumes=1, keep={"versions": 0, "days": 0})
    go(dataset)
    first = dataset.current("v00")
    dataset.register(seed=2)
    go(dataset)
    assert not first.exists()
    assert dataset.current("v00").is_dir()
    assert len(list((dataset.output / "v00" / "versions").iterdir())) == 1


def test_versions_whose_time_comes_later_go_when_the_volume_is_found_done(tmp_path, pooled):
    """A set that is done stays done for months: its disk must not wait for the next model. A dry run removes nothing."""
    dataset = make_dataset(tmp_path, volumes=1, keep={"versions": 0, "days": 7})
    go(dataset)
    dataset.register(seed=2)
    go(dataset)
    versions = dataset.output / "v00" / "versions"
    assert go(dataset) == {"v00": "skipped"}
    assert len(list(versions.iterdir())) == 2
    due = dataset.having(keep={"days": 0})
    assert estimate(due.config, volumes_of(due.config)[0]).skipped == 1
    assert len(list(versions.iterdir())) == 2
    assert go(due) == {"v00": "skipped"}
    assert list(versions.iterdir()) == [dataset.current("v00").parent]


@pytest.mark.parametrize("error", [OSError(39, "Directory not empty: '.nfs0001'"), RuntimeError("that nobody foresaw")])
def test_what_cannot_be_removed_after_the_switch_is_told_and_fails_nothing(
    tmp_path, pooled, monkeypatch, caplog, error
):
    """Readers see the new version by then. What is left half-removed goes with the next go, which finds the volume done."""
    dataset = make_dataset(tmp_path, volumes=1, keep={"versions": 0, "days": 0})
    go(dataset)
    first = dataset.current("v00")
    dataset.register(seed=2)

    def refuses(*_: object) -> None:
        raise error

    with monkeypatch.context() as patch, caplog.at_level("WARNING", "pipeline"):
        patch.setattr("shutil.rmtree", refuses)
        assert go(dataset) == {"v00": "done"}
    assert f"stays until the next go: {'' if isinstance(error, RuntimeError) else 'Output'}" in caplog.text
    assert read_mark(dataset.output / "v00").state == "done"
    assert dataset.current("v00") != first
    versions = dataset.output / "v00" / "versions"
    assert len(list(versions.iterdir())) == 2
    assert go(dataset) == {"v00": "skipped"}
    assert list(versions.iterdir()) == [dataset.current("v00").parent]


def test_a_volume_that_is_found_done_is_marked_as_failed_no_more(tmp_path, pooled):
    """Else a failure of a model that was taken back would be listed for ever."""
    dataset = make_dataset(tmp_path, volumes=1)
    go(dataset)
    tight = dataset.having(tiles={"halo": [0, 0, 0]})
    assert go(tight) == {"v00": "failed"}
    assert read_mark(dataset.output / "v00").state == "failed"
    assert go(dataset) == {"v00": "skipped"}
    assert read_mark(dataset.output / "v00").state == "skipped"


def test_a_version_that_somebody_deleted_is_made_again(tmp_path, pooled):
    """The plain way to ask for it; a run of it that fails half way goes on like any other."""
    dataset = make_dataset(tmp_path, volumes=1)
    go(dataset)
    shutil.rmtree(dataset.current("v00").parent)
    whole = tmp_path / "whole"
    shutil.copytree(dataset.volume("v00"), whole)
    dataset.corrupt("v00")
    assert go(dataset) == {"v00": "failed"}
    shutil.rmtree(dataset.volume("v00"))
    whole.rename(dataset.volume("v00"))
    assert go(dataset) == {"v00": "done"}
    assert go(dataset) == {"v00": "skipped"}
    expected = dataset.expected("v00", seed=1)
    assert np.abs(dataset.array("v00") - expected).max() <= 1e-5 * np.ptp(expected)


def test_a_changed_key_does_just_what_it_changes(tmp_path, pooled):
    """A key that no byte depends on makes no version; one that bytes depend on does."""
    dataset = make_dataset(tmp_path, volumes=2)
    go(dataset)
    assert Counter(go(dataset.having(concurrency=1, cluster={"workers": 1})).values()) == {"skipped": 2}
    assert Counter(go(dataset.having(output={"activation": "sigmoid"})).values()) == {"done": 2}


def test_another_volume_under_the_same_name_is_refused_and_one_that_moved_is_not(tmp_path, pooled):
    """A fingerprint knows shapes, not voxels: without this a volume of the same shape would be skipped as done."""
    dataset = make_dataset(tmp_path, volumes=1)
    go(dataset)
    elsewhere = tmp_path / "elsewhere"
    shutil.move(tmp_path / "volumes", elsewhere)
    moved = dataset.having(volumes=str(elsewhere))
    assert go(moved) == {"v00": "failed"}
    assert "run once with --moved" in moved.summary["outcomes"][0]["reason"]
    assert go(moved) == {"v00": "failed"}  # asking twice is no permission
    assert go(moved, moved=True) == {"v00": "skipped"}
    assert go(moved) == {"v00": "skipped"}


@pytest.mark.parametrize(
    ("keys", "error", "said"),
    [
        ({"volumes": "/nowhere/*.zarr"}, (ConfigError, StorageError), "nowhere"),
        ({"volumes": [{"url": "/data/x.zarr", "name": "summary.html"}]}, ConfigError, "the dataset's summary"),
        ({"model": {"name": "nose"}}, ModelError, "Did you mean 'noise'?"),
    ],
)
def test_what_cannot_be_a_data_set_is_refused_before_any_work(tmp_path, keys, error, said):
    """A wrong path or model is told at once, not twenty times."""
    dataset = make_dataset(tmp_path, volumes=1).having(**keys)
    with pytest.raises(error, match=said.replace("?", r"\?")):
        reprocess_plainly(dataset.config, lambda *_: None)


def test_the_summary_is_a_page_a_table_and_data(tmp_path, pooled):
    """What a person opens in the morning, and what a program reads."""
    dataset = make_dataset(tmp_path, volumes=2)
    dataset.corrupt("v01")
    go(dataset)
    page = (dataset.output / "summary.html").read_text()
    assert "2 volumes: 1 failed, 1 done" in page
    links = [part.split('"')[0] for part in page.split('href="')[1:]] + [
        part.split('"')[0] for part in page.split('src="')[1:]
    ]
    assert any(link.endswith("report.html") for link in links)
    assert any(link.endswith("thumbnail.png") for link in links)
    assert all((dataset.output / link).is_file() for link in links)
    with (dataset.output / "summary.csv").open() as file:
        assert [(row["name"], row["state"]) for row in csv.DictReader(file)] == [("v01", "failed"), ("v00", "done")]
    assert "http-equiv" not in page  # it is over: nothing reloads


def test_a_disk_that_is_full_in_mid_data_set_publishes_no_half_and_after_room_is_made_the_rest_is_done(
    tmp_path, pooled
):
    """Each volume says what happened; nothing half-written is shown; nothing done is lost."""
    with mounted(tmp_path / "disk", "-o", "size=3m"):
        dataset = make_dataset(tmp_path / "data", volumes=4, concurrency=1)
        dataset = dataset.having(output={"url": str(tmp_path / "disk" / "output")})
        go(dataset.having(volumes=str(dataset.volume("v00"))))
        filler = fill_up(tmp_path / "disk", but=150_000)  # one volume more, and not another
        dataset = dataset.having(volumes=str(tmp_path / "data" / "volumes"))
        told = go(dataset)
        assert told["v00"] == "skipped"
        assert "failed" in told.values()
        for name, state in told.items():
            current = dataset.output / name / "current"
            assert current.exists() == (state != "failed")
            assert not current.is_symlink() or current.exists()
        for name in (name for name, state in told.items() if state != "failed"):
            assert dataset.array(name).shape == (16, 24, 24)
        filler.unlink()
        after = go(dataset)
        assert after == {name: "done" if state == "failed" else "skipped" for name, state in told.items()}


def test_a_damaged_volume_that_plans_must_read_is_one_failure(tmp_path, pooled):
    """Statistics read voxels: where the largest volume's are damaged, nobody else may pay for it, nor may the dry run."""
    dataset = make_dataset(tmp_path, volumes=3, normalize={"mode": "zscore"})
    dataset.add("v03", shape=(32, 24, 24))
    for chunk in dataset.volume("v03").rglob("*"):
        if chunk.is_file() and chunk.name != "zarr.json":
            chunk.write_bytes(b"\x00damaged")
    found = estimate(dataset.config, volumes_of(dataset.config)[0])
    assert (len(found.plans), list(found.refused)) == (3, ["v03"])
    assert "could not be read: the box" in found.refused["v03"]
    assert Counter(go(dataset).values()) == {"done": 3, "failed": 1}
    (failed,) = [o for o in dataset.summary["outcomes"] if o["state"] == "failed"]
    assert failed["name"] == "v03"
    assert "could not be read: the box" in failed["reason"]


def made_by_0_1(dataset: DataSet, name: str) -> Path:
    """Have what readers of a volume see be what 0.1 would have made: a plan that has its numbers, and a fingerprint that covers them."""
    image = dataset.current(name)
    directory = RunDirectory(image)
    plan, measured = directory.load_plan(), directory.load_statistics()
    made = replace(plan, normalization=measured.normalization, survey=None, identity_version=1)
    home = image.parent.rename(image.parent.with_name(made.fingerprint))
    content = json.loads(made.to_json())
    del content["survey"], content["identity_version"]
    run = home / f"{name}.ome.zarr.run"
    (run / "plan.json").write_text(json.dumps(content))
    (run / "statistics.json").unlink()
    for path in (home / "published.json", run / "ledger.jsonl", run / "verification.json"):
        path.write_text(path.read_text().replace(plan.fingerprint, made.fingerprint))
    link = dataset.output / name / "current"
    link.unlink()
    link.symlink_to(f"versions/{made.fingerprint}/{name}.ome.zarr")
    return home


def test_what_was_measured_of_a_volume_is_measured_once_whatever_model_comes(tmp_path, pooled, monkeypatch):
    """A thousand volumes of a terabyte: a new model reads none of them for numbers that a version has, be it of 0.1."""
    dataset = make_dataset(tmp_path, volumes=2, normalize={"mode": "zscore"})
    assert go(dataset) == {"v00": "done", "v01": "done"}
    numbers = {name: RunDirectory(dataset.current(name)).load_statistics().normalization for name in ("v00", "v01")}
    home = made_by_0_1(dataset, "v00")
    monkeypatch.setattr(survey, "dispatch", lambda *_, **__: pytest.fail("it is measured"))
    assert go(dataset) == {"v00": "skipped", "v01": "skipped"}
    assert dataset.current("v00").parent == home
    dataset.register(seed=2)
    assert go(dataset) == {"v00": "done", "v01": "done"}
    for name, before in numbers.items():
        directory = RunDirectory(dataset.current(name))
        assert directory.load_plan().identity_version == 2
        assert directory.load_statistics().normalization == before


def test_a_dry_run_is_measured_by_another_volume_where_the_largest_is_damaged(tmp_path, caplog, monkeypatch):
    """A plan of whole numbers reads no voxel, the measurement does: what it meets in one volume must not hide all the others."""
    # Prefect's set-up of loggers, if it was, took it
    monkeypatch.setattr(logging.getLogger("pipeline"), "propagate", True)
    dataset = make_dataset(tmp_path, volumes=2)
    dataset.add("v02", shape=(32, 24, 24))
    for chunk in dataset.volume("v02").rglob("*"):
        if chunk.is_file() and chunk.name != "zarr.json":
            chunk.write_bytes(b"\x00damaged")
    with caplog.at_level("WARNING", "pipeline"):
        found = estimate(dataset.config, volumes_of(dataset.config)[0])
    assert len(found.plans) == 3
    assert found.measured is not None
    assert found.seconds > 0
    assert "v02.zarr' cannot say how long it takes" in caplog.text


def test_the_dry_run_counts_what_is_stored_of_each_volume(tmp_path):
    """Two weeks of computing over volumes half copied are planned as gladly as over whole ones, unless somebody counts."""
    dataset = make_dataset(tmp_path, volumes=3)
    whole = estimate(dataset.config, volumes_of(dataset.config)[0])
    assert dict(whole.rows())["stored"] == "24 of 24 chunks, shards or files"
    assert not [name for name, _ in whole.rows() if name.startswith("stored: ")]
    (dataset.volume("v01") / "c/0/0/0").unlink()
    shutil.rmtree(dataset.volume("v02") / "c")
    found = estimate(dataset.config, volumes_of(dataset.config)[0])
    rows = dict(found.rows())
    assert rows["stored"] == "15 of 16 chunks, shards or files"
    assert rows["stored: v01"] == "7 of 8 chunks; what is absent is read as fill"
    assert "has a header and no voxels" in rows["cannot: v02"]


@pytest.mark.parametrize("kind", ["loop", "library"])
def test_a_volume_that_fails_in_a_way_that_nobody_foresaw_is_one_failure(tmp_path, pooled, kind, monkeypatch):
    """Whatever the system or a library raises about one volume: it has a name, and the others are done."""
    dataset = make_dataset(tmp_path, volumes=2)
    bad = tmp_path / "loop" / "bad.zarr"
    if kind == "loop":
        bad.parent.symlink_to(bad.parent)
    else:
        save_array(bad := tmp_path / "bad.zarr", np.ones((32, 24, 24), "uint8"), (8, 12, 12))
        check = resolve._check_fit
        monkeypatch.setattr(
            resolve,
            "_check_fit",
            lambda config, *rest: check(config, *rest) if "bad" not in config.input.url else 1 / 0,
        )
    dataset = dataset.having(volumes=[str(bad), str(dataset.volume("v00")), str(dataset.volume("v01"))])
    found = estimate(dataset.config, volumes_of(dataset.config)[0])
    assert (len(found.plans), list(found.refused)) == (2, ["bad"])
    assert go(dataset) == {"bad": "failed", "v00": "done", "v01": "done"}
    (failed,) = [o for o in dataset.summary["outcomes"] if o["state"] == "failed"]
    assert failed["reason"] == found.refused["bad"] != ""


def made_on_a_gpu(dataset: DataSet, name: str) -> Path:
    """Have what readers of a volume see be of a run on a card; gives the version's folder."""
    image = dataset.current(name)
    plan = RunDirectory(image).load_plan()
    made = replace(plan, compute=replace(plan.compute, device="cuda"))
    home = image.parent.rename(image.parent.with_name(made.fingerprint))
    (home / f"{name}.ome.zarr.run" / "plan.json").write_text(made.to_json())
    record = home / "published.json"
    record.write_text(record.read_text().replace(plan.fingerprint, made.fingerprint))
    link = dataset.output / name / "current"
    link.unlink()
    link.symlink_to(f"versions/{made.fingerprint}/{name}.ome.zarr")
    return home


@pytest.mark.skipif(torch.cuda.is_available(), reason="of a machine without a card")
def test_outputs_made_on_a_large_machine_are_done_on_a_small_one(tmp_path, pooled):
    """A tile that fits no worker here needs none: it was computed. To compute it anew would cost tiles of another size."""
    dataset = make_dataset(tmp_path, volumes=1)
    go(dataset)
    small = dataset.having(cluster={"memory_gb": 0.01})
    assert go(small) == {"v00": "skipped"}
    small.register(seed=2)
    assert go(small) == {"v00": "failed"}  # it is as small as that
    assert go(small.having(model={"version": 1})) == {"v00": "skipped"}


def test_outputs_made_on_a_gpu_are_done_on_a_machine_without_one(tmp_path, pooled):
    """The night's run had cards, the notebook has none: what is there is still there, and a new model can be run here."""
    dataset = make_dataset(tmp_path, volumes=1, compute={"device": "auto"})
    go(dataset)
    made_on_a_gpu(dataset, "v00")
    assert go(dataset) == {"v00": "skipped"}
    assert go(dataset.having(compute={"device": "cpu"})) == {"v00": "done"}  # that was asked for, and it is not
    dataset.register(seed=2)
    assert go(dataset.having(compute={"device": "auto"})) == {"v00": "done"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="of a machine without a card")
def test_what_was_begun_on_a_gpu_is_made_anew_on_a_machine_without_one(tmp_path, pooled):
    """A run that was killed on a card cannot go on here with its bytes; it must not keep the volume from being made at all."""
    dataset = make_dataset(tmp_path, volumes=1, compute={"device": "auto"})
    go(dataset)
    begun = made_on_a_gpu(dataset, "v00")
    (begun / "published.json").unlink()
    (dataset.output / "v00" / "current").unlink()
    assert go(dataset) == {"v00": "done"}
    assert dataset.current("v00").parent != begun
    assert begun.is_dir()  # the card may come back
    assert go(dataset) == {"v00": "skipped"}


@pytest.mark.parametrize("pattern", ["**", "**/*.zarr", "*"])
def test_outputs_below_the_inputs_are_no_volumes(tmp_path, pooled, pattern):
    """A pattern that reaches them would segment the segmentations, one go after the other."""
    dataset = make_dataset(tmp_path, volumes=2)
    volumes = tmp_path / "volumes"
    dataset = dataset.having(volumes=f"{volumes}/{pattern}", output={"url": str(volumes / "segmented")})
    assert go(dataset) == {"v00": "done", "v01": "done"}
    assert go(dataset) == {"v00": "skipped", "v01": "skipped"}
    only = dataset.having(volumes=f"{volumes}/segmented/**/*.ome.zarr")
    with pytest.raises(StorageError, match="all of them are outputs of this dataset"):
        go(only)


@pytest.mark.parametrize(("of_volumes", "of_output"), [("alias", "volumes"), ("volumes", "alias")])
def test_outputs_that_a_link_leads_to_are_no_volumes(tmp_path, pooled, of_volumes, of_output):
    """Sites mount one folder under several names: the same outputs, written otherwise, are the same outputs."""
    dataset = make_dataset(tmp_path, volumes=1)
    (tmp_path / "alias").symlink_to(tmp_path / "volumes")
    dataset = dataset.having(
        volumes=f"{tmp_path / of_volumes}/**", output={"url": str(tmp_path / of_output / "segmented")}
    )
    assert go(dataset) == {"v00": "done"}
    assert go(dataset) == {"v00": "skipped"}
    assert any("an output of this dataset" in line for line in dataset.summary["left_out"])
