"""The errors that Halotile raises on purpose.

    PipelineError
      ConfigError        the YAML cannot be a run
      PlanError          the run cannot fit the volume, the model or the memory
      ModelError         the checkpoint is not what it says, or cannot be exact
      StorageError       a store or run directory is not what the plan says
        BusyError        somebody else writes there now
        ForbiddenError   an object may not be read, or is not there and nobody may know that
      FileError          the system refuses to read or write a file: a full disk, a lost server, permissions
      InferenceError     a tile could not be predicted, or the network returned what it must not
      VerificationError  the output does not cover the plan
      DatasetError       volumes of a dataset failed
      TrainingError      the network does not learn

Each carries one positional string and nothing else: an exception with more arguments does not survive pickling and
would reach the driver as another error. The string says what was asked, what was found, why, and what to do.
"""


class PipelineError(Exception):
    """Base of every error that is raised on purpose; its text is meant for the user."""


class ConfigError(PipelineError):
    """The configuration cannot be a run."""


class PlanError(PipelineError):
    """The run cannot fit the volume, the model or the memory."""


class ModelError(PipelineError):
    """The checkpoint is not what it says, or its network cannot be tiled exactly."""


class StorageError(PipelineError):
    """A store or a run directory is not what the plan says."""


class BusyError(StorageError):
    """Somebody else writes there now: wait, or leave it to them."""


class ForbiddenError(StorageError):
    """A store refuses an object: it may not be read, or it is not there, and who may not list is not told which."""


class FileError(PipelineError):
    """The system refuses to read or write a file of ours; see `durable.in_words`."""


class InferenceError(PipelineError):
    """A tile could not be predicted, or the network returned what it must not."""


class VerificationError(PipelineError):
    """The output does not cover the plan."""


class DatasetError(PipelineError):
    """Volumes of a dataset failed; the others are done."""


class TrainingError(PipelineError):
    """The network does not learn: its loss is no number any more."""


REFUSALS = (ConfigError, PlanError, ModelError, StorageError)
"""Raised before work starts: the command line ends with status 2."""

FINAL = (ConfigError, PlanError, ModelError)
"""Of what was asked, or of the values themselves: no further attempt can succeed."""
