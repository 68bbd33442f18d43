//! JSON values as YAML in block style.

use std::fmt::Write;

use serde_json::Value;

/// One document, without markers. Strings that could be read as anything else are quoted as in
/// JSON, which YAML 1.2 contains.
#[must_use]
pub fn emit(value: &Value) -> String {
    let mut out = String::new();
    match value {
        Value::Object(map) if !map.is_empty() => mapping(&mut out, map, 0, true),
        Value::Array(items) if !items.is_empty() => sequence(&mut out, items, 0),
        scalar => out = format!("{}\n", inline(scalar)),
    }
    out
}

/// `indented`: whether the first key needs its indentation, which a `- ` before it replaces.
fn mapping(out: &mut String, map: &serde_json::Map<String, Value>, depth: usize, indented: bool) {
    for (index, (key, value)) in map.iter().enumerate() {
        if indented || index > 0 {
            indent(out, depth);
        }
        out.push_str(&string(key));
        out.push(':');
        nested(out, value, depth);
    }
}

fn nested(out: &mut String, value: &Value, depth: usize) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            out.push('\n');
            mapping(out, map, depth + 1, true);
        }
        Value::Array(items) if !items.is_empty() => {
            out.push('\n');
            sequence(out, items, depth + 1);
        }
        scalar => {
            // Writing to a string can't fail.
            let _ = writeln!(out, " {}", inline(scalar));
        }
    }
}

fn sequence(out: &mut String, items: &[Value], depth: usize) {
    for item in items {
        indent(out, depth);
        match item {
            Value::Object(map) if !map.is_empty() => {
                out.push_str("- ");
                mapping(out, map, depth + 1, false);
            }
            other => {
                out.push('-');
                nested(out, other, depth);
            }
        }
    }
}

fn indent(out: &mut String, depth: usize) {
    out.extend(std::iter::repeat_n("  ", depth));
}

fn inline(value: &Value) -> String {
    match value {
        Value::String(text) => string(text),
        // Empty collections are flow style; numbers, booleans and null are as in JSON.
        other => other.to_string(),
    }
}

/// Plain only where no reader can take it for a number, a date, a boolean or null.
fn string(text: &str) -> String {
    let word = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'/' | b'.');
    let plain = text.bytes().next().is_some_and(|b| b.is_ascii_alphabetic())
        && text.bytes().all(word)
        && !RESERVED.contains(&text.to_ascii_lowercase().as_str());
    if plain {
        text.to_owned()
    } else {
        Value::from(text).to_string()
    }
}

/// What YAML 1.1 readers take for booleans and null.
const RESERVED: [&str; 9] = ["true", "false", "yes", "no", "on", "off", "null", "y", "n"];

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn documents_are_block_style_with_quotes_where_needed() {
        let value = json!({
            "a": "green", "b": null, "c": [], "d": {"e": [1, {"f": "no", "g": "x: y"}], "h": true},
            "i": "", "j": "2026-01-01T00:00:00Z",
        });
        let expected = "\
a: green
b: null
c: []
d:
  e:
    - 1
    - f: \"no\"
      g: \"x: y\"
  h: true
i: \"\"
j: \"2026-01-01T00:00:00Z\"
";
        // Keys come sorted here, as serde_json's default map does it.
        assert_eq!(emit(&value), expected);
    }

    #[test]
    fn single_values_and_nested_sequences_are_documents_too() {
        assert_eq!(emit(&json!([])), "[]\n");
        assert_eq!(emit(&json!("a")), "a\n");
        assert_eq!(emit(&json!([[1, 2], []])), "-\n  - 1\n  - 2\n- []\n");
    }
}
