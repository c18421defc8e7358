"""Every error a user can meet, as one tree; each message says what to do.

    SightlineError                 exit 2: the user can fix it
     ├── ChoiceError               an unknown name ("did you mean ...")
     ├── RecipeError               a field with an impossible value
     ├── DataError                 data that cannot be used
     │    └── ImageError           one image that cannot be read; a row in a list, never a crash
     ├── BundleError               a classifier folder that is damaged, unsafe or too new
     ├── GradientError             a gradient of a classifier that has none
     ├── OutputError               a place that cannot be written, or already holds something
     ├── TrainingError             training that cannot continue
     │    └── DivergenceError      a loss that is not finite, or an accuracy that is lost
     ├── ReleaseError              a release that is missing, damaged, or cannot be made
     ├── AuthError                 a key that is wrong, expired or not allowed this
     ├── JournalError              a journal that cannot be opened, or lacks what was requested
     ├── ServiceError              a service that does not respond, or refuses
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
    """Data that cannot be used."""


class ImageError(DataError):
    """One image that cannot be read; verbs list it and carry on."""


class BundleError(SightlineError):
    """A bundle that is damaged, unsafe or newer than this release."""


class GradientError(SightlineError):
    """A gradient of a classifier that cannot be differentiated."""


class OutputError(SightlineError):
    """A place that cannot be written, or already holds something."""


class TrainingError(SightlineError):
    """Training that cannot continue; the last good weights are kept."""


class DivergenceError(TrainingError):
    """A loss that is not finite, or an accuracy that is lost: ``what`` says which, the message also what to try."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what} Try a lower --lr (a tenth), a longer --warmup, or --precision float32.")
        self.what = what


class ReleaseError(SightlineError):
    """A release that is missing, is damaged, or cannot be made."""


class AuthError(SightlineError):
    """A key that is wrong, expired, or not permitted for this use."""


class JournalError(SightlineError):
    """A journal that cannot be opened, or lacks what was requested."""


class ServiceError(SightlineError):
    """A service that does not respond, refuses, or cannot be started."""


class WorkerLostError(TrainingError):
    """A process of a run in several processes ended, so all of them stopped."""

    def __init__(self, text: str = "A process of this run was lost, so all of them stopped.") -> None:
        super().__init__(text)


class RequirementNotMet(SightlineError):
    """A requirement, a gate or a parity check failed."""

    exit_code = 3


class Interrupted(SightlineError):
    """Stopped by the user; the state is saved and the run can be resumed."""

    exit_code = 130
