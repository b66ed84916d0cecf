"""Every error this project raises on purpose. A message states the value found, the rule it broke and the way
out.

Three outcomes are kept apart everywhere: the model answered wrongly (a reward), the model broke the protocol
(a :class:`models.trajectory.TurnError`, recorded in the trajectory), and we broke (an exception from this
file, which never becomes a reward or a score).
"""


class VLMR3Error(Exception):
    """Base of all our errors; the command line prints its message without a traceback."""

    exit_code = 1


class ConfigError(VLMR3Error):
    """A preset, an override or an argument is wrong; nothing was started."""

    exit_code = 2


class RecordError(VLMR3Error):
    """A question or a rationale record breaks its contract, or a file has an unknown schema version."""


class RowCountError(RecordError):
    """A published set has another number of rows than its authors published; a caller may allow that."""


class RegionError(VLMR3Error):
    """A box or a picture size that geometry cannot work with."""


class EncodingError(VLMR3Error):
    """Token ids, image pads, features or positions disagree."""


class EngineError(VLMR3Error):
    """An inference engine failed or answered outside its contract."""


class RunDirError(VLMR3Error):
    """A run directory is missing, malformed, or belongs to another run."""


class TrainingError(VLMR3Error):
    """Training cannot go on: a loss that is not finite, too many dropped samples, a broken invariant."""


class GuardError(TrainingError):
    """A guard paused the training, for what the last ``num_steps`` steps came to; ``checkpoint`` is the last
    good one, relative to the run directory, empty where there is none."""

    exit_code = 3

    def __init__(self, message: str, *, checkpoint: str = "", num_steps: int = 1) -> None:
        super().__init__(message)
        self.checkpoint = checkpoint
        self.num_steps = num_steps


class ScoringError(VLMR3Error):
    """A scorer or judge failed; the row stays unscored."""


class LaunchError(VLMR3Error):
    """A child process failed, or left no valid ``result.json``."""


class ChildLostError(LaunchError):
    """A child process ended without a reason of its own in ``result.json``: it or a rank of it was killed, or
    it was out of memory, or had a bug of ours."""


class ArtifactError(VLMR3Error):
    """An artifact is missing or its digest differs from its manifest."""


class StoreError(VLMR3Error):
    """An object store refused us, could not be reached, or went on failing."""


class ObjectChangedError(StoreError):
    """An object is no longer what it was when it was found."""


class TrackingError(VLMR3Error):
    """The metrics tracker or the model registry could not be used."""


class GateError(VLMR3Error):
    """A gate said no: data validation, preflight or promotion."""

    exit_code = 3
