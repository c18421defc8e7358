"""What breaks it? Attacks over eps, and whether to believe what they say."""

from .corruptions import CORRUPTIONS
from .curves import Curve, Point, robust_curve
from .examine import attack
from .knowing import Attackers, Averaged, attackers, known, undefended
from .levels import SEVERITIES
from .masking import Check, check_masking, masking_remarks
from .opening import Subject, opened, sampled
from .shift import Shift, corrupt, shifted
from .smoothing import ABSTAINS, Certificate, certify, smoothed

__all__ = [
    "ABSTAINS",
    "CORRUPTIONS",
    "SEVERITIES",
    "Attackers",
    "Averaged",
    "Certificate",
    "Check",
    "Curve",
    "Point",
    "Shift",
    "Subject",
    "attack",
    "attackers",
    "certify",
    "check_masking",
    "corrupt",
    "known",
    "masking_remarks",
    "opened",
    "robust_curve",
    "sampled",
    "shifted",
    "smoothed",
    "undefended",
]
