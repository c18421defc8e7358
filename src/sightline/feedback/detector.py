"""The drift detector of a release: its exact, bounded state, and how it advances over the answers of a journal.

Every answer counts once, in the order in which the journal stored it, whatever the number of workers. Bursts are
thinned: of answers to almost equal images from one source within a minute, the first one counts.
"""

import json
import zlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ..errors import JournalError
from ..files import atomic_replace
from ..journal import Reference, SketchRow, decode_sketches
from ..metrics import Bets, ScoreRanks

DETECTOR_FORMAT = 1
"""Version of the state's file; a release reads its own version and every earlier one."""

BURST_SECONDS, BURST_BITS = 60.0, 4
"""Of answers within this time whose hashes differ in at most so many of 64 bits, the first one counts."""

MAX_REMEMBERED_HASHES = 4096
"""Hashes of the last minute that are compared, the newest ones."""


@dataclass(eq=False)
class Detector:
    """Ranks and bets over all answers of one release so far."""

    reference: Reference
    ranks: ScoreRanks
    bets: Bets
    last: int = 0
    """Number of the last sketch that was read."""
    counted: int = 0
    """Answers that counted."""
    thinned: int = 0
    """Answers that were left out as part of a burst."""
    peak: float = 0.0
    """Largest evidence so far, in answers."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Results that are kept with the state: the first comparison, the alarm."""
    recent: deque[tuple[str, float, int]] = field(default_factory=lambda: deque(maxlen=MAX_REMEMBERED_HASHES))
    """Checksum of the source, time and hash of the last answers that counted."""

    @classmethod
    def start(cls, reference: Reference, *, after: int = 0) -> "Detector":
        """A detector that has seen the reference only; answers count after sketch number ``after``."""
        scores = reference.scores(reference.sketches)
        facts = {"since": after}
        return cls(reference, ScoreRanks.of(scores), Bets.start(scores.shape[1]), last=after, facts=facts)

    def advance(self, rows: Sequence[SketchRow]) -> None:
        """Read the next answers, at least one."""
        projected = self.reference.projection.components.shape[1]
        sketches = decode_sketches([row.values for row in rows], len(self.reference.classes), projected)
        counts = np.array([self._counts(row, int(one["hash"])) for row, one in zip(rows, sketches, strict=True)])
        scores = self.reference.scores(sketches[counts])
        for row, score in zip((row for row, one in zip(rows, counts, strict=True) if one), scores, strict=True):
            ties = np.random.default_rng(int(row.id, 16)).random(len(score))  # the same wherever it is counted
            self.bets.bet(self.ranks.add(score, ties))
            self.peak = max(self.peak, self.bets.evidence)
        self.last = rows[-1].number
        self.counted += int(counts.sum())
        self.thinned += int((~counts).sum())

    def _counts(self, row: SketchRow, hash: int) -> bool:
        """Whether an answer counts, as no earlier one of the last minute and source is almost equal."""
        if hash == 0:  # an image too small, or too even, to have a hash
            return True
        while self.recent and self.recent[0][1] < row.at - BURST_SECONDS:
            self.recent.popleft()
        source = f"{zlib.crc32((row.subject or row.source or '').encode()):08x}"  # no names in the state
        near = any((hash ^ one).bit_count() <= BURST_BITS for name, _, one in self.recent if name == source)
        if not near:
            self.recent.append((source, row.at, hash))
        return not near

    def save(self, path: Path) -> None:
        """Write the state, whole or not at all."""
        cells = np.flatnonzero(self.ranks.counts)
        tensors = {
            "cells": cells.astype(np.int64),
            "counts": self.ranks.counts.reshape(-1)[cells],
            "sides": self.bets.sides,
            "log_capital": self.bets.log_capital,
            "detector": self.bets.detector,
        }
        facts = {
            "format": DETECTOR_FORMAT,
            "channels": list(self.reference.channels),
            "reference": fingerprint(self.reference),
            **{name: getattr(self, name) for name in ("last", "counted", "thinned", "peak", "facts")},
            "recent": [[source, at, str(hash)] for source, at, hash in self.recent],
        }
        with atomic_replace(path) as temporary:
            save_file(tensors, temporary, {"sightline": json.dumps(facts, ensure_ascii=False)})

    @classmethod
    def load(cls, path: Path, reference: Reference) -> "Detector":
        """Read what ``save`` wrote; raise JournalError where it is damaged, newer or of another reference."""
        try:
            with safe_open(path, "numpy") as stream:
                facts = json.loads(stream.metadata()["sightline"])
                held = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 no mapping
            if facts["format"] > DETECTOR_FORMAT or facts["reference"] != fingerprint(reference):
                raise ValueError("it is of a newer release of Sightline, or of another reference")
            counts = np.zeros(len(reference.channels) * 256 * 256, np.int32)
            counts[held["cells"]] = held["counts"]
            return cls(
                reference,
                ScoreRanks(counts.reshape(-1, 256, 256)),
                Bets(held["sides"], held["log_capital"], held["detector"]),
                **{name: facts[name] for name in ("last", "counted", "thinned", "peak", "facts")},
                recent=deque(
                    ((source, at, int(hash)) for source, at, hash in facts["recent"]), maxlen=MAX_REMEMBERED_HASHES
                ),
            )
        except (SafetensorError, OSError, KeyError, TypeError, ValueError, IndexError) as error:
            raise JournalError(
                f"The state of the drift detector '{path}' cannot be used: {error}. Start again with: sightline "
                "drift SITE --restart"
            ) from error


def fingerprint(reference: Reference) -> int:
    """A checksum of the sketches of a reference and of its channels."""
    return zlib.crc32(reference.sketches.tobytes(), zlib.crc32("\n".join(reference.channels).encode()))
