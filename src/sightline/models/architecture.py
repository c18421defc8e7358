"""A network as a value: its name, its arguments, and what was changed since."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import BundleError


@dataclass(frozen=True)
class Architecture:
    """What ``build`` needs to make a network again; all of it JSON."""

    name: str
    """One of ``NETWORKS``."""
    arguments: Mapping[str, Any]
    """``classes``, ``channels``, ``size`` and whatever else the network takes."""
    surgery: tuple[tuple[str, Mapping[str, Any]], ...] = field(default=())
    """(name in ``SURGERY``, arguments), in order."""

    def config(self) -> dict[str, Any]:
        """The same as JSON."""
        return {
            "name": self.name,
            "arguments": dict(self.arguments),
            "surgery": [{"name": name, "arguments": dict(given)} for name, given in self.surgery],
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Architecture":
        """From JSON; raises BundleError where it is not what ``config`` writes."""
        try:
            surgery = tuple((str(item["name"]), dict(item["arguments"])) for item in config["surgery"])
            return cls(str(config["name"]), dict(config["arguments"]), surgery)
        except KeyError as error:
            raise BundleError(f"The architecture has no field {error}.") from error
        except (TypeError, ValueError) as error:
            raise BundleError(f"The architecture cannot be read: {error}.") from error
