"""Names of volumes: one path component, unique, and of nothing but where a volume lies."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.names import LONGEST, Place, cleaned, distinct_names, why_no_name


def names(*urls: str) -> list[str]:
    """Names of volumes that are stores of their own."""
    return distinct_names([Place(url, url) for url in urls])


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("/data/brain.ome.zarr", "brain"),
        ("/data/brain.zarr", "brain"),
        ("/data/brain.OME.TIFF", "brain"),
        ("/data/brain.tif", "brain"),
        ("s3://bucket/set/brain 2 (left).zarr", "brain-2-left"),
        ("s3://bucket", "bucket"),
        ("/data/v0.4", "v0.4"),
        ("/data/.zarr", "zarr"),
        ("/data/..zarr", "volume"),
        ("/data/Größe.zarr", "Gr-e"),
        ("/data/out.run.zarr", "out-run"),
        ("/data/-x.zarr", "x"),
    ],
)
def test_a_name_is_the_last_component_without_its_suffix(url, name):
    """What a person would call it; what cannot be in a name becomes a dash."""
    assert names(url) == [name]


def test_volumes_of_one_name_are_told_apart_by_their_folders():
    """The nearest that differ, as many as it takes; both get them, whichever was found first."""
    assert names("/d/a/x.zarr", "/d/b/x.zarr", "/d/b/y.zarr") == ["a-x", "b-x", "y"]
    assert names("/d/1/raw/x.zarr", "/d/2/raw/x.zarr") == ["1-raw-x", "2-raw-x"]
    assert names("s3://one/x.zarr", "s3://two/x.zarr") == ["one-x", "two-x"]


def test_volumes_of_one_folder_are_told_apart_by_their_suffix_or_a_digest():
    """A conversion beside its original; and names that only the characters which names cannot have told apart."""
    assert names("/d/x.zarr", "/d/x.tif") == ["x.zarr", "x.tif"]
    one, other = names("/d/x 1.zarr", "/d/x+1.zarr")
    assert re.fullmatch(r"x-1-[0-9a-f]{12}", one)
    assert one != other


def test_names_that_differ_only_in_case_are_told_apart():
    """On some file systems both are one folder."""
    assert names("/d/a/X.zarr", "/d/b/x.zarr") == ["a-X", "b-x"]


def test_a_longer_name_that_is_another_ones_is_not_given_twice():
    """`a-x` may be a volume's own name, too."""
    assert len({name.lower() for name in names("/d/a/x.zarr", "/d/b/x.zarr", "/d/a-x.zarr")}) == 3


def test_a_volume_in_a_store_is_named_by_the_store_and_its_place():
    """Fields of a plate, datasets of a file; without the plate's name where it is all there is."""
    field = Place("/d/p.zarr/A/1/0", "/d/p.zarr")
    assert distinct_names([field]) == ["p-A-1-0"]
    assert distinct_names([Place(field.url, field.store, alone=True)]) == ["A-1-0"]
    assert distinct_names([Place(field.url, field.store, named="first")]) == ["first-A-1-0"]
    assert distinct_names([field, Place("/e/p.zarr/A/1/0", "/e/p.zarr")]) == ["d-p-A-1-0", "e-p-A-1-0"]


def test_a_given_name_stays_and_others_give_way():
    """What a person wrote is what the folder is called, always."""
    given_one = Place("/d/a/1.zarr", "/d/a/1.zarr", named="x")
    assert distinct_names([Place("/d/b/x.zarr", "/d/b/x.zarr"), given_one]) == ["b-x", "x"]
    with pytest.raises(ValueError, match=r"'/d/a/1.zarr' and '/e' have the same name, 'x'"):
        distinct_names([given_one, Place("/e", "/e", named="X")])


def test_a_name_stays_as_long_as_no_other_volume_would_have_it():
    """What a growing dataset relies on: outputs stay where they are."""
    before = names("/d/a/x.zarr", "/d/b/y.zarr")
    assert names("/d/a/x.zarr", "/d/b/y.zarr", "/d/c/z.zarr", "/e/xx.zarr")[:2] == before


def test_long_names_are_cut_and_stay_apart():
    """A file system takes 255 bytes, and folders beside the volume's have longer names."""
    found = names(f"/d/{'x' * 250}a.zarr", f"/d/{'x' * 250}b.zarr")
    assert len(set(found)) == 2
    assert all(len(name) <= LONGEST for name in found)


PARTS = st.sampled_from(["a", "b", "A", "x.zarr", "X.zarr", "x.tif", "x", "a-x", "x y", "x+y", "a.run", "..", "é"])
URLS = st.lists(st.lists(PARTS, min_size=1, max_size=4).map("/".join).map("/{}".format), unique=True, max_size=12)


@given(URLS, st.randoms())
def test_names_are_distinct_and_independent_of_order(urls, random):
    """Whatever is found, in whatever order a store lists it."""
    found = dict(zip(urls, names(*urls), strict=True))
    assert len({name.lower() for name in found.values()}) == len(urls)
    assert all(why_no_name(name) is None for name in found.values())
    shuffled = random.sample(urls, len(urls))
    assert dict(zip(shuffled, names(*shuffled), strict=True)) == found


@given(st.text())
def test_any_text_can_be_made_a_name(text):
    """So that a refusal can say which."""
    assert why_no_name(cleaned(text)[:LONGEST]) is None


@pytest.mark.parametrize("text", ["", "a/b", "..", ".x", "-x", "a b", "é", "x.run", "x.RUN", "x" * 121, "a\n"])
def test_what_is_no_name_is_refused(text):
    """A name becomes a folder: nothing that leads elsewhere, hides, or is taken for a run directory."""
    assert why_no_name(text)
    assert why_no_name("x" * 120) is None  # the negative control of the longest
