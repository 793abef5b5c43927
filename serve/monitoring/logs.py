"""The log of a service: its format, its place, and the trace that each line of a request names."""

from __future__ import annotations

import logging
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from opentelemetry import trace

from raycd.errors import ConfigError
from serve.args import ServeArgs

JSON = "json"


def config(args: ServeArgs) -> dict[str, Any]:
    """Return Ray Serve's `logging_config`. It has no line for a request that went well."""
    return {
        "log_level": "WARNING",
        "enable_access_log": False,  # a line a request takes as long as parsing it
        "encoding": args.log_format.upper(),
        "logs_dir": args.log_dir or None,
    }


def check(args: ServeArgs) -> None:
    """Raise ConfigError where the folder of the log cannot be made or written."""
    if not args.log_dir:
        return
    try:
        Path(args.log_dir).mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=args.log_dir):
            pass
    except OSError as error:
        raise ConfigError(
            "the log cannot be written there",
            got=f"log_dir {args.log_dir}: {error.strerror}",
            expected="a folder that the service may write into",
        ) from error


def name_traces(args: ServeArgs) -> None:
    """Have each line that this process logs for a request name its trace."""
    logging.getLogger("ray.serve").addFilter(_Traces(args.log_format == JSON))


class _Traces(logging.Filter):
    """Adds the ids of the trace: as fields of JSON, or at the beginning of the message."""

    def __init__(self, as_fields: bool) -> None:
        super().__init__()
        self._as_fields = as_fields

    def filter(self, record: logging.LogRecord) -> bool:
        here = trace.get_current_span().get_span_context()
        if here.is_valid:
            trace_id, span_id = (
                trace.format_trace_id(here.trace_id),
                trace.format_span_id(here.span_id),
            )
            if self._as_fields:
                record.trace_id, record.span_id = trace_id, span_id
            else:
                record.msg = f"trace {trace_id}: {record.msg}"
        return True
