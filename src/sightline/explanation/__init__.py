"""Why this answer? Where the evidence lies, what would change it, what it is like, and whether to believe that."""

from .attention import AttentionRollout
from .cam import GradCam, GradCamPlusPlus, choose_layers
from .counterfactual import Counterfactuals, counterfactual
from .examine import EXPLAINERS, Explanation, explain, usual
from .explainer import Explainer, evidence, heat
from .faithfulness import Curves, Faithfulness, curves, faithfulness, randomisation, similarity
from .gradients import IntegratedGradients, Saliency, SmoothGrad
from .neighbours import Gallery, Neighbours, features_of, gallery
from .perturbation import Occlusion, Rise
from .runs import explain_answers, explain_change, explain_images, explain_wish, explanation_sheet
from .visualise import Visions, visualise

__all__ = [
    "EXPLAINERS",
    "AttentionRollout",
    "Counterfactuals",
    "Curves",
    "Explainer",
    "Explanation",
    "Faithfulness",
    "Gallery",
    "GradCam",
    "GradCamPlusPlus",
    "IntegratedGradients",
    "Neighbours",
    "Occlusion",
    "Rise",
    "Saliency",
    "SmoothGrad",
    "Visions",
    "choose_layers",
    "counterfactual",
    "curves",
    "evidence",
    "explain",
    "explain_answers",
    "explain_change",
    "explain_images",
    "explain_wish",
    "explanation_sheet",
    "faithfulness",
    "features_of",
    "gallery",
    "heat",
    "randomisation",
    "similarity",
    "usual",
    "visualise",
]
