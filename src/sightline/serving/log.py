"""The service's log: one JSON object a line on stderr. Keys, subjects and images never come here."""

import json
import sys
import threading
from datetime import UTC, datetime
from typing import Any

_LOG_LOCK = threading.Lock()


def log_event(event: str, **facts: Any) -> None:
    """Write one line: when, what, and what belongs to it."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    line = json.dumps({"time": now, "event": event, **facts}, ensure_ascii=False, default=str)
    with _LOG_LOCK:
        sys.stderr.write(line + "\n")
        sys.stderr.flush()
