"""What docs/datasets.md says to readers, done."""

import re

import numpy as np
import pytest
import zarr

from pipeline.outputs.rundir import RunDirectory
from pipeline.publishing.publication import open_publication
from tests.conftest import ROOT
from tests.storage.publishing_cases import NAME, fingerprint

SNIPPETS = re.findall(r"```python\n(.*?)```", (ROOT / "docs/datasets.md").read_text(), re.DOTALL)


def published(publication, number: int) -> None:
    """Publish an image of one value."""
    version = fingerprint(number)
    image = publication.image(version)
    image.mkdir(parents=True)
    said = {"halotile": {"fingerprint": version, "state": "complete"}}
    group = zarr.create_group(str(image), zarr_format=3, attributes=said)
    group.create_array("0", data=np.full((4, 5, 6), number, "uint8"), chunks=(4, 5, 3))
    directory = RunDirectory(image)
    directory.path.mkdir()
    directory.write_json(directory.verification_path, {"fingerprint": version, "complete": True})
    publication.publish(version, {})


def read_as_said(snippet: str, output: str):
    """Run a snippet of the page for another output; gives the array that it opens."""
    names: dict = {}
    exec(snippet.replace("s3://bucket/DATASET/NAME", output).replace("DATASET/NAME", output), names)
    return names["volume"]


@pytest.mark.parametrize("kind", ["link", "pointer"])
def test_a_reader_that_does_as_the_page_says_stays_at_the_version_that_it_resolved(kind, tmp_path, request):
    """The page's own lines: a switch between two reads changes nothing for who has begun."""
    output = f"{request.getfixturevalue('bucket')}/em/{NAME}" if kind == "pointer" else str(tmp_path / NAME)
    publication = open_publication(output, NAME, str(tmp_path / "staging"))
    snippet = SNIPPETS[kind == "pointer"]
    published(publication, 1)
    first = read_as_said(snippet, output)
    assert (first[:, :, :3] == 1).all()
    published(publication, 2)
    assert (first[:, :, 3:] == 1).all()
    assert (read_as_said(snippet, output)[...] == 2).all()
