"""`halotile reprocess` as a user runs it: exit status, what it prints, kills, cancels, and readers who look all the while."""

import hashlib
import random
import sqlite3
import threading
import time
from collections import defaultdict
from pathlib import Path

import pytest
import zarr

from tests.dataset.dataset_cases import DataSet, make_dataset
from tests.e2e.commands import alive, wait_until


class Reader(threading.Thread):
    """Looks at what every volume's readers are sent to, ten times a second, and remembers what it saw."""

    def __init__(self, dataset: DataSet, names: list[str]) -> None:
        super().__init__(daemon=True)
        self._dataset, self._names, self._over = dataset, names, threading.Event()
        self.looks = 0
        self.seen: dict[Path, set[str]] = defaultdict(set)
        self.wrong: list[str] = []

    def run(self) -> None:
        while not self._over.wait(0.1):
            for name in self._names:
                self._look(self._dataset.output / name / "current")

    def _look(self, current: Path) -> None:
        if not current.is_symlink():
            return
        self.looks += 1
        image = current.resolve()
        try:
            group = zarr.open_group(str(image), mode="r")
            said = group.attrs["halotile"]
            digest = hashlib.sha256(group["0"][...].tobytes()).hexdigest()
        except Exception as error:  # noqa: BLE001 - whatever a reader meets is wrong
            self.wrong.append(f"{image}: {type(error).__name__}: {error}")
            return
        if (said["fingerprint"], said["state"]) != (image.parent.name, "complete"):
            self.wrong.append(f"{image}: {said}")
        self.seen[image].add(digest)

    def end(self) -> None:
        self._over.set()
        self.join()


def published(dataset: DataSet) -> dict[str, str]:
    """The version that readers see, by volume."""
    links = sorted(dataset.output.glob("*/current"))
    return {link.parent.name: link.resolve().parent.name for link in links}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("volumes", "kills"), [(6, 1), pytest.param(12, 3, marks=pytest.mark.fault)], ids=["a share", "all"]
)
def test_readers_see_one_whole_version_while_a_new_model_is_run_and_its_driver_killed(
    tmp_path, started, volumes, kills
):
    """A switch is atomic, and comes after verification only; whatever ends the driver, whenever."""
    dataset = make_dataset(tmp_path, volumes=volumes)
    assert started("reprocess", dataset.yaml, "--no-prefect").wait() == 0
    first = published(dataset)
    assert len(first) == volumes
    reader = Reader(dataset, list(first))
    reader.start()
    dataset.register(seed=2)
    dataset = dataset.having(concurrency=1, cluster={"workers": 1})  # slowly, so that a kill hits it on its way
    choose = random.Random(20261122)
    for kill in range(kills):
        command = started("reprocess", dataset.yaml, "--no-prefect")
        switched = sum(first[name] != now for name, now in published(dataset).items())
        wait_until(
            lambda switched=switched, command=command: (
                sum(first[name] != now for name, now in published(dataset).items()) > switched
                or not command.is_running()
            )
        )
        time.sleep(choose.uniform(0, 0.2))
        family = command.family() if command.is_running() else []
        command.kill()
        command.wait()
        wait_until(lambda family=family: not alive(family))
        if kill == 0:
            assert any(first[name] == now for name, now in published(dataset).items())  # it was killed on its way
    command = started("reprocess", dataset.yaml, "--no-prefect")
    assert command.wait() == 0, command.error
    time.sleep(0.5)
    reader.end()
    assert reader.wrong == []
    assert {image: len(digests) for image, digests in reader.seen.items() if len(digests) > 1} == {}
    assert len({image.parent.name for image in reader.seen}) == 2  # the old version and the new one
    assert all(first[name] != now for name, now in published(dataset).items())
    assert reader.looks > 10 * volumes


def test_a_data_set_through_prefect_has_a_sub_flow_a_volume_a_table_and_an_exit_status(tmp_path, started, prefect_home):
    """One corrupt volume of three: status 1, its name and reason; the page of the server shows which; the rerun does one."""
    dataset = make_dataset(tmp_path, volumes=3)
    dataset.corrupt("v01")
    command = started("reprocess", dataset.yaml)
    assert command.wait() == 1
    assert "3 volumes: 1 failed, 2 done" in command.error
    assert "failed   v01  1 tile(s) failed: tile 0" in command.error
    assert "Traceback" not in command.error
    with sqlite3.connect(prefect_home / "prefect.db") as database:
        runs = database.execute(
            "select flow_run.name, flow_run.state_type, flow_run.parent_task_run_id from flow_run join flow "
            "on flow.id = flow_run.flow_id where flow.name = 'halotile-volume'"
        ).fetchall()
        keys = {key for (key,) in database.execute("select key from artifact")}
    assert {(name, state) for name, state, _ in runs} == {("v00", "COMPLETED"), ("v01", "FAILED"), ("v02", "COMPLETED")}
    assert all(parent for _, _, parent in runs)
    assert {"halotile-summary", "halotile-progress"} <= keys

    dataset.add_again("v01", seed=1)
    again = started("reprocess", dataset.yaml)
    assert again.wait() == 0, again.error
    assert "3 volumes: 1 done, 2 skipped" in again.out


def test_a_second_one_is_refused_and_a_cancelled_one_goes_on_where_it_was(tmp_path, started):
    """Two drivers at once; then `halotile cancel` of the set; then the same command."""
    dataset = make_dataset(tmp_path, volumes=12, concurrency=1, cluster={"workers": 1})
    first = started("reprocess", dataset.yaml, "--no-prefect")
    wait_until(lambda: len(published(dataset)) >= 1 or not first.is_running())
    second = started("reprocess", dataset.yaml, "--no-prefect")
    cancel = None
    if second.wait() == 2:  # it came while the first still was at it
        assert "is being written by another run" in second.error
    cancel = started("cancel", dataset.yaml)
    if cancel.wait() == 0:
        assert first.wait() == 130
        assert len(published(dataset)) < 12
    else:
        assert first.wait() == 0
    last = started("reprocess", dataset.yaml, "--no-prefect")
    assert last.wait() == 0, last.error
    assert len(published(dataset)) == 12


def test_a_dry_run_tells_volumes_voxels_time_bytes_and_money_and_writes_nothing(tmp_path, started):
    """What it will cost before it costs."""
    dataset = make_dataset(tmp_path, volumes=3, price={"worker_hour": 3600, "terabyte_month": 20, "currency": "CHF"})
    (dataset.volume("v02") / "zarr.json").write_text("{")
    command = started("reprocess", dataset.yaml, "--dry-run")
    assert command.wait() == 0, command.error
    words = " ".join(command.out.split())
    assert "volumes 3: 2 to do, 0 done, 1 that cannot be" in words
    assert f"voxels to do {2 * 16 * 24 * 24:,}" in words
    assert "worker hours" in words
    assert "CHF" in words
    assert "cannot: v02" in words
    assert not list(tmp_path.glob("output*"))
