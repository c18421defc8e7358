"""Curves, matrices, diagrams and contact sheets, as Pillow images in one house look.

Imports no torch; Pillow and matplotlib come in only when a picture is drawn.
"""

from .canvas import PALETTE as PALETTE
from .canvas import cut as cut
from .canvas import drawn as drawn
from .canvas import house_look as house_look
from .canvas import panels as panels
from .diagrams import confusion as confusion
from .diagrams import curves as curves
from .diagrams import entrants as entrants
from .diagrams import learning_curve as learning_curve
from .diagrams import rates as rates
from .diagrams import reliability as reliability
from .diagrams import roc as roc
from .sheets import contact_sheet as contact_sheet
from .sheets import data_url as data_url
from .sheets import font_of as font_of
from .sheets import png as png
from .sheets import shortened as shortened
from .sheets import thumbnail as thumbnail
