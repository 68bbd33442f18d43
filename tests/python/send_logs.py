"""Sends log records by the OpenTelemetry SDK, as an application does, and writes down what it sent.

The destination and the certificates come from the standard OTEL_EXPORTER_OTLP_* variables. What was
sent is written in OTLP JSON, by this script's own hand: it is the oracle for the daemon's file.
"""

import argparse
import base64
import json
import logging
import math
import random
import sys
import time
import warnings

from opentelemetry import trace
from opentelemetry._logs import SeverityNumber
from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter as GrpcExporter
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter as HttpExporter
from opentelemetry.sdk._logs import LoggerProvider, LogRecordDroppedAttributesWarning
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.resources import Resource

WORDS = ["plain", "naïve", "日本語", "emoji 🐹🚢", 'quote " and \\', "tab\tline\n", "\x00\x1f", "", "ﷺ", "e\u0301"]
INTS = [0, 1, -1, 2**31, -(2**31), 2**53 + 1, 2**63 - 1, -(2**63)]
FLOATS = [math.nan, math.inf, -math.inf, 0.0, 1.0, -1.5, 0.1, 1e300, 5e-324, 1.7976931348623157e308, -2.5e-10]
NOT_FINITE = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}
# Of a record; what is beyond it, the SDK drops from the front, and counts.
ATTRIBUTES_MAX = 128
RESOURCE_SCHEMA = "https://opentelemetry.io/schemas/1.30.0"
SCOPE_SCHEMA = "https://opentelemetry.io/schemas/1.29.0"
SCOPE_ATTRIBUTES = {"library": "naïve ✓", "count": 3, "list": ["a", "b"], "ratio": 0.5}
SEVERITIES = [s for s in SeverityNumber if s is not SeverityNumber.UNSPECIFIED]


def any_value(value):
    """The OTLP JSON of a value."""
    match value:
        case None:
            return {}
        case bool():
            return {"boolValue": value}
        case str():
            return {"stringValue": value}
        case int():
            return {"intValue": str(value)}
        case float():
            return {"doubleValue": value if math.isfinite(value) else NOT_FINITE[str(value)]}
        case bytes():
            return {"bytesValue": base64.b64encode(value).decode()}
        case list() | tuple():
            return {"arrayValue": {"values": [any_value(v) for v in value]}}
        case dict():
            return {"kvlistValue": {"values": key_values(value)}}
    raise TypeError(value)


def key_values(mapping):
    return [{"key": key, "value": any_value(value)} for key, value in mapping.items()]


def scalar(rng):
    return rng.choice(
        [
            rng.choice(WORDS) + str(rng.random()),
            rng.choice(INTS),
            rng.choice(FLOATS),
            rng.choice([True, False]),
            rng.randbytes(rng.randrange(40)),
        ]
    )


def body(rng, number):
    """Every kind of body in turn."""
    kinds = [
        lambda: f"record {number} {rng.choice(WORDS)}",
        lambda: rng.choice(INTS),
        lambda: rng.choice(FLOATS),
        lambda: number % 2 == 0,
        lambda: rng.randbytes(rng.randrange(64)),
        lambda: [scalar(rng) for _ in range(rng.randrange(5))],
        lambda: {f"key {i} {rng.choice(WORDS)}": scalar(rng) for i in range(rng.randrange(5))},
        lambda: {"nested": {"list": [1, {"deep": scalar(rng)}, [scalar(rng)]], "empty": {}}, "none": []},
        lambda: rng.choice(WORDS) * 1000,
        lambda: None,
    ]
    return kinds[number % len(kinds)]()


def attributes(rng, number):
    """Every fiftieth record has more than the SDK takes."""
    more = {f"more {i}": i for i in range(ATTRIBUTES_MAX if number % 50 == 0 else 0)}
    return more | {
        "record.id": f"python-{number}",
        "text": rng.choice(WORDS),
        "count": rng.choice(INTS),
        "ratio": rng.choice(FLOATS),
        "flag": number % 3 == 0,
        "strings": [rng.choice(WORDS) for _ in range(number % 4)],
        "ints": [rng.choice(INTS) for _ in range(number % 3)],
    }


def span_context(rng, number):
    """Ids of the span that record `number` belongs to; every fifth has none."""
    if number % 5 == 4:
        return None
    return trace.SpanContext(
        trace_id=rng.getrandbits(128) | 1,
        span_id=rng.getrandbits(64) | 1,
        is_remote=False,
        trace_flags=trace.TraceFlags(number % 2),
    )


def emit(logger, rng, number):
    """Emits one record and gives its OTLP JSON."""
    severity = SEVERITIES[number % len(SEVERITIES)]
    sent = {
        "timeUnixNano": str(time.time_ns()),
        "observedTimeUnixNano": str(time.time_ns()),
        "severityNumber": severity.value,
        "severityText": severity.name if number % 7 else "custom ✓",
        "traceId": "",
        "spanId": "",
        "flags": 0,
    }
    content, attrs = body(rng, number), attributes(rng, number)
    span = span_context(rng, number)
    context = trace.set_span_in_context(trace.NonRecordingSpan(span or trace.INVALID_SPAN_CONTEXT))
    if span:
        sent |= {
            "traceId": f"{span.trace_id:032x}",
            "spanId": f"{span.span_id:016x}",
            "flags": int(span.trace_flags),
        }
    if number % 6 == 0:
        sent["eventName"] = f"event {rng.choice(WORDS)}"
    logger.emit(
        timestamp=int(sent["timeUnixNano"]),
        observed_timestamp=int(sent["observedTimeUnixNano"]),
        context=context,
        severity_number=severity,
        severity_text=sent["severityText"],
        body=content,
        attributes=attrs,
        event_name=sent.get("eventName"),
    )
    dropped = max(len(attrs) - ATTRIBUTES_MAX, 0)
    return sent | {
        "body": any_value(content),
        "attributes": key_values(attrs)[dropped:],
        "droppedAttributesCount": dropped,
    }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--protocol", choices=["grpc", "http"], default="grpc")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--sent", required=True, help="file to write what was sent to")
    arguments = parser.parse_args()

    exporter = {"grpc": GrpcExporter, "http": HttpExporter}[arguments.protocol]()
    # The SDK warns, in both ways, when it drops what is too much, as it shall here.
    logging.getLogger("opentelemetry.attributes").setLevel(logging.ERROR)
    warnings.simplefilter("ignore", LogRecordDroppedAttributesWarning)
    resource = Resource.create({"service.name": "python-sdk", "größe": 1, "list": [1, 2]}, RESOURCE_SCHEMA)
    provider = LoggerProvider(resource=resource)
    # The queue holds everything: what is measured is the daemon, not what an SDK drops.
    provider.add_log_record_processor(
        BatchLogRecordProcessor(exporter, max_queue_size=arguments.count, schedule_delay_millis=100)
    )
    full = provider.get_logger("gophership.tests", "1.0", SCOPE_SCHEMA, SCOPE_ATTRIBUTES)
    plain = provider.get_logger("gophership.plain")
    rng = random.Random(arguments.seed)
    by_full, by_plain = [], []
    for number in range(arguments.count):
        logger, records = (plain, by_plain) if number % 3 == 0 else (full, by_full)
        records.append(emit(logger, rng, number))
    scope = {"name": "gophership.tests", "version": "1.0", "attributes": key_values(SCOPE_ATTRIBUTES)}
    sent = {
        "resource": {"attributes": key_values(resource.attributes)},
        "schemaUrl": RESOURCE_SCHEMA,
        "scopeLogs": [
            {"scope": scope, "schemaUrl": SCOPE_SCHEMA, "logRecords": by_full},
            {"scope": {"name": "gophership.plain"}, "logRecords": by_plain},
        ],
    }
    if not provider.force_flush(60_000):
        sys.exit("the records could not be flushed")
    provider.shutdown()
    with open(arguments.sent, "w", encoding="utf-8") as file:
        json.dump({"resourceLogs": [sent]}, file)


if __name__ == "__main__":
    main()
