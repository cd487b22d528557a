import re
import time
import tracemalloc
from dataclasses import replace
from math import log2, prod

import pytest
from hypothesis import assume, event, given, settings
from hypothesis import strategies as st

from pipeline.core.network.receptive import receptive_radius
from pipeline.core.network.stream import Stream
from pipeline.core.network.unet import Architecture
from pipeline.core.tiles.cost import (
    PROCESS_BYTES,
    one_pass_multiply_adds,
    read_slices,
    sweep_values,
    tile_bytes,
    total_multiply_adds,
    total_voxels_decoded,
    total_voxels_read,
    weights,
)
from pipeline.core.tiles.tiling import (
    DEVICE_MEMORY_SHARE,
    MEMORY_SHARE,
    TileRequest,
    _candidates,
    _halo,
    _Prices,
    choose_tiling,
    worker_bytes,
)
from pipeline.errors import PlanError
from tests.core.core_cases import architectures, triples

GB = 10**9


def request(**known):
    """A 3D network of depth 2 (stride 4, radius 22) over a volume that fits into memory."""
    usual = {
        "architecture": Architecture(ndim=3, depth=2, width=4),
        "volume": (100, 200, 300),
        "in_chunks": (64, 64, 64),
        "in_bytes": 1,
        "out_bytes": 4,
        "value_bytes": 4,
        "memory_bytes": 8 * GB,
        "workers": 2,
    }
    return TileRequest(**{**usual, **known})


def refusal(**known):
    """The text of the refusal of a request."""
    with pytest.raises(PlanError) as refused:
        choose_tiling(request(**known))
    return str(refused.value)


def answer(asked):
    """The tiling of a request and None, or None and the text of its refusal."""
    try:
        return choose_tiling(asked), None
    except PlanError as error:
        return None, str(error)


def divides(part, whole):
    """Whether extents are multiples of others, axis by axis."""
    return all(w % p == 0 for p, w in zip(part, whole, strict=True))


def planar(depth=4):
    """A 2D network."""
    return Architecture(ndim=2, depth=depth, width=4)


# --- refusals -----------------------------------------------------------------------------------------------------------

UNPADDED = Architecture(ndim=3, depth=2, width=4, padding="valid")

REFUSALS = {
    "a halo off the stride": (
        {"halo": (24, 24, 26)},
        ["tiles.halo [24, 24, 26] is no multiple of the stride [4, 4, 4]", "to at least [24, 24, 24]", "'auto'"],
    ),
    "a negative halo": (
        {"halo": (-24, 24, 24)},
        ["tiles.halo [-24, 24, 24] is no multiple", "smaller than the receptive radius", "to at least [24, 24, 24]"],
    ),
    "a short halo": (
        {"halo": (24, 20, 24)},
        [
            "tiles.halo [24, 20, 24] is smaller than the receptive radius [22, 22, 22]: tiles would show seams",
            "to at least [24, 24, 24], the next multiples of the stride [4, 4, 4]",
        ],
    ),
    "a short halo of a 2D network": (
        {"architecture": planar(), "halo": (0, 96, 80)},
        ["[0, 96, 80] is smaller than the receptive radius [0, 94, 94]", "to at least [0, 96, 96]"],
    ),
    "a halo for an unpadded network": (
        {"architecture": UNPADDED, "halo": (24, 24, 24)},
        ["tiles.halo [24, 24, 24] was given for an unpadded network", "margins [20, 20, 20]", "'auto'"],
    ),
    "a core off the lattice": (
        {"core": (64, 63, 66)},
        ["tiles.core [64, 63, 66] is no multiple of the stride [4, 4, 4]", "nearest good one is [64, 64, 64]"],
    ),
    "a core smaller than the stride": (
        {"core": (1, 64, 64)},
        ["tiles.core [1, 64, 64] is no multiple of the stride", "nearest good one is [4, 64, 64]"],
    ),
    "a core off the lattice and off the shards": (
        {"core": (64, 63, 64), "shards": (32, 48, 32)},
        ["tiles.core [64, 63, 64] is no multiple of the stride", "nearest good one is [64, 48, 64]"],
    ),
    "a core of broken shards": (
        {"core": (64, 64, 64), "shards": (32, 48, 32)},
        ["tiles.core [64, 64, 64] is no multiple of output.shards [32, 48, 32]", "nearest good core is [64, 48, 64]"],
    ),
    "a core of broken chunks": (
        {"core": (64, 64, 64), "shards": (), "chunks": (64, 64, 24)},
        ["tiles.core [64, 64, 64] is no multiple of output.chunks [64, 64, 24]", "nearest good core is [64, 64, 72]"],
    ),
    "shards of broken chunks": (
        {"shards": (64, 64, 60), "chunks": (32, 32, 32)},
        ["output.shards [64, 64, 60] is no multiple of output.chunks [32, 32, 32]", "to [64, 64, 64]"],
    ),
    "too little memory": (
        {"memory_bytes": GB},
        ["A worker has 1.0 GB, of which 0.9 may be planned", "3D network of depth 2, width 4", "cluster.memory_gb"],
    ),
    "too small a card": (
        {"core": (256, 256, 256), "volume": (512, 512, 512), "device": "cuda", "device_memory_bytes": 10**9}
        | {"architecture": Architecture(3, 2, 64)},
        [
            "A GPU has 1.0 GB free, of which 0.6 may be planned",
            "[256, 256, 256]",
            "needs up to 1.6 GB",
            "a card with more",
        ],
    ),
    "too little memory beside a large card": (
        {"memory_bytes": GB, "device": "cuda", "device_memory_bytes": 80 * GB},
        ["A worker has 1.0 GB, of which 0.9 may be planned", "cluster.memory_gb"],
    ),
    "too little memory for the core": (
        {"core": (1024, 1024, 1024), "volume": (4096, 4096, 4096), "architecture": Architecture(3, 2, 32)},
        [
            "core [1024, 1024, 1024] and halo [24, 24, 24] (slab 4, 3D network",
            "needs up to 15.5 GB",
            "smaller tiles.core",
        ],
    ),
}


@pytest.mark.parametrize(("known", "told"), REFUSALS.values(), ids=REFUSALS)
def test_what_cannot_be_exact_is_refused_with_numbers(known, told):
    """Refused before a worker starts: what was asked, what is needed, and what to set."""
    text = refusal(**known)
    for part in told:
        assert part in text


def test_all_violations_are_told_at_once():
    """Nobody should mend a configuration one error at a time."""
    text = refusal(halo=(24, 18, 20), core=(64, 63, 64), shards=(64, 64, 60), chunks=(32, 32, 32))
    for part in (
        "output.shards",
        "no multiple of the stride",
        "smaller than the receptive radius",
        "tiles.core [64, 63",
    ):
        assert part in text
    assert len(text.splitlines()) == 5


@given(triples(1, 200), triples(1, 40))
def test_a_core_that_is_proposed_is_accepted_and_no_other_is_nearer(core, chunks):
    """Advice that is refused in its turn is worse than none."""
    asked = request(core=core, chunks=chunks, shards=())
    _, refused = answer(asked)
    good = tuple(map(int, re.search(r"is \[(.*?)\]\.$", refused)[1].split(", "))) if refused else core
    assert choose_tiling(replace(asked, core=good)).grid.core == good
    for wanted, proposed, unit in zip(core, good, asked.unit, strict=True):
        assert abs(proposed - wanted) <= unit / 2 or proposed == unit


@given(triples(-10, 60))
def test_a_halo_that_is_proposed_is_accepted(halo):
    """The same for halos, whatever was asked for."""
    found, refused = answer(request(halo=halo, core=(64, 64, 64)))
    if refused:
        good = choose_tiling(request(halo=(24, 24, 24), core=(64, 64, 64))).halo
        assert f"at least {list(good)}" in refused
        assert any(h < g or h % 4 for h, g in zip(halo, good, strict=True))
    else:
        assert found.halo == halo


def test_a_halo_that_equals_the_radius_is_enough():
    """At depth 1 the radius lies on the lattice: 8 voxels are exact, and asking for ten would be a waste."""
    shallow = Architecture(ndim=3, depth=1, width=4)
    assert choose_tiling(request(architecture=shallow, halo=(8, 8, 8))).halo == (8, 8, 8)


# --- what auto chooses --------------------------------------------------------------------------------------------------


def keeps_every_rule(asked, tiling):
    """Every rule of tiles, halos, slabs, shards, chunks and memory."""
    grid, stride = tiling.grid, asked.architecture.stride
    padded = asked.architecture.padding == "same"
    assert divides(stride, grid.core)
    assert tiling.stream.slab % stride[0] == 0
    assert stride[0] <= tiling.stream.slab <= grid.core[0]
    assert divides(stride, tiling.halo) if padded else tiling.halo == (0, 0, 0)
    assert not padded or all(
        h >= r for h, r in zip(tiling.halo, receptive_radius(asked.architecture.graph), strict=True)
    )
    assert divides(tiling.chunks, tiling.shards or tiling.chunks)
    assert divides(tiling.shards or tiling.chunks, grid.core)
    assert tiling.worker_bytes == worker_bytes(asked, tiling.stream) <= asked.usable_bytes
    assert (tiling.stream.graph, grid.volume) == (asked.architecture.graph, asked.volume)


@st.composite
def requests(draw):
    """Volumes of every extent, networks of every kind, and storage layouts asked for or not."""
    chunk = st.none() | triples(1, 40)
    chunks, factor = draw(chunk), draw(triples(1, 3))
    shards = draw(st.sampled_from((None, (), tuple(c * f for c, f in zip(chunks or (8, 8, 8), factor, strict=True)))))
    return request(
        architecture=replace(draw(architectures(depths=(1, 4))), width=draw(st.sampled_from((1, 8, 64)))),
        volume=draw(triples(1, 700)),
        in_chunks=draw(triples(1, 128)),
        in_bytes=draw(st.sampled_from((1, 2, 4, 8))),
        memory_bytes=draw(st.integers(GB // 2, 64 * GB)),
        workers=draw(st.integers(1, 40)),
        chunks=chunks,
        shards=shards,
    )


@given(requests())
def test_automatic_tiles_keep_every_rule(asked):
    """`auto` is what nearly every run uses: it must be right for any volume, network, layout and machine."""
    tiling, refused = answer(asked)
    event("refused" if refused else f"{len(tiling.grid).bit_length()} bits of tiles")
    if refused:
        assert "A worker has" in refused
        return
    keeps_every_rule(asked, tiling)
    assert (asked.chunks or tiling.chunks) == tiling.chunks
    assert asked.shards is None or (asked.shards or None) == tiling.shards


@settings(max_examples=20)
@given(requests(), triples(1, 6))
def test_a_refusal_for_memory_is_not_hasty(asked, factor):
    """What is refused must not have fitted with some other core: the search may stop at the smallest."""
    asked = replace(asked, architecture=replace(asked.architecture, ndim=3), memory_bytes=asked.memory_bytes // 4)
    assume(answer(asked)[1])
    assert answer(replace(asked, core=tuple(u * f for u, f in zip(asked.unit, factor, strict=True))))[1]


@settings(max_examples=20)
@given(requests(), st.integers(2, 8))
def test_more_workers_never_break_a_rule(asked, workers):
    """Tiles are made smaller so that no worker idles, and still lie on the lattice."""
    asked = replace(asked, workers=workers, memory_bytes=64 * GB, architecture=replace(asked.architecture, width=1))
    keeps_every_rule(asked, choose_tiling(asked))


def test_tiles_are_many_enough_for_the_workers():
    """One large tile would be the cheapest, and leave seven of eight workers idle."""
    assert len(choose_tiling(request(workers=8, volume=(512, 512, 512), memory_bytes=64 * GB)).grid) >= 8


@pytest.mark.timeout(60)
@pytest.mark.parametrize("memory", [1.5, 4, 12, 64])
def test_tiles_of_a_whole_brain_are_chosen_while_one_waits(memory):
    """The search does not grow with the volume, nor does it try every core where memory is short."""
    deep = Architecture(ndim=3, depth=4, width=16)
    asked = request(architecture=deep, volume=(10**5, 10**5, 10**5), memory_bytes=int(memory * GB), workers=64)
    tiling, refused = answer(asked)
    assert refused or tiling.worker_bytes <= asked.usable_bytes
    assert bool(refused) is (memory == 1.5)


def test_a_slab_is_made_smaller_until_it_fits():
    """Slabs keep a device busy; the tile bounds writing and retry: a given core keeps its extents."""
    asked = {"core": (256, 128, 128), "volume": (1024, 1024, 1024), "architecture": Architecture(3, 2, 32)}
    roomy, tight = (choose_tiling(request(**asked, memory_bytes=int(m * GB))) for m in (64, 2.5))
    assert roomy.grid.core == tight.grid.core == (256, 128, 128)
    assert tight.stream.slab < roomy.stream.slab
    assert tight.worker_bytes <= 0.9 * 2.5 * GB < roomy.worker_bytes


def test_a_slab_keeps_a_small_tile_busy():
    """A thin column takes in many slices at once, a wide one few: what a layer does in a turn is worth starting it."""
    narrow, wide = (choose_tiling(request(volume=(512, n, n), core=(256, n, n))).stream.slab for n in (64, 512))
    assert narrow > wide
    assert narrow <= 64


def test_a_known_slab_is_kept_or_refused():
    """An earlier plan governs: another slab may give other bytes, so it is never changed in silence."""
    known = {"core": (64, 64, 64), "slab": 16}
    assert choose_tiling(request(**known)).stream.slab == 16
    assert "(slab 16, 3D network" in refusal(**known, memory_bytes=GB)


def test_a_gpu_limits_the_tile_by_its_own_memory():
    """The network's values lie there, and not in the worker's: a small card takes smaller columns, a large one larger."""
    asked = {"volume": (1024, 2048, 2048), "architecture": Architecture(3, 3, 32), "device": "cuda", "value_bytes": 2}
    found = [choose_tiling(request(**asked, device_memory_bytes=m * GB)) for m in (2, 8, 64)]
    planes = [tiling.grid.core[1] * tiling.grid.core[2] for tiling in found]
    assert planes == sorted(planes)
    assert planes[0] < planes[-1]
    for m, tiling in zip((2, 8, 64), found, strict=True):
        assert 2 * sweep_values(tiling.stream) <= m * GB * DEVICE_MEMORY_SHARE
        assert tiling.worker_bytes == worker_bytes(request(**asked, device_memory_bytes=m * GB), tiling.stream)


def test_what_a_gpu_holds_is_not_asked_of_the_worker():
    """A worker of a few gigabytes may drive a card of eighty."""
    asked = request(
        core=(512, 512, 512), volume=(512, 2048, 2048), architecture=Architecture(3, 3, 32), memory_bytes=6 * GB
    )
    assert answer(asked)[1]
    assert answer(replace(asked, device="cuda", device_memory_bytes=80 * GB))[0]


def test_a_worker_holds_a_process_a_network_and_a_tile():
    """The weights four times, four bytes each: the file, its tensors, and two forms of their kernels. A GPU holds the values."""
    asked = request(architecture=Architecture(3, 3, 64), core=(8, 8, 8))
    stream = choose_tiling(asked).stream
    around = tile_bytes(stream, asked.in_bytes, asked.out_bytes, asked.in_chunks[0], 8)
    standing = PROCESS_BYTES + 16 * weights(stream.graph)
    assert worker_bytes(replace(asked, device_memory_bytes=80 * GB), stream) == standing + around
    assert worker_bytes(asked, stream) == standing + around + 4 * sweep_values(stream)


def test_a_tile_may_fill_memory_to_the_last_byte():
    """What is needed is an upper bound already: to ask for more than it would refuse tiles that fit."""
    asked = request(core=(64, 64, 64), slab=4)
    needed = choose_tiling(asked).worker_bytes
    memory = next(m for m in range(int(needed / MEMORY_SHARE) - 2, 2 * needed) if int(m * MEMORY_SHARE) == needed)
    assert choose_tiling(replace(asked, memory_bytes=memory)).worker_bytes == needed
    assert "A worker has" in refusal(core=(64, 64, 64), slab=4, memory_bytes=memory - 2)


@pytest.mark.parametrize(
    ("volume", "core", "cpu", "cuda"),
    [
        (
            (512, 128, 128),
            (256, 128, 128),
            32,
            64,
        ),  # 2^19 voxels on a CPU; 2^23 would be 512 slices, of which 64 at most
        ((512, 512, 512), (256, 256, 256), 8, 64),
        ((512, 512, 512), (256, 512, 512), 4, 32),
        ((512, 200, 200), (256, 200, 200), 16, 64),  # 13.1, rounded up to the stride
        ((512, 64, 128), (256, 256, 256), 64, 64),  # a core beyond the volume has the volume's plane alone
        ((512, 128, 64), (256, 256, 256), 64, 64),
        ((512, 64, 64), (16, 64, 64), 16, 16),  # no more than the core
        ((10, 64, 64), (16, 64, 64), 12, 12),  # nor than the volume
        ((4096, 4096, 4096), (512, 2048, 2048), 4, 4),  # a stride at least
    ],
)
def test_slabs_keep_a_device_busy_and_are_no_thicker(volume, core, cpu, cuda):
    """Too thin, and starting a layer costs more than the layer; too thick, and memory is held for nothing."""
    known = {"volume": volume, "core": core, "memory_bytes": 1000 * GB}
    assert choose_tiling(request(**known)).stream.slab == cpu
    assert choose_tiling(request(**known, device="cuda", device_memory_bytes=1000 * GB)).stream.slab == cuda


# --- the output's layout ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("core", "known", "shards", "chunks"),
    [
        ((256, 512, 512), {}, (128, 256, 256), (64, 64, 64)),
        ((64, 128, 256), {}, (64, 128, 256), (64, 64, 64)),
        ((8, 8, 8), {}, (8, 8, 8), (8, 8, 8)),
        ((100, 148, 296), {}, (100, 148, 148), (50, 37, 37)),
        (
            (268, 1072, 64),
            {},
            (67, 134, 64),
            (67, 67, 64),
        ),  # a little more than the limit, where all others are slivers
        ((32, 64, 1088), {}, (32, 64, 136), (32, 64, 34)),
        ((96, 96, 96), {"chunks": (24, 12, 48)}, (96, 96, 96), (24, 12, 48)),
        ((288, 288, 576), {"chunks": (24, 12, 48)}, (96, 144, 192), (24, 12, 48)),
        ((96, 192, 96), {"chunks": (24, 12, 48), "shards": (48, 96, 96)}, (48, 96, 96), (24, 12, 48)),
        ((96, 192, 96), {"shards": ()}, None, (48, 64, 48)),
        ((96, 192, 96), {"shards": (48, 96, 96)}, (48, 96, 96), (48, 48, 48)),
        ((1, 512, 1024), {"architecture": planar(2)}, (1, 256, 256), (1, 256, 256)),  # one slice: larger chunks
        ((2, 512, 1024), {"architecture": planar(2)}, (2, 256, 256), (2, 64, 64)),
    ],
)
def test_shards_and_chunks_are_whole_parts_of_the_core_near_a_good_extent(core, known, shards, chunks):
    """A tile writes whole units; files of a gigabyte are slow to read in part, and those of a kilobyte are too many."""
    tiling = choose_tiling(request(volume=core, core=core, memory_bytes=1000 * GB, **known))
    assert (tiling.shards, tiling.chunks) == (shards, chunks)


# --- how good it is -----------------------------------------------------------------------------------------------------


def amplifications(asked):
    """Voxels asked for, voxels decoded and arithmetic, each by what one pass takes."""
    stream, voxels = choose_tiling(asked).stream, prod(asked.volume)
    grid = stream.grid
    decoded = total_voxels_decoded(grid, asked.in_chunks, read_slices(stream, asked.in_chunks[0], asked.in_bytes))
    arithmetic = total_multiply_adds(stream) / one_pass_multiply_adds(asked.architecture.graph, asked.volume)
    return total_voxels_read(grid) / voxels, decoded / voxels, arithmetic


def test_little_of_a_cubic_gigavoxel_is_done_twice():
    """Two workers with little memory: a quarter more at most is asked for and decoded, and as little is computed."""
    asked = request(
        architecture=Architecture(3, 3, 16), volume=(1024, 1024, 1024), value_bytes=2, memory_bytes=10 * GB, workers=2
    )
    read, decoded, arithmetic = amplifications(asked)
    assert 1.0 <= read <= 1.25
    assert read <= decoded <= 1.25
    assert arithmetic <= 1.25


def test_a_volume_that_fits_is_one_column_a_worker():
    """Where memory allows it nothing along z is done twice, in slabs of any extent."""
    grid = choose_tiling(request(volume=(4096, 256, 256), workers=1, memory_bytes=64 * GB)).grid
    assert grid.counts[1:] == (1, 1)


@settings(max_examples=8)
@given(requests(), st.integers(1, 64))
def test_more_memory_never_gives_a_higher_price(asked, more):
    """The search looks at the same cores, and takes the first that fits."""
    asked = replace(asked, architecture=replace(asked.architecture, width=8))
    tight, _ = answer(asked)
    assume(tight)
    roomy = choose_tiling(replace(asked, memory_bytes=asked.memory_bytes + more * GB))
    assert roomy.price <= tight.price


@settings(max_examples=20)
@given(requests(), st.data())
def test_no_other_core_that_fits_is_much_better(asked, data):
    """Tables of an axis stand in for the grids: any candidate, priced alone, must not be cheaper."""
    asked = replace(asked, architecture=replace(asked.architecture, ndim=3), memory_bytes=64 * GB)
    tiling, _ = answer(asked)
    assume(tiling)
    core = tuple(data.draw(st.sampled_from(_candidates(asked, axis))) for axis in range(3))
    other, _ = answer(replace(asked, core=core))
    assume(other)
    assert tiling.price <= other.price * (1 + 1e-9)


def test_a_price_is_arithmetic_and_some_reading():
    """One tile, one worker, nothing read twice: what one pass takes, and the time to read the volume."""
    asked = request(volume=(64, 64, 64), core=(64, 64, 64), workers=1)
    assert choose_tiling(asked).price == pytest.approx(1.02)
    assert choose_tiling(replace(asked, workers=3)).price == pytest.approx(3 * 1.02)


@pytest.mark.parametrize(
    ("extent", "factor"), [(16, 1.0), (24, 1.0), (32, 1.0), (36, 1.03), (64, 1.0), (72, 1.03), (96, 1.0)]
)
def test_cores_of_odd_extents_cost_a_little_more(extent, factor):
    """Above 32 voxels, extents that are multiples of 32 are computed, cut and stored faster: three in a hundred an axis."""
    for axis in range(3):
        volume = tuple(extent if a == axis else 64 for a in range(3))
        assert choose_tiling(request(volume=volume, core=volume, workers=1)).price == pytest.approx(1.02 * factor)


def test_few_large_tiles_cost_a_little_more():
    """Four a worker keep all busy to the end, and few are lost where a run is killed: below that, two in a hundred."""
    asked = request(architecture=Architecture(3, 2, 16), volume=(1024, 1024, 1024), memory_bytes=1000 * GB, workers=1)
    four = replace(asked, core=(256, 1024, 1024))
    alone, shared = (choose_tiling(replace(four, workers=workers)).price for workers in (1, 2))
    assert shared / alone == pytest.approx(1.02)
    eight = replace(asked, core=(256, 512, 1024))
    assert choose_tiling(replace(eight, workers=2)).price == pytest.approx(choose_tiling(eight).price)
    small = replace(asked, volume=(128, 128, 128), core=(64, 128, 128))
    assert choose_tiling(replace(small, workers=2)).price == pytest.approx(choose_tiling(small).price)


def test_a_tile_of_hours_costs_more_than_its_arithmetic():
    """All of it is lost with its worker: a twentieth for each doubling beyond 2^46 multiply-adds."""
    asked = request(
        architecture=Architecture(3, 2, 32), volume=(1024,) * 3, core=(1024,) * 3, memory_bytes=10**13, workers=1
    )
    doublings = log2(one_pass_multiply_adds(asked.architecture.graph, asked.volume) / 2**46)
    assert doublings > 1
    assert choose_tiling(asked).price == pytest.approx(1.02 * 1.02 * (1 + 0.05 * doublings))


@pytest.mark.parametrize("extent", [100, 1000, 4096])
def test_cores_that_cut_the_volume_into_equal_parts_are_looked_at(extent):
    """Three parts of a third leave no sliver that costs a tile's halo; common extents and small ones stand beside them."""
    found = _candidates(request(volume=(extent,) * 3, chunks=(6, 6, 6), shards=()), 2)  # of units of 12
    assert all(n % 12 == 0 for n in found)
    for parts in range(1, 17):
        assert any(extent <= n * parts < extent + 12 * parts for n in found)
    assert [n for n in (192, 384, 768) if n < extent and n not in found] == []
    assert [n for n in range(12, min(extent, 128) + 1, 12) if n not in found] == []
    assert max(found) < extent + 192
    assert all(128 in _candidates(request(volume=(extent,) * 3), axis) for axis in range(3) if extent > 128)


CARD = {"device": "cuda", "device_memory_bytes": 80 * GB}

HEAVY = {
    "a network": ({"architecture": Architecture(3, 2, 64)}, 1.1),
    "an unpadded network": ({"architecture": UNPADDED}, 2.0),
    "slices of a stack": ({"architecture": planar(2)}, 2.0),
    "input": ({**CARD, "architecture": Architecture(3, 2, 4, in_channels=3), "in_bytes": 8, "out_bytes": 1}, 1.1),
    "one deep chunk": ({**CARD, "in_chunks": (200, 64, 64), "in_bytes": 8, "out_bytes": 1}, 1.1),
    "more than a block": ({**CARD, "volume": (9999, 9999, 9999), "in_bytes": 8, "out_bytes": 1}, 2.0),
    "slabs under way": ({**CARD, "in_chunks": (1, 64, 64), "out_bytes": 1, "shards": (), "chunks": (4, 4, 4)}, 1.25),
}


@pytest.mark.parametrize(("known", "short"), HEAVY.values(), ids=HEAVY)
def test_memory_is_told_of_all_cores_at_once_as_of_each(known, short):
    """The network's to the value, and a little less than all: else what fits is passed over, or much is tried in vain."""
    asked = request(**known)
    halo, stride = _halo(asked), asked.architecture.stride
    prices = _Prices(asked, halo, [_candidates(asked, axis)[::5] for axis in range(3)])
    network = prices.network_bytes()
    rest = prices.tile_bytes(network)
    for number in range(0, len(network), 7):
        stream = Stream.over(asked.architecture.graph, asked.volume, prices.core(number), halo, stride[0])
        assert network[number] == sweep_values(stream) * asked.value_bytes
        whole = worker_bytes(asked, stream) - PROCESS_BYTES - 16 * weights(stream.graph)
        assert rest[number] <= whole <= short * rest[number]


def test_the_search_looks_at_few_cores_however_large_the_volume():
    """Ten million tiles and ten are chosen alike: one table an axis, and no more entries than for a small volume."""
    for extent in (10**3, 10**6, 10**9):
        asked = request(volume=(extent, extent, extent), architecture=Architecture(3, 3, 16))
        assert all(len(_candidates(asked, axis)) <= 64 for axis in range(3))


@pytest.mark.alone
def test_a_plan_of_ten_million_tiles_takes_moments():
    """Counted by kinds of cores along each axis; listed, ten million tiles would take minutes."""
    started = time.perf_counter()
    tiling = choose_tiling(request(volume=(22_000, 22_000, 22_000), core=(100, 100, 100), workers=64))
    (
        total_multiply_adds(tiling.stream),
        total_voxels_read(tiling.grid),
        total_voxels_decoded(tiling.grid, (64, 64, 64), 64),
    )
    assert time.perf_counter() - started < 5
    assert len(tiling.grid) > 10**7


def test_tiny_volumes_get_one_tile():
    """A picture smaller than the stride is one tile of one stride."""
    for volume in [(1, 1, 1), (3, 2, 1), (1, 17, 5)]:
        tiling = choose_tiling(request(volume=volume, workers=1))
        keeps_every_rule(request(volume=volume, workers=1), tiling)
        assert len(tiling.grid) == 1


# --- 2D networks --------------------------------------------------------------------------------------------------------


@given(st.integers(1, 300), st.integers(1, 100))
def test_a_2d_network_takes_any_core_in_z(depth_of_stack, core_z):
    """Slices are independent: in z there is no stride, no halo, and no wrong place to cut."""
    asked = request(architecture=planar(), volume=(depth_of_stack, 200, 300), core=(core_z, 64, 64))
    tiling = choose_tiling(asked)
    keeps_every_rule(asked, tiling)
    assert tiling.halo == (0, 96, 96)
    assert tiling.grid.core == (core_z, 64, 64)


@given(st.integers(1, 300), st.integers(1, 200))
def test_automatic_2d_tiles_take_whole_input_chunks_in_z(depth_of_stack, in_chunk):
    """Slices that are decoded together are predicted together, where chunks are not unreasonably deep."""
    asked = request(architecture=planar(2), volume=(depth_of_stack, 200, 300), in_chunks=(in_chunk, 64, 64))
    core_z = choose_tiling(asked).grid.core[0]
    if in_chunk > 64:
        assert core_z == depth_of_stack or in_chunk % core_z == 0
    else:
        assert core_z == min(depth_of_stack, in_chunk * max(32 // in_chunk, 1))


@pytest.mark.parametrize("volume", [(2**26, 64, 64), (64, 64, 2**26)])
def test_the_search_does_not_grow_with_the_volume(volume):
    """As long as a volume may be; tables of all its slices took a minute and gigabytes."""
    request = TileRequest(Architecture(3, 3, 32), volume, (16, 64, 64), 2, 1, 4, 16 * 10**9, 4)
    tracemalloc.start()
    try:
        assert prod(choose_tiling(request).grid.core) > 0
        assert tracemalloc.get_traced_memory()[1] < 2**27
    finally:
        tracemalloc.stop()
