//! The values of all keys with where they were written: the file, then the environment over it.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    formats::{Format, Given, Raw, Shape},
    problems::{Kind, Origin, Problem},
    schema::{self, Entry, Fallback, Key, Meaning},
    tree::{Name, Node, Value},
};

/// Variables with our prefix that aren't keys: the build and the tests use them.
const OTHER_VARIABLES: [&str; 2] = ["GOPHERSHIP_EBPF_OBJ", "GOPHERSHIP_REQUIRE_KERNEL"];

/// A value and where it was written.
#[derive(Debug, Clone)]
struct Setting {
    raw: Raw,
    origin: Origin,
}

/// What a key is worth.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Effective {
    /// Full path.
    pub path: String,
    /// As it may be shown; `None`: it is unset.
    pub value: Option<String>,
    /// Where it was written.
    pub origin: Origin,
}

/// What was set, and what is wrong so far.
#[derive(Debug)]
pub(super) struct Settings {
    file: String,
    set: BTreeMap<String, Setting>,
    /// Lines of sections (full paths), for problems with something that isn't there.
    sections: BTreeMap<String, usize>,
    /// Keys whose value has been reported already, so that nothing else is said about them.
    broken: BTreeSet<String>,
    problems: Vec<Problem>,
}

impl Settings {
    pub(super) fn new(file: &str) -> Self {
        Self {
            file: file.to_owned(),
            set: BTreeMap::new(),
            sections: BTreeMap::new(),
            broken: BTreeSet::new(),
            problems: Vec::new(),
        }
    }

    /// Takes over the file.
    pub(super) fn read_file(&mut self, root: Node) {
        match root.value {
            Value::Null => {}
            Value::Map(entries) => self.section("", "", entries),
            Value::Scalar(_) | Value::List(_) => {
                self.syntax(
                    root.line,
                    "expected a mapping of sections, such as \"vault:\"",
                );
            }
        }
    }

    /// Takes over the variables that begin with our prefix.
    pub(super) fn read_environment(&mut self, env: impl Iterator<Item = (String, String)>) {
        for (name, value) in env {
            let Some(rest) = name.strip_prefix(schema::PREFIX) else {
                continue;
            };
            if OTHER_VARIABLES.contains(&name.as_str()) || is_service_link(rest) {
                continue;
            }
            let path = rest.to_lowercase().replace("__", ".");
            let origin = Origin::Variable(name.clone());
            match schema::meaning(&path) {
                Meaning::Key(entry) if schema::variable(&path).as_ref() == Some(&name) => {
                    match Raw::from_text(entry.shape, &value) {
                        Some(raw) => drop(self.set.insert(path, Setting { raw, origin })),
                        None => self.bad_value(origin, path, None, entry.expects),
                    }
                }
                _ => self.problems.push(Problem {
                    origin,
                    key: path,
                    // The key is a guess, so the value may be anything, a secret too.
                    value: None,
                    kind: Kind::UnknownVariable {
                        nearest: nearest_variable(&name),
                    },
                }),
            }
        }
    }

    fn section(&mut self, path: &str, pattern: &str, entries: Vec<(Name, Node)>) {
        let mut seen = BTreeMap::new();
        for (name, node) in entries {
            let below = |parent: &str| match parent {
                "" => name.text.clone(),
                parent => format!("{parent}.{}", name.text),
            };
            let (path, pattern) = (below(path), below(pattern));
            if let Some(first) = seen.insert(name.text.clone(), name.line) {
                let kind = Kind::Duplicate { first };
                self.at_line(name.line, path, None, kind);
                continue;
            }
            self.sections.insert(path.clone(), name.line);
            match schema::meaning(&pattern) {
                Meaning::Key(entry) => self.key(name.line, path, entry, node),
                Meaning::Section => self.subsection(&path, &pattern, node),
                Meaning::Sections => self.subsections(&path, &pattern, node),
                Meaning::Unknown => {
                    let nearest = schema::nearest(&pattern).to_owned();
                    let value = match node.value {
                        Value::Scalar(text) => Some(text),
                        Value::Null | Value::List(_) | Value::Map(_) => None,
                    };
                    self.at_line(name.line, path, value, Kind::UnknownKey { nearest });
                }
            }
        }
    }

    fn subsection(&mut self, path: &str, pattern: &str, node: Node) {
        match node.value {
            Value::Map(entries) => self.section(path, pattern, entries),
            // All its keys are commented out.
            Value::Null => {}
            Value::Scalar(_) | Value::List(_) => {
                let origin = self.line(node.line);
                self.bad_value(origin, path.to_owned(), None, "a mapping of keys");
            }
        }
    }

    fn subsections(&mut self, path: &str, pattern: &str, node: Node) {
        let items = match node.value {
            Value::List(items) => items,
            Value::Null => return,
            Value::Scalar(_) | Value::Map(_) => {
                let origin = self.line(node.line);
                return self.bad_value(origin, path.to_owned(), None, "a list");
            }
        };
        for (index, item) in items.into_iter().enumerate() {
            let path = format!("{path}[{index}]");
            self.sections.insert(path.clone(), item.line);
            self.subsection(&path, &format!("{pattern}[]"), item);
        }
    }

    fn key(&mut self, line: usize, path: String, entry: &Entry, node: Node) {
        let text = |node: Node| match node.value {
            Value::Scalar(text) => Some(text),
            Value::Null | Value::List(_) | Value::Map(_) => None,
        };
        let raw = match (entry.shape, node.value) {
            (_, Value::Null) if entry.fallback == Fallback::Unset => return,
            (Shape::Scalar, Value::Scalar(text)) => Some(Raw::Text(text)),
            (Shape::OneOrList, Value::Scalar(text)) => Some(Raw::List(vec![text])),
            (Shape::List | Shape::OneOrList, Value::List(items)) => items
                .into_iter()
                .map(text)
                .collect::<Option<_>>()
                .map(Raw::List),
            (Shape::Map, Value::Map(entries)) => entries
                .into_iter()
                .map(|(name, node)| Some((name.text, given(node)?)))
                .collect::<Option<_>>()
                .map(Raw::Map),
            _ => None,
        };
        let origin = self.line(line);
        match raw {
            Some(raw) => drop(self.set.insert(path, Setting { raw, origin })),
            None => self.bad_value(origin, path, None, entry.expects),
        }
    }

    /// The value of a key outside of lists. None: unset, or a problem that is now noted.
    pub(super) fn get<F: Format>(&mut self, key: &Key<F>) -> Option<F::Value> {
        self.read(key, key.entry.path.to_owned())
    }

    /// The value of a key in the list's item `index`.
    pub(super) fn get_at<F: Format>(&mut self, key: &Key<F>, index: usize) -> Option<F::Value> {
        self.read(key, at_index(key.entry.path, index))
    }

    fn read<F: Format>(&mut self, key: &Key<F>, path: String) -> Option<F::Value> {
        let entry = &key.entry;
        if self.broken.contains(&path) {
            return None;
        }
        let setting = match (self.set.get(&path), entry.fallback) {
            (Some(setting), _) => setting.clone(),
            (None, Fallback::Default(text)) => Setting {
                raw: Raw::from_text(entry.shape, text)?,
                origin: Origin::Default,
            },
            (None, Fallback::Unset) => return None,
            (None, Fallback::Required) => {
                self.missing(path, entry.doc);
                return None;
            }
        };
        let value = F::read(&setting.raw);
        if value.is_none() {
            self.bad_value(setting.origin, path, setting.raw.shown(), entry.expects);
        }
        value
    }

    /// Notes that `path`, which means `doc`, must be set, unless it is and was found wrong.
    pub(super) fn missing(&mut self, path: String, doc: &str) {
        if self.broken.contains(&path) {
            return;
        }
        let origin = self.origin(&path);
        self.problems.push(Problem {
            origin,
            key: path,
            value: None,
            kind: Kind::Missing {
                doc: doc.trim().to_owned(),
            },
        });
    }

    /// Notes that the values of `paths` don't go together, which `message` says with both. The
    /// problem is placed at the first of them that is set.
    pub(super) fn conflict(&mut self, paths: &[&str], message: String) {
        let set = paths.iter().find(|path| self.set.contains_key(**path));
        let Some(path) = set.or(paths.first()) else {
            return;
        };
        let problem = Problem {
            origin: self.origin(path),
            key: (*path).to_owned(),
            value: self.set.get(*path).and_then(|setting| setting.raw.shown()),
            kind: Kind::Conflict(message),
        };
        self.problems.push(problem);
    }

    /// Whether anything is written at or below `path`.
    pub(super) fn has(&self, path: &str) -> bool {
        self.sections.contains_key(path) || self.set.contains_key(path)
    }

    /// Whether the value of `path` has been reported already.
    pub(super) fn is_broken(&self, path: &str) -> bool {
        self.broken.contains(path)
    }

    /// Items of the list at `path`.
    pub(super) fn items(&self, path: &str) -> usize {
        (0..)
            .take_while(|index| self.sections.contains_key(&format!("{path}[{index}]")))
            .count()
    }

    /// All keys, those in lists once for each item.
    pub(super) fn effective(&self) -> Vec<Effective> {
        let mut all = Vec::new();
        for entry in schema::KEYS {
            let Some((list, _)) = entry.path.split_once("[]") else {
                all.push(self.worth(entry, entry.path.to_owned()));
                continue;
            };
            for index in 0..self.items(list) {
                let path = at_index(entry.path, index);
                // Of a destination that is a file, what makes it a server says nothing.
                let section = path.split('.').take(3).collect::<Vec<_>>().join(".");
                if self.has(&section) {
                    all.push(self.worth(entry, path));
                }
            }
        }
        all
    }

    fn worth(&self, entry: &Entry, path: String) -> Effective {
        let (value, origin) = match (self.set.get(&path), entry.fallback) {
            (Some(setting), _) => (Some(setting.raw.redacted()), setting.origin.clone()),
            (None, Fallback::Default(text)) => (Some(text.to_owned()), Origin::Default),
            (None, Fallback::Unset | Fallback::Required) => (None, Origin::Default),
        };
        Effective {
            path,
            value,
            origin,
        }
    }

    /// Whether nothing is wrong so far.
    pub(super) fn is_sound(&self) -> bool {
        self.problems.is_empty()
    }

    /// What is wrong, if anything is.
    pub(super) fn into_problems(self) -> Vec<Problem> {
        self.problems
    }

    /// Notes that the text isn't a configuration.
    pub(super) fn syntax(&mut self, line: usize, message: &str) {
        let kind = Kind::Syntax(message.to_owned());
        self.at_line(line, String::new(), None, kind);
    }

    /// Where `path`, or the innermost section around it, is written.
    fn origin(&self, path: &str) -> Origin {
        if let Some(setting) = self.set.get(path) {
            return setting.origin.clone();
        }
        let mut section = path;
        loop {
            if let Some(line) = self.sections.get(section) {
                return self.line(*line);
            }
            match section.rfind(['.', '[']) {
                Some(end) => section = &section[..end],
                None => return Origin::Default,
            }
        }
    }

    fn line(&self, line: usize) -> Origin {
        Origin::File {
            file: self.file.clone(),
            line,
        }
    }

    fn at_line(&mut self, line: usize, key: String, value: Option<String>, kind: Kind) {
        let origin = self.line(line);
        self.problems.push(Problem {
            origin,
            key,
            value,
            kind,
        });
    }

    fn bad_value(&mut self, origin: Origin, key: String, value: Option<String>, expected: &str) {
        self.broken.insert(key.clone());
        self.problems.push(Problem {
            origin,
            key,
            value,
            kind: Kind::BadValue {
                expected: expected.to_owned(),
            },
        });
    }
}

/// What a free name is given in a map: a text, or a mapping of one name to one.
fn given(node: Node) -> Option<Given> {
    match node.value {
        Value::Scalar(text) => Some(Given::Text(text)),
        Value::Map(mut entries) => match (entries.pop(), entries.is_empty()) {
            (Some((name, node)), true) => match node.value {
                Value::Scalar(text) => Some(Given::From(name.text, text)),
                Value::Null | Value::List(_) | Value::Map(_) => None,
            },
            _ => None,
        },
        Value::Null | Value::List(_) => None,
    }
}

/// Kubernetes describes the Services of the namespace to every pod (`enableServiceLinks`): a Service
/// called gophership, or gophership-something, makes variables with our prefix. No key looks so,
/// because every key has a `__`.
fn is_service_link(rest: &str) -> bool {
    let part = |name: &str| format!("_{rest}_").contains(&format!("_{name}_"));
    !rest.contains("__") && (part("SERVICE_HOST") || part("SERVICE_PORT") || part("PORT"))
}

/// The path of a key in the list's item `index`.
pub(super) fn at_index(path: &str, index: usize) -> String {
    path.replace("[]", &format!("[{index}]"))
}

fn nearest_variable(name: &str) -> String {
    schema::KEYS
        .iter()
        .filter_map(|entry| schema::variable(entry.path))
        .max_by(|a, b| {
            let likeness = |known: &str| strsim::normalized_damerau_levenshtein(name, known);
            likeness(a).total_cmp(&likeness(b))
        })
        .unwrap_or_default()
}
