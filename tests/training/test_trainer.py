import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import zarr
from safetensors.numpy import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.errors import ConfigError, StorageError, TrainingError
from pipeline.networks.checkpoint import load_checkpoint
from pipeline.networks.probe import predicted
from pipeline.training.state import alone
from pipeline.training.trainer import Advance, train
from tests.training.training_cases import cells, recipe

ROOT = Path(__file__).parents[2]

RUN = """
    import signal, socket, sys
    from pipeline.garbage import collect_seldom

    collect_seldom()  # as `halotile` has it; this is run again in each process of several devices
    from pathlib import Path
    from pipeline.training.recipe import TrainConfig
    from pipeline.training.trainer import train

    class Told:
        def __call__(self, advance):
            here, there = socket.socketpair()
            with here, there:
                there.setblocking(False)
                signal.set_wakeup_fd(there.fileno())  # Python writes to it when a signal comes
                print(advance.phase, advance.done, flush=True)
                if advance.phase == "training" and sys.argv[2:] == ["held"]:
                    here.recv(1)
                signal.set_wakeup_fd(-1)

    if __name__ == "__main__":
        train(TrainConfig.model_validate_json(Path(sys.argv[1]).read_text()), Told())
"""


class StopError(Exception):
    """Ends a run from within, as a crash does: nothing is saved on the way out."""


def stopping_at(step):
    """Tells nothing, and ends the run after a step."""

    def told(advance: Advance) -> None:
        if advance.phase == "training" and advance.done >= step:
            raise StopError

    return told


def same(one, other):
    """Whether two checkpoints hold the same weights, bit for bit."""
    first, second = load_file(one), load_file(other)
    return first.keys() == second.keys() and all(np.array_equal(first[n], second[n]) for n in first)


@pytest.fixture
def started():
    """Start trainings as processes of their own, which end with the test, whatever becomes of it.

    One that is `held` goes no further than its first word of a step until a signal comes.
    """
    processes = []

    def start(config, folder, *, held=False):
        (folder / "run.py").write_text(textwrap.dedent(RUN))
        (folder / "config.json").write_text(config.model_dump_json())
        command = [sys.executable, str(folder / "run.py"), str(folder / "config.json"), *(["held"] if held else [])]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        processes.append(
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
        return processes[-1]

    yield start
    for process in processes:
        with process:  # its pipes, and its exit status
            if process.poll() is None:
                for child in psutil.Process(process.pid).children(recursive=True):
                    child.kill()
                process.kill()


def test_training_lowers_the_loss_and_its_checkpoint_says_all_that_a_run_needs(tmp_path):
    """`halotile run` is given nothing but this file."""
    losses = []
    path = train(recipe(tmp_path), lambda a: losses.append(a.loss) if a.phase == "training" else None)
    assert losses[-1] < 0.8 * losses[0]
    checkpoint = load_checkpoint(path)
    assert checkpoint.architecture.depth == 1
    assert checkpoint.padding_known
    assert checkpoint.axes == "czyx"
    assert checkpoint.normalization.mode == "minmax"
    assert checkpoint.voxel_size_nm == (10, 10, 10)
    told = checkpoint.provenance
    assert told["validation"]["auc"] > 0.9
    assert told["validation"] == json.loads((path.parent / "metrics.json").read_text())
    assert told["recipe"]["optimiser"]["learning_rate"] == 0.02
    assert len(told["data"][0]["labels_sha256"]) == 2
    assert str(tmp_path) not in json.dumps(told)


def test_the_checkpoint_is_that_of_the_best_validation(tmp_path, monkeypatch):
    """Later is not better where a network forgets."""
    scores = iter([0.7, 0.9, 0.8])
    monkeypatch.setattr("pipeline.training.loop.validated_on", lambda *_: {"dice": next(scores)})
    path = train(recipe(tmp_path))
    assert load_checkpoint(path).provenance["validation"]["step"] == 20


def test_the_same_seed_gives_the_same_weights(tmp_path):
    """The command beside a checkpoint would otherwise make another."""
    one = train(recipe(tmp_path, output=str(tmp_path / "a"), steps=5))
    again = train(recipe(tmp_path, output=str(tmp_path / "b"), steps=5))
    other = train(recipe(tmp_path, output=str(tmp_path / "c"), steps=5, seed=1))
    assert same(one, again)
    assert not same(one, other)


@pytest.mark.parametrize(
    "changed",
    [
        {"optimiser": {"name": "sgd", "learning_rate": 0.01, "average": 0.9, "schedule": "cosine", "rise": 0.2}},
        {"network": {"ndim": 2, "depth": 2, "width": 4, "dropout": 0.5}, "patch": [1, 16, 16], "batch": 3},
        {"precision": "bfloat16", "optimiser": {"name": "adamw", "momentum": 0.9, "clip": 1.0}},
    ],
    ids=["momentum and averages", "dropout", "bfloat16"],
)
def test_a_resumed_run_ends_with_the_same_weights_bit_for_bit(tmp_path, changed):
    """Momenta, averages, chance and the order of samples all go on where they were."""
    straight = train(recipe(tmp_path, output=str(tmp_path / "straight"), **changed))
    config = recipe(tmp_path, output=str(tmp_path / "stopped"), **changed)
    for step in (10, 20):  # checkpoints are every ten steps; the first comes after the tenth was told
        with pytest.raises(StopError):
            train(config, stopping_at(step + 1 if step == 10 else 30))
    assert not (tmp_path / "stopped" / "checkpoint.safetensors").exists()
    assert torch.load(tmp_path / "stopped" / "state.pt", weights_only=True)["step"] == 20
    assert same(train(config), straight)


def test_a_run_that_forgot_its_momenta_would_end_otherwise(tmp_path):
    """Negative control: what is kept matters."""
    straight = train(recipe(tmp_path, output=str(tmp_path / "straight")))
    config = recipe(tmp_path, output=str(tmp_path / "stopped"))
    with pytest.raises(StopError):
        train(config, stopping_at(20))
    path = tmp_path / "stopped" / "state.pt"
    state = torch.load(path, weights_only=True)
    state["optimiser"]["state"] = {}
    torch.save(state, path)
    assert not same(train(config), straight)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """What two hundred steps in one sitting give."""
    return train(recipe(tmp_path_factory.mktemp("straight"), steps=200))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_that_is_killed_costs_no_more_than_the_steps_since_its_checkpoint(
    tmp_path, number, started, straight
):
    """SIGKILL loses at most those; SIGTERM, which batch systems send, loses none."""
    config = recipe(tmp_path, output=str(tmp_path / "killed"), steps=200)
    process = started(config, tmp_path)
    for line in process.stdout:
        if line.split()[0] == "training" and int(line.split()[1]) >= 30:
            break
    process.send_signal(number)
    done = 30 + sum(10 for line in process.stdout if line.startswith("training"))
    process.communicate(timeout=300)
    assert process.returncode != 0
    assert done < 200
    step = torch.load(tmp_path / "killed" / "state.pt", weights_only=True)["step"]
    assert step >= (done - 10 if number == signal.SIGKILL else done)
    assert same(train(config), straight)


def test_a_finished_run_is_left_alone(tmp_path):
    """Running the command again costs nothing, and changes nothing."""
    config = recipe(tmp_path, steps=3)
    path = train(config)
    written = path.stat().st_mtime_ns
    assert train(config, lambda _: pytest.fail("it trained")) == path
    assert path.stat().st_mtime_ns == written


def test_another_recipe_in_the_same_folder_is_refused_by_its_differences(tmp_path):
    """A run that went on under another learning rate would be of neither recipe."""
    train(recipe(tmp_path, steps=3))
    with pytest.raises(ConfigError, match="steps: 3 then, 4 now"):
        train(recipe(tmp_path, steps=4))
    train(recipe(tmp_path, steps=3, every={"picture": 7}))  # changes nothing of what is learnt


def test_two_runs_in_one_folder_are_refused(tmp_path):
    """They would take turns at the state."""
    with alone(tmp_path / "out"), pytest.raises(StorageError, match="Another process"):
        train(recipe(tmp_path))


def test_a_run_that_goes_on_with_other_threads_is_told(tmp_path, monkeypatch, caplog):
    """`auto` found two threads then and finds one now: low bits will differ from those of one sitting."""
    config = recipe(tmp_path, threads="auto")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    with pytest.raises(StopError):
        train(config, stopping_at(20))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    train(config)
    assert "'threads': 2" in caplog.text
    assert "'threads': 1" in caplog.text


def test_labels_that_were_mended_are_prepared_anew(tmp_path):
    """What was refused for its labels must not be refused for ever."""
    config = recipe(tmp_path, steps=3)
    labels = zarr.open_array(str(tmp_path / "labels.zarr"), mode="r+")
    right = labels[:]
    labels[:] = 1
    with pytest.raises(ConfigError, match="one class"):
        train(config)
    labels[:] = right
    assert train(config).is_file()


def test_one_image_under_two_volumes_shares_no_voxel_between_training_and_validation(tmp_path):
    """The check of one volume's own boxes does not see it."""
    volume = recipe(tmp_path).data.volumes[0].model_dump()
    whole = {**volume, "train": [], "validation": []}
    with pytest.raises(ConfigError, match="share no voxel"):
        train(recipe(tmp_path, data={"volumes": [whole, volume]}))


def test_every_validation_box_needs_both_classes(tmp_path):
    """One that has not would end the evaluation after the training."""
    volume = recipe(tmp_path).data.volumes[0].model_dump()
    volume["validation"] = [*volume["validation"][:1], {"start": [17, 2, 2], "stop": [18, 5, 5]}]
    with pytest.raises(ConfigError, match="validation box z 17:18"):
        train(recipe(tmp_path, data={"volumes": [volume]}))


def test_displacements_that_would_fold_space_are_refused(tmp_path):
    """Three points over eight slices stand 3.5 voxels apart."""
    with pytest.raises(ConfigError, match=r"at most 0\.88, or to auto"):
        train(recipe(tmp_path, augment={"elastic_sigma": 2}))


def test_a_damaged_state_is_refused(tmp_path):
    """To train from the start without a word would cost what was done."""
    config = recipe(tmp_path)
    with pytest.raises(StopError):
        train(config, stopping_at(20))
    (tmp_path / "out" / "state.pt").write_bytes(b"torn")
    with pytest.raises(StorageError, match=r"state\.pt"):
        train(config)


def test_a_loss_that_is_no_number_ends_the_run_by_name(tmp_path):
    """It never comes back, and the last good state must not be overwritten with it."""
    every = {"checkpoint": 3, "validation": 7, "picture": 5}
    config = recipe(
        tmp_path, every=every, optimiser={"name": "sgd", "learning_rate": 1e4, "momentum": 0.9, "rise": 0.99}
    )
    with pytest.raises(TrainingError, match="learning_rate"):
        train(config)
    assert not (tmp_path / "out" / "checkpoint.safetensors").exists()
    if (state := tmp_path / "out" / "state.pt").exists():
        assert all(torch.isfinite(t).all() for t in torch.load(state, weights_only=True)["net"].values())


@pytest.mark.parametrize(
    "changed",
    [
        {"network": {"ndim": 2, "depth": 2, "width": 4, "padding": "valid"}, "patch": [1, 20, 20]},
        {"network": {"ndim": 3, "depth": 1, "width": 4, "padding": "valid", "norm": "none", "bias": False}},
        {"normalize": {"mode": "zscore"}, "network": {"ndim": 2, "depth": 1, "width": 4}, "patch": [1, 16, 16]},
    ],
    ids=["2D unpadded", "3D unpadded without norm", "2D zscore"],
)
def test_every_kind_of_network_trains_and_its_checkpoint_predicts(tmp_path, changed):
    """The checkpoint goes through the code that a run uses."""
    checkpoint = load_checkpoint(train(recipe(tmp_path, steps=4, **changed)))
    image = np.random.default_rng(0).integers(0, 255, (1, 4, 24, 24), dtype=np.uint8)
    found = predicted(checkpoint, image, checkpoint.normalization, "sigmoid", "cpu", "float32")
    assert found.shape == image.shape
    assert 0 <= found.min() < found.max() <= 1


def test_several_classes_train_by_softmax(tmp_path):
    """Three classes that the brightness tells; accuracy and mean Dice are of the boxes held back."""
    classes = (cells() % 3).astype(np.uint8)
    image = 40 + 80 * classes + np.random.default_rng(0).integers(0, 30, classes.shape).astype(np.uint8)
    for name, array in ("bright", image), ("classes", classes):
        zarr.create_array(str(tmp_path / f"{name}.zarr"), data=array, chunks=(8, 16, 16))
    volume = recipe(tmp_path).data.volumes[0].model_dump()
    volume |= {"image": str(tmp_path / "bright.zarr"), "labels": str(tmp_path / "classes.zarr")}
    changed = {
        "data": {"volumes": [volume], "target": "classes"},
        "network": {"ndim": 3, "depth": 1, "width": 4, "classes": 3},
        "loss": {"border_weight": 0},
        "augment": {"elastic_sigma": 0, "contrast": 0, "brightness": 0, "noise": 0},
    }
    path = train(recipe(tmp_path, steps=60, **changed))
    metrics = load_checkpoint(path).provenance["validation"]
    assert metrics["accuracy"] > 0.8
    assert metrics["loss"] < metrics["constant_loss"] <= 1.0987  # of three classes that count alike: log 3
    assert load_checkpoint(path).learned
    assert load_checkpoint(path).architecture.out_channels == 3


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_devices_share_each_batch(tmp_path, started):
    """Two processes of one sample each learn what one process of two samples learns, without a batch norm between them."""
    network = {"ndim": 3, "depth": 1, "width": 4, "norm": "none"}
    loss = {"border_weight": 0, "balance": False}  # or the mean by weight differs from process to process
    changed = {"network": network, "loss": loss, "steps": 5, "optimiser": {"name": "sgd", "learning_rate": 0.01}}
    alone_ = train(recipe(tmp_path, output=str(tmp_path / "alone"), batch=2, **changed))
    config = recipe(tmp_path, output=str(tmp_path / "shared"), devices=2, **changed)
    process = started(config, tmp_path)
    said, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors[-3000:]
    assert said.splitlines()[-1] == "training 5"
    one, two = load_file(alone_), load_file(tmp_path / "shared" / "checkpoint.safetensors")
    for name, tensor in one.items():
        assert np.abs(tensor - two[name]).max() < 1e-5


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("to_all", [False, True], ids=["the first process", "all of them"])
def test_two_devices_stop_together_and_go_on(tmp_path, to_all, started):
    """A batch system tells the first process, a terminal all; one that stopped a step early would leave the other waiting."""
    config = recipe(tmp_path, devices=2, steps=30)
    process = started(config, tmp_path, held=True)
    ranks = psutil.Process(process.pid)
    for line in process.stdout:
        if line.split()[0] == "training":
            break
    children = ranks.children(recursive=True)
    for one in [*children, process] if to_all else [process]:
        one.send_signal(signal.SIGINT if to_all else signal.SIGTERM)
    errors = process.communicate(timeout=300)[1]
    assert process.returncode != 0
    assert "KeyboardInterrupt" in errors.splitlines()[-1]
    assert not psutil.wait_procs(children, timeout=100)[1]
    assert 10 <= torch.load(tmp_path / "out" / "state.pt", weights_only=True)["step"] < 30
    process = started(config, tmp_path)
    process.communicate(timeout=600)
    assert process.returncode == 0
    assert (tmp_path / "out" / "checkpoint.safetensors").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_error_on_two_devices_keeps_its_type(tmp_path, started):
    """Otherwise the command line would end with a traceback of three processes."""
    config = recipe(tmp_path, devices=2, optimiser={"name": "sgd", "learning_rate": 1e30, "momentum": 0.9})
    process = started(config, tmp_path)
    errors = process.communicate(timeout=600)[1]
    assert process.returncode != 0
    assert errors.splitlines()[-1].startswith("pipeline.errors.TrainingError: ")


def test_tensorboard_shows_losses_rates_metrics_and_pictures(tmp_path):
    """Also after a kill: what was logged beyond the state is not shown twice."""
    config = recipe(tmp_path)
    with pytest.raises(StopError):
        train(config, stopping_at(20))
    train(config)
    events = EventAccumulator(str(tmp_path / "out" / "logs"))
    events.Reload()
    assert [e.step for e in events.Scalars("training/loss")] == [10, 20, 30]
    assert [e.step for e in events.Scalars("validation/dice")] == [10, 20, 30]
    assert events.Scalars("training/learning_rate")[0].value == pytest.approx(0.02)
    picture = events.Images("training/input, target, prediction, weight")[0]
    assert (picture.width, picture.height) == (64, 16)


def test_labels_that_do_not_fit_the_image_are_refused_before_training(tmp_path):
    """Found at step 1000, it would have cost the steps."""
    config = recipe(tmp_path)
    content = config.model_dump()
    for change, match in (
        ({"labels": content["data"]["volumes"][0]["image"], "image": str(tmp_path / "missing")}, "missing"),
        ({"train": [{"start": [0, 0, 0], "stop": [25, 40, 40]}], "validation": []}, "inside it"),
        ({"train": [{"start": [2, 2, 2], "stop": [8, 8, 8]}], "validation": []}, "one class"),
    ):
        volume = {**content["data"]["volumes"][0], **change}
        changed = {**content, "data": {**content["data"], "volumes": [volume]}}
        with pytest.raises((ConfigError, StorageError), match=match):
            train(
                type(config).model_validate(changed),
                lambda a: pytest.fail("it trained") if a.phase == "training" else None,
            )


@pytest.mark.parametrize("part", ["image", "labels"])
def test_data_of_which_nothing_is_stored_are_refused_and_holes_are_told(tmp_path, caplog, part):
    """A header whose chunks were not copied reads as zeros: hours of learning from nothing. Holes are normal, and counted."""
    config = recipe(tmp_path, steps=1)
    chunks = tmp_path / f"{part}.zarr" / "c"
    first = min(path for path in chunks.rglob("*") if path.is_file())
    first.rename(tmp_path / "kept")
    train(config)
    told = list({message for message in caplog.messages if "absent, and read as its fill value" in message})
    assert len(told) == 1
    assert f"{part}.zarr" in told[0]
    shutil.rmtree(chunks)
    shutil.rmtree(tmp_path / "out")
    with pytest.raises(StorageError, match=rf"{part}\.zarr' has a header and no voxels"):
        train(config, lambda a: pytest.fail("it trained") if a.phase == "training" else None)


def test_whole_data_are_told_of_no_hole(tmp_path, caplog):
    """The negative control."""
    train(recipe(tmp_path, steps=1))
    assert not [message for message in caplog.messages if "absent" in message]


def test_a_stop_in_a_step_waits_for_its_end(tmp_path):
    """Half a step is no state."""
    config, before = recipe(tmp_path, steps=400), signal.getsignal(signal.SIGTERM)

    def told(advance):
        if advance.phase == "training" and advance.done == 20:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        train(config, told)
    assert torch.load(tmp_path / "out" / "state.pt", weights_only=True)["step"] in (20, 21)
    assert signal.getsignal(signal.SIGTERM) == before
