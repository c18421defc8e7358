"""Every error a user can meet, as one tree; each message says what to do.

    SightlineError                 exit 2: the user can fix it
     ├── ChoiceError               a name nobody knows ("did you mean ...")
     ├── RecipeError               a field with an impossible value
     ├── DataError                 data that cannot be used as they are
     │    └── ImageError           one image that cannot be read; a row in a list, never a crash
     ├── BundleError               a classifier folder that cannot be trusted or understood
     ├── GradientError             a gradient asked of a classifier that has none
     ├── OutputError               a place that cannot be written, or already holds something
     ├── TrainingError             training that cannot go on
     ├── ReleaseError              a release that is not there, damaged, or cannot be made
     ├── KeyRefused                a key that is wrong, expired or not allowed this
     ├── JournalError              a journal that cannot be opened, or asked for what it does not know
     ├── ServiceError              a service that does not answer, or refuses
     └── Interrupted               exit 130: stopped by the user, state saved

Messages are one sentence that names the file or field, followed by the remedy.
"""


class SightlineError(Exception):
    """The root: the message is written for the user and needs no traceback."""

    exit_code = 2


class ChoiceError(SightlineError):
    """A name that is not in its family."""


class RecipeError(SightlineError):
    """A field of a recipe with an impossible or unknown value."""


class DataError(SightlineError):
    """Data that cannot be used as they are."""


class ImageError(DataError):
    """One image that cannot be read; verbs list it and carry on."""


class BundleError(SightlineError):
    """A bundle that is damaged, unsafe or newer than this release."""


class GradientError(SightlineError):
    """A gradient asked of a classifier that cannot be differentiated."""


class OutputError(SightlineError):
    """A place that cannot be written, or already holds something."""


class TrainingError(SightlineError):
    """Training that cannot go on; the last good weights are kept."""


class ReleaseError(SightlineError):
    """A release that is not there, is damaged, or cannot be made."""


class AuthError(SightlineError):
    """A key that is wrong, expired, or not allowed what it was used for."""


class JournalError(SightlineError):
    """A journal that cannot be opened, or was asked for what it does not hold."""


class ServiceError(SightlineError):
    """A service that does not answer, refuses, or cannot be started."""


class WorkerLostError(TrainingError):
    """A process of a run in several processes ended, so all of them stopped."""

    def __init__(self, text: str = "A process of this run was lost, so all of them stopped.") -> None:
        super().__init__(text)


class RequirementNotMet(SightlineError):
    """A requirement, a gate or a parity check said no."""

    exit_code = 3


class Interrupted(SightlineError):
    """Stopped by the user; the state is saved and the run can be resumed."""

    exit_code = 130
