import copy
import pickle
import traceback

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import errors
from pipeline.errors import REFUSALS, PipelineError

EVERY = [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, Exception)]
"""All classes of the module, so that a new one is tested by being there."""


@pytest.mark.parametrize("kind", EVERY)
@given(text=st.text())
def test_every_error_survives_pickling(kind, text):
    """Workers raise and the driver reports: an error that cannot be unpickled arrives as another, about pickling."""
    for found in (pickle.loads(pickle.dumps(kind(text))), copy.copy(kind(text))):
        assert type(found) is kind
        assert str(found) == text
        assert found.args == (text,)


@pytest.mark.parametrize("kind", EVERY)
def test_every_error_is_one_that_is_raised_on_purpose(kind):
    """The doors catch one class and print its text; whatever else comes is a defect, and shows its traceback."""
    assert issubclass(kind, PipelineError)
    assert not issubclass(kind, ValueError | OSError | RuntimeError)


@pytest.mark.parametrize("kind", EVERY)
def test_every_error_is_in_the_tree_that_is_drawn(kind):
    """The picture on top of the module is what people read."""
    assert f"{kind.__name__} " in f"{errors.__doc__.replace(chr(10), ' ')} "
    assert kind.__doc__


def test_refusals_come_before_work_and_failures_after():
    """The command ends with status 2 for the former: schedulers must not try those again."""
    assert {kind.__name__ for kind in REFUSALS} == {"ConfigError", "PlanError", "ModelError", "StorageError"}
    assert not issubclass(errors.InferenceError, REFUSALS)
    assert not issubclass(errors.VerificationError, REFUSALS)
    assert not issubclass(PipelineError, REFUSALS)


def test_a_cause_is_kept_for_whoever_debugs():
    """The text is for the user; the chain below it is for us."""
    try:
        try:
            raise OSError("disk full")
        except OSError as cause:
            raise errors.StorageError("Tile 3 could not be written.") from cause
    except errors.StorageError as error:
        told = "".join(traceback.format_exception(error))
    assert "disk full" in told
    assert told.rstrip().endswith("StorageError: Tile 3 could not be written.")
