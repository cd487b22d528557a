import io
import json
import pickle
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from pipeline.core.network.unet import Architecture
from pipeline.core.normalization import Normalization
from pipeline.errors import ModelError
from pipeline.networks.checkpoint import METADATA_KEY, Checkpoint, load_checkpoint, save_checkpoint
from pipeline.networks.model import UNet
from tests.unet.notes_unet import NotesUNet, logits_by_names, randomise

SMALL = Architecture(ndim=2, depth=2, width=2, in_channels=3, out_channels=2)


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def state_of(architecture, seed=0):
    """Random weights by name."""
    return randomise(UNet(architecture), seed).state_dict()


def saved(path, content):
    """A file by `torch.save`."""
    torch.save(content, path)
    return path


def picture(architecture, extents):
    """A batch of one, of random voxels."""
    return torch.randn((1, architecture.in_channels, *extents), generator=torch.Generator().manual_seed(3))


def refusal(path, **known):
    """The text of the refusal of a file."""
    with pytest.raises(ModelError) as refused:
        load_checkpoint(path, **known)
    assert str(path) in str(refused.value)
    return str(refused.value)


# --- the notes' checkpoints ---------------------------------------------------------------------------------------------


def test_a_checkpoint_of_the_notes_class_loads_and_predicts_its_output(tmp_path):
    """The first promise to users: their trained network runs as it is, at its full width."""
    theirs, x = randomise(NotesUNet()), torch.randn(1, 1, 64, 80, generator=torch.Generator().manual_seed(3))
    found = load_checkpoint(saved(tmp_path / "notes.pt", theirs.state_dict()))
    assert found.architecture == Architecture(ndim=2, depth=4, width=64)
    with torch.inference_mode():
        expected = theirs(x)
        torch.testing.assert_close(
            found.build()(x), expected, rtol=0, atol=1e-5 * float(expected.max() - expected.min())
        )


KINDS = {
    "depth 1": Architecture(2, 1, 2),
    "depth 2": Architecture(2, 2, 3, in_channels=2, out_channels=4),
    "depth 3": Architecture(2, 3, 2),
    "3D depth 1": Architecture(3, 1, 2, out_channels=3),
    "3D depth 2": Architecture(3, 2, 2),
    "no bias": Architecture(2, 2, 2, bias=False),
    "no norm": Architecture(2, 2, 2, norm="none"),
    "no bias, no norm": Architecture(3, 1, 2, bias=False, norm="none"),
    "unpadded": Architecture(2, 2, 2, padding="valid"),
}


@pytest.mark.parametrize("architecture", KINDS.values(), ids=KINDS)
def test_names_and_shapes_tell_the_architecture(tmp_path, architecture):
    """A plain state_dict says nothing else; only how convolutions pad must be told."""
    state = state_of(architecture)
    found = load_checkpoint(saved(tmp_path / "plain.pt", state), padding=architecture.padding)
    x = picture(architecture, (44,) * 2 if architecture.ndim == 2 else (8,) * 3)
    with torch.inference_mode():
        expected = logits_by_names(state, x, depth=architecture.depth, padding=architecture.padding)
        torch.testing.assert_close(found.build()(x), expected, rtol=1e-5, atol=1e-5)
    assert found.architecture == architecture


def test_padding_is_same_where_nobody_says(tmp_path):
    """The notes' class pads; the report and `inspect` say that it was assumed."""
    found = load_checkpoint(saved(tmp_path / "plain.pt", state_of(SMALL)))
    assert (found.architecture.padding, found.padding_known) == ("same", False)


WRAPPINGS = {
    "a training state": lambda state: {"net": state, "optim": {"state": {}, "param_groups": [{"lr": 0.1}]}},
    "a training state, the network last": lambda state: {"epoch": 7, "optim": {"lr": 0.1}, "state_dict": state},
    "DataParallel": lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
    "a training state of DataParallel": lambda state: {"net": {f"module.{n}": t for n, t in state.items()}},
}


@pytest.mark.parametrize("wrap", WRAPPINGS.values(), ids=WRAPPINGS)
def test_common_wrappings_are_seen_through(tmp_path, wrap):
    """The notes save `{"net": ..., "optim": ...}`, and training on several GPUs prefixes every name."""
    state = state_of(SMALL)
    plain, wrapped = (saved(tmp_path / name, s) for name, s in (("plain.pt", state), ("wrapped.pt", wrap(state))))
    assert load_checkpoint(wrapped).sha256 == load_checkpoint(plain).sha256
    assert load_checkpoint(wrapped).architecture == SMALL


def test_half_precision_weights_are_computed_with_in_float32(tmp_path):
    """A checkpoint that was stored small must not decide how a run computes."""
    halves = {n: t.half() if t.is_floating_point() else t for n, t in state_of(SMALL).items()}
    found = load_checkpoint(saved(tmp_path / "half.pt", halves))
    assert {t.dtype for t in found.state.values()} == {torch.float32, torch.int64}
    assert torch.equal(found.state["fc.weight"], halves["fc.weight"].float())


def test_a_batch_norm_without_weights_scales_by_one(tmp_path):
    """`affine=False` leaves no weight and no bias, and its statistics are fixed all the same."""
    state = state_of(SMALL)
    bare = {n: t for n, t in state.items() if not n.endswith((".1.weight", ".1.bias"))}
    found = load_checkpoint(saved(tmp_path / "bare.pt", bare))
    assert torch.equal(found.state["encoder1_1.1.weight"], torch.ones(2))
    assert torch.equal(found.state["encoder1_1.1.bias"], torch.zeros(2))


# --- our own ------------------------------------------------------------------------------------------------------------

OURS = Checkpoint(
    architecture=replace(SMALL, padding="valid"),
    state=state_of(SMALL),
    padding_known=True,
    normalization=Normalization("percentile", 0.0, 1.0, 0.5, 99.5),
    axes="czyx",
    voxel_size_nm=(40.0, 4.0, 4.0),
    provenance={"data": "em", "steps": 1000, "loss": 0.25},
)


def test_a_checkpoint_round_trips_through_safetensors(tmp_path):
    """Architecture, rule, axes, voxel size and provenance travel with the weights: a run needs nothing else told."""
    save_checkpoint(tmp_path / "ours.safetensors", OURS)
    found = load_checkpoint(tmp_path / "ours.safetensors")
    assert replace(found, state=OURS.state) == OURS
    assert all(torch.equal(found.state[name], tensor) for name, tensor in OURS.state.items())
    assert list(found.state) == list(OURS.state)


@pytest.mark.parametrize("architecture", KINDS.values(), ids=KINDS)
def test_every_setting_round_trips(tmp_path, architecture):
    """Padding above all, which weights do not tell."""
    save_checkpoint(tmp_path / "ours.safetensors", Checkpoint(architecture, state_of(architecture)))
    found = load_checkpoint(tmp_path / "ours.safetensors")
    assert (found.architecture, found.padding_known) == (architecture, True)
    assert (found.normalization, found.axes, found.voxel_size_nm, found.provenance) == (None, None, None, {})


def test_foreign_safetensors_are_a_plain_state_dict(tmp_path):
    """Weights that someone converted carry no metadata of ours."""
    save_file(state_of(SMALL), tmp_path / "foreign.safetensors", metadata={"format": "pt"})
    found = load_checkpoint(tmp_path / "foreign.safetensors", padding="valid")
    assert (found.architecture, found.padding_known) == (OURS.architecture, False)


def test_padding_that_contradicts_the_checkpoint_is_refused(tmp_path):
    """One of the two is a mistake, and either would give another answer."""
    save_checkpoint(tmp_path / "ours.safetensors", OURS)
    assert load_checkpoint(tmp_path / "ours.safetensors", padding="valid").architecture.padding == "valid"
    text = refusal(tmp_path / "ours.safetensors", padding="same")
    assert "model.padding is 'same'" in text
    assert "trained with 'valid'" in text


def described(path, **said):
    """Our kind of file with other metadata."""
    usual = {"format": 1, "architecture": SMALL.to_dict(), "normalization": None, "axes": "cyx"}
    save_file(state_of(SMALL), path, metadata={METADATA_KEY: json.dumps({**usual, **said})})
    return path


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("width", 4),
        ("depth", 3),
        ("ndim", 3),
        ("in_channels", 1),
        ("out_channels", 1),
        ("bias", False),
        ("norm", "none"),
    ],
)
def test_metadata_that_contradicts_the_weights_is_refused(tmp_path, field, value):
    """A file put together from two is neither of them."""
    wrong = {**SMALL.to_dict(), field: value}
    text = refusal(described(tmp_path / "wrong.safetensors", architecture=wrong))
    assert f"{field} {value} but found {getattr(SMALL, field)}" in text


NONSENSE = {
    "architecture missing": {"architecture": None},
    "architecture of another version": {"architecture": {"kind": "transformer"}},
    "unknown padding": {"architecture": {**SMALL.to_dict(), "padding": "reflect"}},
    "unknown normalisation": {"normalization": {"mode": "histogram"}},
    "unknown key of the normalisation": {"normalization": {"mode": "zscore", "clip": 3}},
    "normalisation without keys": {"normalization": "zscore"},
    "voxel size in words": {"voxel_size_nm": "large"},
    "voxel size of zero": {"voxel_size_nm": [0, 4, 4]},
    "provenance without keys": {"provenance": [1, 2]},
}


@pytest.mark.parametrize("said", NONSENSE.values(), ids=NONSENSE)
def test_metadata_that_cannot_be_understood_is_refused(tmp_path, said):
    """A guess at a network's normalisation would be a wrong answer that looks right."""
    assert "cannot be understood" in refusal(described(tmp_path / "nonsense.safetensors", **said))


@pytest.mark.parametrize("text", ["{", "[]", "3", "null", '"text"'])
def test_metadata_that_is_no_object_is_refused(tmp_path, text):
    """The same for what is not even keys."""
    save_file(state_of(SMALL), tmp_path / "a.safetensors", metadata={METADATA_KEY: text})
    assert "cannot be understood" in refusal(tmp_path / "a.safetensors")


# --- the digest ---------------------------------------------------------------------------------------------------------


def test_the_digest_is_of_the_tensors_not_of_the_file(tmp_path):
    """Converted to safetensors, a model keeps its fingerprint, and runs resume."""
    plain = load_checkpoint(saved(tmp_path / "plain.pt", OURS.state))
    save_checkpoint(tmp_path / "ours.safetensors", OURS)
    assert load_checkpoint(tmp_path / "ours.safetensors").sha256 == plain.sha256 == OURS.sha256


def test_the_order_of_names_is_no_part_of_the_digest():
    """Files list tensors in orders of their own."""
    backwards = dict(reversed(OURS.state.items()))
    assert list(backwards) != list(OURS.state)
    assert replace(OURS, state=backwards).sha256 == OURS.sha256


@pytest.mark.parametrize("name", ["encoder1_1.0.weight", "decoder1_1.1.running_var", "unpool2.bias", "fc.weight"])
def test_one_changed_value_is_another_digest(name):
    """A fine-tuned model must never add tiles to another's output."""
    state = {n: t.clone() for n, t in OURS.state.items()}
    state[name].view(-1)[-1] += 1e-6
    assert replace(OURS, state=state).sha256 != OURS.sha256


def test_exchanged_tensors_are_another_digest():
    """Values belong to names."""
    state = dict(OURS.state)
    state["unpool1.weight"], state["unpool1.bias"] = state["unpool1.weight"].flip(0), state["unpool1.bias"].flip(0)
    assert replace(OURS, state=state).sha256 != OURS.sha256


# --- files that are damaged or hostile ----------------------------------------------------------------------------------


def packed(legacy=False):
    """A small checkpoint's bytes, in torch's present format or in its first."""
    buffer = io.BytesIO()
    torch.save(state_of(Architecture(2, 1, 1)), buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


FILES = {"zip": packed(), "legacy": packed(legacy=True)}


def test_a_missing_file_is_told(tmp_path):
    """The commonest mistake of all."""
    assert "there is no such file" in refusal(tmp_path / "none.pt")
    assert "there is no such file" in refusal(tmp_path)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
def test_an_empty_file_is_refused(tmp_path, suffix):
    """What a full disk leaves."""
    path = tmp_path / f"empty{suffix}"
    path.touch()
    assert "0 bytes" in refusal(path)


def test_truncated_safetensors_are_refused(tmp_path):
    """What an interrupted copy leaves."""
    save_checkpoint(tmp_path / "ours.safetensors", OURS)
    whole = (tmp_path / "ours.safetensors").read_bytes()
    path = tmp_path / "cut.safetensors"
    for kept in (3, 8, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:kept])
        assert "cannot be read as safetensors" in refusal(path)


@pytest.mark.parametrize("kind", FILES)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1, exclude_max=True))
def test_truncated_state_dicts_are_refused(tmp_path, kind, share):
    """Wherever the copy stopped: the unpickler has a dozen ways to fail, and the user is told of one."""
    path = tmp_path / "cut.pt"
    path.write_bytes(FILES[kind][: int(share * len(FILES[kind]))])
    assert "cannot be read as a state_dict" in refusal(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200), suffix=st.sampled_from((".pt", ".safetensors")))
@example(content=b"a", suffix=".pt")  # pop from an empty list
@example(content=b"\x80\x02}q\x00.", suffix=".pt")  # an empty dict
@example(content=b"K", suffix=".pt")  # index out of range
def test_random_bytes_are_refused(tmp_path, content, suffix):
    """Any file may be named by mistake."""
    path = tmp_path / f"noise{suffix}"
    path.write_bytes(content)
    refusal(path)


@pytest.mark.parametrize("kind", FILES)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_is_a_refusal_or_another_digest_but_never_a_crash(tmp_path, kind, place, bit):
    """A state_dict carries no checksum that torch looks at; what loads all the same is known by its digest."""
    damaged = bytearray(FILES[kind])
    damaged[int(place * len(damaged))] ^= 1 << bit
    path = tmp_path / "flipped.pt"
    path.write_bytes(damaged)
    try:
        found = load_checkpoint(path)
    except ModelError:
        return
    assert found.architecture == Architecture(2, 1, 1)


class Hostile:
    """Makes a file at a path when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("save", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
def test_code_in_a_checkpoint_is_never_executed(tmp_path, save):
    """Checkpoints are passed around: one from a stranger must not run as the user."""
    trap, path = tmp_path / "trap", tmp_path / "hostile.pt"
    save({**state_of(SMALL), "extra": Hostile(trap)}, path)
    assert "nothing else is ever unpickled" in refusal(path)
    assert not trap.exists()


def test_the_hostile_checkpoint_is_one(tmp_path):
    """The control: unpickled in the ordinary way, it does what it must not."""
    trap = tmp_path / "trap"
    pickle.loads(pickle.dumps(Hostile(trap))).close()
    assert trap.exists()


# --- files that are something else --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["bioimageio_unet2d_nuclei_broad/state_dict_extracted.pt", "bioimageio_unet2d_fixed_shape/weights.pt"]
)
def test_other_unets_are_refused_by_their_names(shared_data, name):
    """Real models of the field: a UNet of another make is not this UNet, and must not be half loaded."""
    text = refusal(shared_data / "models" / name)
    assert "is not this UNet" in text
    assert "expected tensors named 'encoder1_1.0.weight'" in text


@pytest.mark.parametrize("content", [{}, [], 3, "weights", {"a": 1}, {"a": {}}, torch.zeros(3)], ids=repr)
def test_what_is_no_state_dict_is_refused(tmp_path, content):
    """Lists of tensors, empty files of a crashed training."""
    assert "not a state_dict" in refusal(saved(tmp_path / "other.pt", content))


def without(*ends):
    """Small weights without the tensors whose names end so."""
    return {name: tensor for name, tensor in state_of(SMALL).items() if not name.endswith(ends)}


def test_a_norm_without_running_statistics_is_refused_as_inexact(tmp_path):
    """Instance norm looks at its whole input: tiles would differ from one pass at any halo."""
    text = refusal(saved(tmp_path / "instance.pt", without("running_mean", "running_var", "num_batches_tracked")))
    assert "instance" in text
    assert "'encoder1_1.1.weight' has no 'running_mean' beside it" in text


def test_a_single_inexact_norm_is_found(tmp_path):
    """One layer is enough to break the promise."""
    state = without("decoder1_2.1.running_mean", "decoder1_2.1.running_var")
    assert "'decoder1_2.1.weight'" in refusal(saved(tmp_path / "one.pt", state))


MISFITS = {
    "a tensor missing": (without("decoder2_1.0.weight"), "Missing: decoder2_1.0.weight"),
    "half of the statistics missing": (without("running_var"), "Missing: decoder1_1.1.running_var"),
    "a level missing": (without("unpool2.weight", "unpool2.bias"), "looks like depth 1"),
    "a tensor too many": ({**state_of(SMALL), "head.weight": torch.zeros(1)}, "Unknown: head.weight"),
    "another shape": (
        {**state_of(SMALL), "decoder1_1.0.weight": torch.zeros(2, 2, 5, 5)},
        "decoder1_1.0.weight (2, 2, 5, 5) instead of (2, 2, 3, 3)",
    ),
    "a 3D layer": ({**state_of(SMALL), "fc.weight": torch.zeros(2, 2, 1, 1, 1)}, "is not this UNet"),
    "sparse weights": ({**state_of(SMALL), "fc.weight": torch.ones(2, 2, 1, 1).to_sparse()}, "sparse"),
    "weights without values": ({**state_of(SMALL), "fc.weight": torch.ones(2, 2, 1, 1, device="meta")}, "fc.weight"),
    "complex weights": ({**state_of(SMALL), "fc.weight": torch.ones(2, 2, 1, 1) * 1j}, "complex"),
}


@pytest.mark.parametrize(("state", "told"), MISFITS.values(), ids=MISFITS)
def test_weights_that_do_not_fit_are_refused_by_name(tmp_path, state, told):
    """A layer left at random is a prediction that looks like one."""
    assert told in refusal(saved(tmp_path / "misfit.pt", state))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path, value):
    """A training that diverged is found before a day of tiles, not after."""
    state = state_of(SMALL)
    state["decoder1_2.0.weight"][0, 1, 2, 0] = value
    text = refusal(saved(tmp_path / "diverged.pt", state))
    assert "not finite: decoder1_2.0.weight" in text


def test_refusals_stay_short(tmp_path):
    """A checkpoint of a thousand tensors must not fill the screen with their names."""
    many = {f"layer{i}.weight": torch.zeros(1) for i in range(1000)}
    text = refusal(saved(tmp_path / "many.pt", many))
    assert "and 994 more" in text
    assert len(text) < 600


def test_the_tensors_that_are_saved_are_those_that_are_read(tmp_path):
    """Other tools read our files too, by the notes' names."""
    save_checkpoint(tmp_path / "ours.safetensors", OURS)
    found = load_file(tmp_path / "ours.safetensors")
    assert {name: tensor.shape for name, tensor in found.items()} == {n: t.shape for n, t in OURS.state.items()}


# --- larger than a network ----------------------------------------------------------------------------------------------


def rewritten(folder, header=None, said=None):
    """A checkpoint of ours, whose header or whose own metadata are others."""
    path = folder / "c.safetensors"
    save_checkpoint(path, Checkpoint(Architecture(3, 1, 2), UNet(Architecture(3, 1, 2)).state_dict()))
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    found = json.loads(content[8 : 8 + length])
    if said is not None:
        found["__metadata__"][METADATA_KEY] = said(found["__metadata__"][METADATA_KEY])
    text = json.dumps(found).encode() if header is None else header(found)
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    return path


EMPTY = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (lambda h: json.dumps(h | {f"unpool{n}.weight": EMPTY for n in range(1, 20_000)}).encode(), None),
        (lambda h: b'{"a":' * 100_000 + b"1" + b"}" * 100_000, None),
        (lambda h: b"{" + b" " * 2**24 + b"}", None),
        (lambda h: b"[1]", None),
        (lambda h: json.dumps(h | {"__metadata__": {METADATA_KEY: {"a": 1}}}).encode(), None),
        (lambda h: json.dumps(h | {"__metadata__": [1]}).encode(), None),
        (None, lambda s: '{"a":' * 100_000 + "1" + "}" * 100_000),
        (None, lambda s: s.replace('"provenance": {}', '"provenance": {"a": ' + "[" * 900 + "]" * 900 + "}")),
        (None, lambda s: s.replace('"voxel_size_nm": null', '"voxel_size_nm": [NaN]')),
        (None, lambda s: s.replace('"voxel_size_nm": null', '"voxel_size_nm": [' + "9" * 400 + "]")),
        (None, lambda s: s.replace('"axes": null', '"axes": 5')),
        (None, lambda s: s.replace('"axes": null', '"axes": "\\ud800"')),
        (None, lambda s: s.replace('"normalization": null', '"normalization": {"low": "x"}')),
        (None, lambda s: "null"),
    ],
)
def test_a_header_that_no_network_has_is_refused_at_once(tmp_path, header, said):
    """10^5 names took 72 s; values in values ended in a traceback."""
    with pytest.raises(ModelError, match=r"c\.safetensors"):
        load_checkpoint(rewritten(tmp_path, header, said))


def test_a_network_deeper_than_any_is_refused_before_it_is_built(tmp_path):
    """Depth is the number of names, and each level doubles the channels."""
    state = UNet(Architecture(3, 1, 2)).state_dict() | {f"unpool{n}.weight": torch.zeros(1) for n in range(1, 40)}
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, str(tmp_path / "c.safetensors"))
    with pytest.raises(ModelError, match="depth 17"):
        load_checkpoint(tmp_path / "c.safetensors")


def test_a_tensor_that_shows_one_value_many_times_is_refused(tmp_path):
    """A file of a kilobyte would take all the memory that its shape says."""
    state = UNet(Architecture(3, 1, 2)).state_dict()
    state["fc.bias"] = torch.zeros(1).expand(10**9)
    torch.save(state, tmp_path / "c.pt")
    with pytest.raises(ModelError, match=r"fc\.bias"):
        load_checkpoint(tmp_path / "c.pt")
