"""The world answers: drift of what a service sees, and what a person should look at.

``examine_drift`` says whether the images of a service are still those its release was tested on.
"""

from .drift import DEFAULT_PROMISE, ChannelChange, DriftReport, examine_drift, read_drift

__all__ = ["DEFAULT_PROMISE", "ChannelChange", "DriftReport", "examine_drift", "read_drift"]
