//! What the list of keys says of itself: the commented default configuration, the reference and the JSON schema.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use super::{
    formats::Shape,
    schema::{self, Entry, Fallback, KEYS},
};

const REFERENCE_BEGINS: &str = "\
# Configuration

Every key there is. `gophership config default` prints them all as a file with comments, `config check` lists all that is wrong
with a file, `config show` what holds and where it was written, `config schema` a JSON schema for editors. An environment
variable overrides a key outside of lists: `GOPHERSHIP_VAULT__DIR` is `vault.dir`; lists are separated by commas.

This file is generated: `GOPHERSHIP_BLESS=1 cargo test -p gophership --test config`.
";

/// Keys and sections by their last name, in the order of [`KEYS`].
struct Section {
    children: Vec<(&'static str, Node)>,
}

enum Node {
    Key(&'static Entry),
    Section(Section),
    /// A sequence of such sections.
    List(Section),
}

impl Section {
    fn all() -> Self {
        let mut root = Self {
            children: Vec::new(),
        };
        for entry in KEYS {
            root.insert(entry.path, entry);
        }
        root
    }

    fn insert(&mut self, path: &'static str, entry: &'static Entry) {
        let Some((name, rest)) = path.split_once('.') else {
            self.children.push((path, Node::Key(entry)));
            return;
        };
        let (name, is_list) = match name.strip_suffix("[]") {
            Some(name) => (name, true),
            None => (name, false),
        };
        if self.children.last().is_none_or(|(last, _)| *last != name) {
            let section = Self {
                children: Vec::new(),
            };
            let node = match is_list {
                true => Node::List(section),
                false => Node::Section(section),
            };
            self.children.push((name, node));
        }
        if let Some((_, Node::Section(section) | Node::List(section))) = self.children.last_mut() {
            section.insert(rest, entry);
        }
    }
}

/// The configuration that holds where nothing is written, as YAML with what each key means. What has no default is a
/// comment, and so are destinations, of which there must be one.
#[must_use]
pub fn default_yaml() -> String {
    let mut out = "# GopherShip's configuration, with every key at its default. Keys in comments have none.\n\
                   # Sizes: B, KiB, MiB, GiB, TiB; times: us, ms, s, m, h; shares: 0% to 100%.\n"
        .to_owned();
    for (name, node) in &Section::all().children {
        out.push('\n');
        let mut lines = Lines {
            out: &mut out,
            comment_from: None,
        };
        lines.node(name, node, 0);
    }
    out
}

/// Lines of YAML; where `comment_from` is set, comments that begin at that depth.
struct Lines<'a> {
    out: &'a mut String,
    comment_from: Option<usize>,
}

impl Lines<'_> {
    fn node(&mut self, name: &str, node: &Node, depth: usize) {
        match node {
            Node::Section(section) => {
                self.line(depth, &format!("{name}:"));
                for (name, node) in &section.children {
                    self.node(name, node, depth + 1);
                }
            }
            Node::List(section) => {
                self.comment_from = Some(depth);
                self.line(depth, &format!("{name}:"));
                self.line(depth + 1, "-");
                for (name, node) in &section.children {
                    self.node(name, node, depth + 2);
                }
                self.comment_from = None;
            }
            Node::Key(entry) => {
                self.line(depth, &format!("# {}", entry.doc.trim()));
                match entry.fallback {
                    Fallback::Default(text) => {
                        let value = written(entry.shape, text);
                        self.line(depth, &format!("{name}: {value}"));
                    }
                    Fallback::Unset | Fallback::Required if self.comment_from.is_none() => {
                        self.line(depth, &format!("# {name}:"));
                    }
                    Fallback::Unset | Fallback::Required => {
                        self.line(depth, &format!("{name}:"));
                    }
                }
            }
        }
    }

    fn line(&mut self, depth: usize, text: &str) {
        let indent = |depth| "  ".repeat(depth);
        // Writing to a string can't fail.
        let _ = match self.comment_from {
            None => writeln!(self.out, "{}{text}", indent(depth)),
            Some(from) => writeln!(self.out, "{}# {}{text}", indent(from), indent(depth - from)),
        };
    }
}

/// A default as it is written in YAML.
fn written(shape: Shape, text: &str) -> String {
    let quoted = |text: &str| {
        let is_plain = |char: char| char.is_ascii_alphanumeric() || "/._%-".contains(char);
        // Octal and the like must stay text.
        if text.chars().all(is_plain) && !text.starts_with('0') && !text.is_empty() {
            text.to_owned()
        } else {
            format!("{text:?}")
        }
    };
    let items = || text.split(',').filter(|item| !item.is_empty()).map(quoted);
    match shape {
        Shape::Scalar => quoted(text),
        Shape::List | Shape::OneOrList => format!("[{}]", items().collect::<Vec<_>>().join(", ")),
        Shape::Map => "{}".to_owned(),
    }
}

/// The reference of all keys, as Markdown: a table for each section. It is `docs/configuration.md`.
#[must_use]
pub fn reference() -> String {
    let mut out = REFERENCE_BEGINS.to_owned();
    let mut section = "";
    for entry in KEYS {
        let (top, _) = entry.path.split_once('.').unwrap_or((entry.path, ""));
        if top != section {
            section = top;
            let _ = write!(
                out,
                "\n## {section}\n\n| key | default | what it is | values |\n|---|---|---|---|\n"
            );
        }
        let default = match entry.fallback {
            Fallback::Default("") => match entry.shape {
                Shape::Map => "`{}`".to_owned(),
                Shape::Scalar | Shape::List | Shape::OneOrList => "`[]`".to_owned(),
            },
            Fallback::Default(text) => format!("`{text}`"),
            Fallback::Unset => "unset".to_owned(),
            Fallback::Required => "must be set".to_owned(),
        };
        let cell = |text: &str| text.trim().replace('|', "\\|").replace('\n', " ");
        let _ = writeln!(
            out,
            "| `{}` | {default} | {} | {} |",
            entry.path,
            cell(entry.doc),
            cell(entry.expects)
        );
    }
    out
}

/// The JSON schema of configuration files (<https://json-schema.org/draft/2020-12/schema>): names, shapes and defaults. What
/// a text must look like is in the descriptions, and what goes together only `gophership config check` knows.
#[must_use]
pub fn json_schema() -> Value {
    let mut schema = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "GopherShip configuration",
    });
    merge(&mut schema, object(&Section::all()));
    schema
}

fn object(section: &Section) -> Value {
    let mut properties = Map::new();
    let mut required = Vec::new();
    for (name, node) in &section.children {
        let schema = match node {
            Node::Section(section) => object(section),
            Node::List(section) => json!({ "type": "array", "items": object(section) }),
            Node::Key(entry) => {
                if entry.fallback == Fallback::Required {
                    required.push(*name);
                }
                key(entry)
            }
        };
        properties.insert((*name).to_owned(), schema);
    }
    let mut schema = json!({
        // All keys of a section may be commented out.
        "type": ["object", "null"],
        "additionalProperties": false,
        "properties": properties,
    });
    if !required.is_empty() {
        schema["required"] = json!(required);
    }
    schema
}

fn key(entry: &Entry) -> Value {
    let text = json!(["string", "number", "boolean"]);
    let list = json!({ "type": "array", "items": { "type": text } });
    let mut schema = match entry.shape {
        Shape::Scalar => json!({ "type": text }),
        Shape::List => list,
        Shape::OneOrList => json!({ "anyOf": [{ "type": text }, list] }),
        Shape::Map => json!({
            "type": "object",
            "additionalProperties": { "type": ["string", "number", "boolean", "object"] },
        }),
    };
    if entry.fallback == Fallback::Unset {
        let is_set = schema;
        schema = json!({ "anyOf": [is_set, { "type": "null" }] });
    }
    if let Fallback::Default(text) = entry.fallback {
        schema["default"] = match entry.shape {
            Shape::Scalar => json!(text),
            Shape::List | Shape::OneOrList => {
                let items = text.split(',').filter(|item| !item.is_empty());
                json!(items.collect::<Vec<_>>())
            }
            Shape::Map => json!({}),
        };
    }
    schema["description"] = format!("{} Expected: {}.", entry.doc.trim(), entry.expects).into();
    if let Some(variable) = schema::variable(entry.path) {
        schema["$comment"] = format!("Environment: {variable}").into();
    }
    schema
}

fn merge(into: &mut Value, from: Value) {
    if let (Value::Object(into), Value::Object(from)) = (into, from) {
        into.extend(from);
    }
}
