//! The messages of an `ExportLogsServiceRequest`, as tables of their fields.
//!
//! Source: `opentelemetry/proto/{collector/logs,logs,common,resource}/v1` of
//! <https://github.com/open-telemetry/opentelemetry-proto>.

/// A message.
pub(super) struct Message {
    pub(super) fields: &'static [Field],
    /// At most one of the fields may be there, and it is written even if it has the default value.
    pub(super) is_oneof: bool,
    /// It is what is counted: a log record.
    pub(super) is_record: bool,
}

/// A field of a message.
pub(super) struct Field {
    /// Its number, below 32.
    pub(super) number: u32,
    /// Its name in JSON.
    pub(super) name: &'static str,
    /// Its name in the protocol's definition, which readers of JSON must take as well.
    pub(super) proto_name: &'static str,
    pub(super) form: Form,
    pub(super) is_repeated: bool,
    /// Whether writers name it even if it has the default value, since readers demand it.
    pub(super) is_always_written: bool,
}

/// The most fields that a message has.
pub(super) const FIELDS_MAX: usize = 11;

/// What a field holds.
#[derive(Clone, Copy)]
pub(super) enum Form {
    Text,
    /// Hex digits of so many bytes, or of none.
    Id(usize),
    /// Base64.
    Bytes,
    Bool,
    Double,
    Int32,
    Int64,
    Uint32,
    Fixed32,
    Fixed64,
    Message(&'static Message),
}

impl Message {
    pub(super) fn field(&self, name: &str) -> Option<&'static Field> {
        self.fields
            .iter()
            .find(|field| field.name == name || field.proto_name == name)
    }
}

use Form::{Bool, Bytes, Double, Fixed32, Fixed64, Id, Int32, Int64, Text, Uint32};

pub(super) static REQUEST: Message = message(&[list(
    1,
    "resourceLogs",
    "resource_logs",
    Form::Message(&RESOURCE_LOGS),
)]);

static RESOURCE_LOGS: Message = message(&[
    one(1, "resource", "resource", Form::Message(&RESOURCE)),
    list(2, "scopeLogs", "scope_logs", Form::Message(&SCOPE_LOGS)),
    one(3, "schemaUrl", "schema_url", Text),
]);

static RESOURCE: Message = message(&[
    list(1, "attributes", "attributes", Form::Message(&KEY_VALUE)),
    one(
        2,
        "droppedAttributesCount",
        "dropped_attributes_count",
        Uint32,
    ),
    list(3, "entityRefs", "entity_refs", Form::Message(&ENTITY_REF)),
]);

static ENTITY_REF: Message = message(&[
    always(one(1, "schemaUrl", "schema_url", Text)),
    always(one(2, "type", "type", Text)),
    always(list(3, "idKeys", "id_keys", Text)),
    always(list(4, "descriptionKeys", "description_keys", Text)),
]);

static SCOPE_LOGS: Message = message(&[
    one(1, "scope", "scope", Form::Message(&SCOPE)),
    list(2, "logRecords", "log_records", Form::Message(&LOG_RECORD)),
    one(3, "schemaUrl", "schema_url", Text),
]);

static SCOPE: Message = message(&[
    one(1, "name", "name", Text),
    one(2, "version", "version", Text),
    list(3, "attributes", "attributes", Form::Message(&KEY_VALUE)),
    one(
        4,
        "droppedAttributesCount",
        "dropped_attributes_count",
        Uint32,
    ),
]);

static LOG_RECORD: Message = Message {
    is_record: true,
    ..message(&[
        one(1, "timeUnixNano", "time_unix_nano", Fixed64),
        one(
            11,
            "observedTimeUnixNano",
            "observed_time_unix_nano",
            Fixed64,
        ),
        one(2, "severityNumber", "severity_number", Int32),
        one(3, "severityText", "severity_text", Text),
        one(5, "body", "body", Form::Message(&ANY_VALUE)),
        list(6, "attributes", "attributes", Form::Message(&KEY_VALUE)),
        one(
            7,
            "droppedAttributesCount",
            "dropped_attributes_count",
            Uint32,
        ),
        one(8, "flags", "flags", Fixed32),
        one(9, "traceId", "trace_id", Id(16)),
        one(10, "spanId", "span_id", Id(8)),
        one(12, "eventName", "event_name", Text),
    ])
};

static KEY_VALUE: Message = message(&[
    always(one(1, "key", "key", Text)),
    one(2, "value", "value", Form::Message(&ANY_VALUE)),
    one(3, "keyStrindex", "key_strindex", Int32),
]);

static ANY_VALUE: Message = Message {
    is_oneof: true,
    ..message(&[
        one(1, "stringValue", "string_value", Text),
        one(2, "boolValue", "bool_value", Bool),
        one(3, "intValue", "int_value", Int64),
        one(4, "doubleValue", "double_value", Double),
        one(5, "arrayValue", "array_value", Form::Message(&ARRAY)),
        one(6, "kvlistValue", "kvlist_value", Form::Message(&KEY_VALUES)),
        one(7, "bytesValue", "bytes_value", Bytes),
        one(8, "stringValueStrindex", "string_value_strindex", Int32),
    ])
};

static ARRAY: Message = message(&[always(list(
    1,
    "values",
    "values",
    Form::Message(&ANY_VALUE),
))]);

static KEY_VALUES: Message = message(&[always(list(
    1,
    "values",
    "values",
    Form::Message(&KEY_VALUE),
))]);

const fn message(fields: &'static [Field]) -> Message {
    assert!(fields.len() <= FIELDS_MAX, "FIELDS_MAX is too small");
    Message {
        fields,
        is_oneof: false,
        is_record: false,
    }
}

const fn one(number: u32, name: &'static str, proto_name: &'static str, form: Form) -> Field {
    Field {
        number,
        name,
        proto_name,
        form,
        is_repeated: false,
        is_always_written: false,
    }
}

const fn list(number: u32, name: &'static str, proto_name: &'static str, form: Form) -> Field {
    Field {
        is_repeated: true,
        ..one(number, name, proto_name, form)
    }
}

const fn always(mut field: Field) -> Field {
    field.is_always_written = true;
    field
}
