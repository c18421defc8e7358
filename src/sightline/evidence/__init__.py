"""All of it on one page: what a run folder holds, as one HTML file and a model card. Imports no torch."""

from .card import card as card
from .collect import Evidence as Evidence
from .collect import collect as collect
from .page import complete as complete
from .page import render as render
