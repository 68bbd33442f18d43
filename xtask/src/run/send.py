"""Sends one log record; everything about the way there comes from the OTEL_EXPORTER_OTLP_* variables."""

import sys
import time

from opentelemetry._logs import SeverityNumber
from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor

provider = LoggerProvider()
provider.add_log_record_processor(BatchLogRecordProcessor(OTLPLogExporter()))
provider.get_logger("send").emit(
    timestamp=time.time_ns(),
    severity_number=SeverityNumber.INFO,
    severity_text="INFO",
    body=" ".join(sys.argv[1:]) or "hello",
)
provider.shutdown()
