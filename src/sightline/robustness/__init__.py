"""What breaks it? Robust accuracy over eps, adaptive attacks, corruptions, and certified radii."""

from .adaptive import (
    AdaptiveEvaluation,
    EOTClassifier,
    MaskingCheck,
    attack_view,
    check_masking,
    evaluate_adaptive,
    masking_remarks,
    strip_defences,
)
from .attacking import attack_run
from .corruption_benchmark import CorruptionResult, corrupt_run, evaluate_corruptions
from .corruption_kernels import SEVERITIES, Corruption
from .corruptions import CORRUPTIONS
from .robust_accuracy import CurvePoint, RobustCurve, robust_curve
from .smoothing import ABSTAINS, Certificate, certify, predict_smoothed

__all__ = [
    "ABSTAINS",
    "CORRUPTIONS",
    "SEVERITIES",
    "AdaptiveEvaluation",
    "Certificate",
    "Corruption",
    "CorruptionResult",
    "CurvePoint",
    "EOTClassifier",
    "MaskingCheck",
    "RobustCurve",
    "attack_run",
    "attack_view",
    "certify",
    "check_masking",
    "corrupt_run",
    "evaluate_adaptive",
    "evaluate_corruptions",
    "masking_remarks",
    "predict_smoothed",
    "robust_curve",
    "strip_defences",
]
