"""Why this answer? Attribution maps and their tests, counterfactuals, feature visualisation, nearest images."""

from .attention import AttentionRollout
from .base import Explainer, reduce_channels, to_heat_map
from .cam import GradCam, GradCamPlusPlus, choose_cam_layers
from .counterfactual import Counterfactuals, find_counterfactuals
from .explaining import counterfactual_run, draw_explanations, explain_answers_run, explain_run, visualise_run
from .explanation import EXPLAINERS, Explanation, default_explainer, explain
from .faithfulness import (
    Faithfulness,
    FaithfulnessCurves,
    compare_with_shuffled,
    measure_curves,
    measure_faithfulness,
    rank_correlation,
)
from .feature_visualisation import FeatureVisualisation, visualise_features
from .figures import overlay_heat
from .gradients import IntegratedGradients, Saliency, SmoothGrad
from .neighbours import Gallery, Neighbours, build_gallery
from .perturbation import Occlusion, Rise

__all__ = [
    "EXPLAINERS",
    "AttentionRollout",
    "Counterfactuals",
    "Explainer",
    "Explanation",
    "Faithfulness",
    "FaithfulnessCurves",
    "FeatureVisualisation",
    "Gallery",
    "GradCam",
    "GradCamPlusPlus",
    "IntegratedGradients",
    "Neighbours",
    "Occlusion",
    "Rise",
    "Saliency",
    "SmoothGrad",
    "build_gallery",
    "choose_cam_layers",
    "compare_with_shuffled",
    "counterfactual_run",
    "default_explainer",
    "draw_explanations",
    "explain",
    "explain_answers_run",
    "explain_run",
    "find_counterfactuals",
    "measure_curves",
    "measure_faithfulness",
    "overlay_heat",
    "rank_correlation",
    "reduce_channels",
    "to_heat_map",
    "visualise_features",
    "visualise_run",
]
