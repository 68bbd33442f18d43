// Sends log records by the OpenTelemetry SDK, as an application does, and writes down what it sent.
//
// The destination and the certificates come from the standard OTEL_EXPORTER_OTLP_* variables. What was
// sent is written in OTLP JSON, by this script's own hand: it is the oracle for the daemon's file.

import { writeFileSync } from "node:fs";
import { parseArgs } from "node:util";
import { ROOT_CONTEXT, diag, DiagConsoleLogger, DiagLogLevel, trace } from "@opentelemetry/api";
import { OTLPLogExporter } from "@opentelemetry/exporter-logs-otlp-http";
import { resourceFromAttributes } from "@opentelemetry/resources";
import { BatchLogRecordProcessor, LoggerProvider } from "@opentelemetry/sdk-logs";

const WORDS = ["plain", "naïve", "日本語", "emoji 🐹🚢", 'quote " and \\', "tab\tline\n", "\x00\x1f", "", "e\u0301"];
const INTS = [0, 1, -1, 2 ** 31, -(2 ** 31), Number.MAX_SAFE_INTEGER, Number.MIN_SAFE_INTEGER];
const DOUBLES = [-1.5, 0.1, 5e-324, 2.5e-10, 123456.789];

const RESOURCE = { "service.name": "node-sdk", größe: 1, list: [1, 2] };
const RESOURCE_SCHEMA = "https://opentelemetry.io/schemas/1.30.0";
const SCOPE_ATTRIBUTES = { library: "naïve ✓", count: 3, list: ["a", "b"], ratio: 0.5 };
const SCOPE_SCHEMA = "https://opentelemetry.io/schemas/1.29.0";

/** The OTLP JSON of a value. */
function anyValue(value) {
  if (value === null || value === undefined) return {};
  if (typeof value === "boolean") return { boolValue: value };
  if (typeof value === "string") return { stringValue: value };
  if (typeof value === "number") {
    return Number.isInteger(value) ? { intValue: String(value) } : { doubleValue: value };
  }
  if (value instanceof Uint8Array) return { bytesValue: Buffer.from(value).toString("base64") };
  if (Array.isArray(value)) return { arrayValue: { values: value.map(anyValue) } };
  return { kvlistValue: { values: keyValues(value) } };
}

function keyValues(object) {
  return Object.entries(object).map(([key, value]) => ({ key, value: anyValue(value) }));
}

const pick = (list, number) => list[number % list.length];

/** Every kind of body in turn. */
function body(number) {
  return pick(
    [
      `record ${number} ${pick(WORDS, number)}`,
      pick(INTS, number),
      pick(DOUBLES, number),
      number % 2 === 0,
      Uint8Array.from({ length: number % 64 }, (_, at) => (at * 37 + number) % 256),
      [pick(WORDS, number), pick(INTS, number), pick(DOUBLES, number), true],
      { nested: { list: [1, { deep: pick(WORDS, number) }], empty: {} }, none: [] },
      pick(WORDS, number).repeat(1000),
    ],
    number,
  );
}

/** Ids of the span that record `number` belongs to; every fifth has none. */
function spanContext(number) {
  if (number % 5 === 4) return undefined;
  return {
    traceId: (BigInt(number + 1) * 0x9e3779b97f4a7c15f39cc0605cedc835n % 2n ** 128n).toString(16).padStart(32, "0"),
    spanId: (BigInt(number + 1) * 0x9e3779b97f4a7c15n % 2n ** 64n).toString(16).padStart(16, "0"),
    traceFlags: number % 2,
  };
}

/** Emits one record and gives its OTLP JSON. */
function emit(logger, number) {
  const seconds = 1_700_000_000 + number;
  const attributes = {
    "record.id": `node-${number}`,
    text: pick(WORDS, number + 3),
    count: pick(INTS, number),
    ratio: pick(DOUBLES, number),
    flag: number % 3 === 0,
    strings: WORDS.slice(0, number % 4),
  };
  const span = spanContext(number);
  const content = body(number);
  const severity = 1 + (number % 24);
  const eventName = number % 6 === 0 ? `event ${pick(WORDS, number)}` : undefined;
  logger.emit({
    timestamp: [seconds, 123_456_789],
    observedTimestamp: [seconds, 123_456_790],
    severityNumber: severity,
    severityText: `severity ${severity}`,
    body: content,
    attributes,
    eventName,
    context: span ? trace.setSpanContext(ROOT_CONTEXT, span) : ROOT_CONTEXT,
  });
  return {
    timeUnixNano: `${seconds}123456789`,
    observedTimeUnixNano: `${seconds}123456790`,
    severityNumber: severity,
    severityText: `severity ${severity}`,
    traceId: span?.traceId ?? "",
    spanId: span?.spanId ?? "",
    flags: span?.traceFlags ?? 0,
    body: anyValue(content),
    attributes: keyValues(attributes),
    ...(eventName && { eventName }),
  };
}

const { values: options } = parseArgs({ options: { count: { type: "string" }, sent: { type: "string" } } });
const count = Number(options.count);
// What the exporter fails to send, it only says here.
diag.setLogger(new DiagConsoleLogger(), DiagLogLevel.WARN);
const provider = new LoggerProvider({
  resource: resourceFromAttributes(RESOURCE, { schemaUrl: RESOURCE_SCHEMA }),
  // The queue holds everything: what is measured is the daemon, not what an SDK drops.
  processors: [
    new BatchLogRecordProcessor({ exporter: new OTLPLogExporter(), maxQueueSize: count, scheduledDelayMillis: 100 }),
  ],
});
const full = provider.getLogger("gophership.tests", "1.0", { schemaUrl: SCOPE_SCHEMA, attributes: SCOPE_ATTRIBUTES });
const plain = provider.getLogger("gophership.plain");
const [byFull, byPlain] = [[], []];
for (let number = 0; number < count; number++) {
  const [logger, records] = number % 3 === 0 ? [plain, byPlain] : [full, byFull];
  records.push(emit(logger, number));
}
await provider.forceFlush();
await provider.shutdown();
const scope = { name: "gophership.tests", version: "1.0", attributes: keyValues(SCOPE_ATTRIBUTES) };
const sent = {
  resource: { attributes: keyValues(RESOURCE) },
  schemaUrl: RESOURCE_SCHEMA,
  scopeLogs: [
    { scope, schemaUrl: SCOPE_SCHEMA, logRecords: byFull },
    { scope: { name: "gophership.plain" }, logRecords: byPlain },
  ],
};
writeFileSync(options.sent, JSON.stringify({ resourceLogs: [sent] }));
