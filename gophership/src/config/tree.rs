//! YAML as a tree that remembers the line of every node.
//!
//! Scalars keep their text as written, so that `0600` or `16MiB` is read by the key's own format
//! and not by YAML's ideas about numbers.

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, Span, StrInput};

/// Deepest nesting that is read; the configuration itself needs six levels.
const DEPTH_MAX: usize = 32;

/// A value and where it begins.
#[derive(Debug)]
pub(super) struct Node {
    /// Line of its first character, from 1.
    pub(super) line: usize,
    /// It.
    pub(super) value: Value,
}

/// What a node is.
#[derive(Debug)]
pub(super) enum Value {
    /// Nothing: `null`, `~` or no text at all.
    Null,
    /// Text, quoted or not.
    Scalar(String),
    /// A sequence.
    List(Vec<Node>),
    /// A mapping, duplicates included, in the order of the file.
    Map(Vec<(Name, Node)>),
}

/// A mapping's key.
#[derive(Debug)]
pub(super) struct Name {
    /// Its text.
    pub(super) text: String,
    /// Its line, from 1.
    pub(super) line: usize,
}

/// Why a text isn't a tree.
#[derive(Debug)]
pub(super) struct SyntaxError {
    /// The line it was noticed on, from 1.
    pub(super) line: usize,
    /// What is wrong.
    pub(super) message: String,
}

impl From<ScanError> for SyntaxError {
    fn from(error: ScanError) -> Self {
        Self::at(error.marker().line(), error.info())
    }
}

impl SyntaxError {
    fn at(line: usize, message: impl Into<String>) -> Self {
        Self {
            line,
            message: message.into(),
        }
    }
}

/// Reads the only document of `text`; an empty text is an empty mapping.
///
/// # Errors
/// The first place that isn't YAML, or that uses what a configuration can't: anchors, aliases,
/// several documents, keys that aren't text.
pub(super) fn read(text: &str) -> Result<Node, SyntaxError> {
    let mut events = Events(Parser::new_from_str(text));
    let mut root = None;
    loop {
        let (event, span) = events.next()?;
        match event {
            Event::StreamEnd => break,
            Event::StreamStart | Event::DocumentStart(_) | Event::DocumentEnd | Event::Nothing => {}
            _ if root.is_some() => {
                return Err(SyntaxError::at(span.start.line(), "a second document"));
            }
            event => root = Some(events.node(event, span, 0)?),
        }
    }
    Ok(root.unwrap_or(Node {
        line: 1,
        value: Value::Null,
    }))
}

struct Events<'t>(Parser<'t, StrInput<'t>>);

impl<'t> Events<'t> {
    fn next(&mut self) -> Result<(Event<'t>, Span), SyntaxError> {
        match self.0.next() {
            Some(event) => Ok(event?),
            None => Err(SyntaxError::at(1, "the text ends too early")),
        }
    }

    fn node(&mut self, event: Event<'t>, span: Span, depth: usize) -> Result<Node, SyntaxError> {
        let line = span.start.line();
        if depth > DEPTH_MAX {
            return Err(SyntaxError::at(line, "nested too deeply"));
        }
        let value = match event {
            Event::Scalar(text, ScalarStyle::Plain, 0, _)
                if matches!(&*text, "" | "~" | "null" | "Null" | "NULL") =>
            {
                Value::Null
            }
            Event::Scalar(text, _, 0, _) => Value::Scalar(text.into_owned()),
            Event::SequenceStart(0, _) => Value::List(self.list(depth)?),
            Event::MappingStart(0, _) => Value::Map(self.map(depth)?),
            Event::Scalar(..)
            | Event::SequenceStart(..)
            | Event::MappingStart(..)
            | Event::Alias(_) => {
                return Err(SyntaxError::at(line, "anchors and aliases aren't read"));
            }
            _ => return Err(SyntaxError::at(line, "expected a value")),
        };
        Ok(Node { line, value })
    }

    fn list(&mut self, depth: usize) -> Result<Vec<Node>, SyntaxError> {
        let mut items = Vec::new();
        loop {
            match self.next()? {
                (Event::SequenceEnd, _) => return Ok(items),
                (event, span) => items.push(self.node(event, span, depth + 1)?),
            }
        }
    }

    fn map(&mut self, depth: usize) -> Result<Vec<(Name, Node)>, SyntaxError> {
        let mut entries = Vec::new();
        loop {
            let name = match self.next()? {
                (Event::MappingEnd, _) => return Ok(entries),
                (Event::Scalar(text, _, 0, _), span) => Name {
                    text: text.into_owned(),
                    line: span.start.line(),
                },
                (_, span) => {
                    return Err(SyntaxError::at(
                        span.start.line(),
                        "a key must be plain text",
                    ));
                }
            };
            let (event, span) = self.next()?;
            entries.push((name, self.node(event, span, depth + 1)?));
        }
    }
}
