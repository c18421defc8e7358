"""Curves, matrices, diagrams and contact sheets, as Pillow images in one style.

Imports no torch; Pillow and matplotlib are imported when a picture is drawn.
"""

from .contact_sheets import contact_sheet, data_url, encode_png, shorten_text, thumbnail
from .fonts import load_font, make_legible
from .plots import (
    plot_candidates,
    plot_confusion_matrix,
    plot_groups,
    plot_history,
    plot_learning_curve,
    plot_lr_finder,
    plot_reliability,
    plot_risk_coverage,
    plot_roc,
    plot_task_accuracy,
)
from .style import PALETTE, house_style, make_panels, render_figure, shorten_label
