//! Limits on what one request may ask for, before it is validated or executed.
//!
//! Everything is counted after fragments are expanded, in time linear in the document: each fragment is counted once.

use std::collections::{HashMap, HashSet};

use async_graphql::parser::types::{
    BaseType, ExecutableDocument, Field, OperationDefinition, OperationType, Selection, SelectionSet, Type,
};
use async_graphql::parser::{Error as ParseError, parse_query};
use async_graphql::{Name, Value, Variables};
use async_graphql_value::Value as Literal;

use super::connection::DEFAULT_PAGE_SIZE;
use super::schema_types::{SchemaTypes, base_name};
use crate::model::MAX_PAGE_SIZE;

/// The limits.
#[derive(Debug, Clone)]
pub struct Walls {
    /// Tokens in the text.
    pub tokens: usize,
    /// Bytes of a name or number: errors repeat them.
    pub word: usize,
    /// Brackets within brackets, so that the parser's recursion is bounded.
    pub nesting: usize,
    /// Fields within fields.
    pub depth: usize,
    /// Fields within fields of introspection, which the tools' query has more of.
    pub introspection_depth: usize,
    /// Lists within lists of introspection: each multiplies the answer by the size of the schema.
    pub introspection_lists: usize,
    /// Aliased fields.
    pub aliases: u64,
    /// Fields of the operation itself.
    pub root_fields: usize,
    /// Directives.
    pub directives: u64,
    /// Fields, those of a list's rows as often as the page may have rows.
    pub cost: u64,
    /// Whether the schema may be asked for.
    pub introspection: bool,
}

impl Default for Walls {
    fn default() -> Self {
        Self {
            tokens: 2_000,
            word: 128,
            nesting: 64,
            depth: 15,
            introspection_depth: 20,
            introspection_lists: 3,
            aliases: 30,
            root_fields: 20,
            directives: 50,
            cost: 20_000,
            introspection: true,
        }
    }
}

/// Why a document is not executed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The error's code.
    pub code: &'static str,
    /// What is wrong, for the caller.
    pub message: String,
}

impl Refusal {
    pub(super) fn too_complex(what: &str, limit: impl std::fmt::Display) -> Self {
        Self { code: "QUERY_TOO_COMPLEX", message: format!("The query has more than {limit} {what}.") }
    }

    /// The document has no operation that could be executed.
    pub(crate) fn no_operation() -> Self {
        Self::invalid("The document has no operation of that name.")
    }

    pub(super) fn invalid(message: impl Into<String>) -> Self {
        Self { code: "GRAPHQL_VALIDATION_FAILED", message: message.into() }
    }
}

/// What was counted of a document once and for all.
#[derive(Debug)]
pub struct Measured {
    operations: Vec<Operation>,
}

#[derive(Debug)]
struct Operation {
    name: Option<Name>,
    kind: OperationType,
    first_field: String,
    /// Whether a variable says how large a page is, so that the cost is known only with it.
    is_sized_by_variables: bool,
}

/// What a page counts as whose size nobody asks for.
pub(super) const DEFAULT_PAGE: u64 = DEFAULT_PAGE_SIZE as u64;
/// What a page counts as whose size no number says: the size is refused later, by the field itself.
pub(super) const LARGEST_PAGE: u64 = MAX_PAGE_SIZE as u64;

impl Measured {
    /// The operation with the name, or the only one: its place and its kind.
    ///
    /// # Errors
    /// Where there is no such operation, or a name is needed.
    pub fn operation(&self, name: Option<&str>) -> Result<(usize, OperationType), Refusal> {
        let found = match name {
            Some(name) => self.operations.iter().position(|o| o.name.as_ref().is_some_and(|n| n.as_str() == name)),
            None if self.operations.len() == 1 => Some(0),
            None => return Err(Refusal::invalid("The document has several operations: operationName must name one.")),
        };
        let place = found.ok_or_else(Refusal::no_operation)?;
        Ok((place, self.operations[place].kind))
    }

    /// The operation's first field: a name of the schema or, where validation will refuse it, any.
    #[must_use]
    pub fn first_field(&self, operation: usize) -> &str {
        &self.operations[operation].first_field
    }
}

/// What is wrong and where, without the line itself: a secret may stand in it.
fn syntax_error(error: &ParseError) -> String {
    match error {
        ParseError::Syntax { message, start, .. } => {
            let reason = message.lines().next_back().and_then(|line| line.trim_start().strip_prefix("= "));
            format!("line {}, column {}: {}", start.line, start.column, reason.unwrap_or("a syntax error"))
        }
        other => other.to_string(),
    }
}

impl Walls {
    /// Parses a text that is not too long.
    ///
    /// # Errors
    /// Where it has too many tokens or is not GraphQL.
    pub fn parse(&self, text: &str) -> Result<ExecutableDocument, Refusal> {
        self.check_text(text)?;
        parse_query(text).map_err(|error: ParseError| Refusal {
            code: "GRAPHQL_PARSE_FAILED",
            message: format!("The query is not GraphQL: {}", syntax_error(&error)),
        })
    }

    /// Counts tokens and brackets, without recursion.
    fn check_text(&self, text: &str) -> Result<(), Refusal> {
        let bytes = text.as_bytes();
        let (mut tokens, mut nesting, mut place) = (0_usize, 0_usize, 0);
        while let Some(&byte) = bytes.get(place) {
            let length = match byte {
                b' ' | b'\t' | b'\n' | b'\r' | b',' | 0xEF | 0xBB | 0xBF => {
                    place += 1;
                    continue;
                }
                b'#' => {
                    place += bytes[place..].iter().position(|b| matches!(b, b'\n' | b'\r')).unwrap_or(bytes.len());
                    continue;
                }
                // The parser would read an open string as an empty one and go on behind it, past this count.
                b'"' => string_length(&bytes[place..]).ok_or_else(|| Refusal {
                    code: "GRAPHQL_PARSE_FAILED",
                    message: "The query is not GraphQL: a string does not end.".into(),
                })?,
                b'.' => bytes[place..].iter().take(3).take_while(|b| **b == b'.').count(),
                byte if is_word(byte) => {
                    let length = bytes[place..].iter().take_while(|b| is_word(**b)).count();
                    if length > self.word {
                        return Err(Refusal::too_complex("bytes in a name", self.word));
                    }
                    length
                }
                b'{' | b'[' | b'(' => {
                    nesting += 1;
                    1
                }
                b'}' | b']' | b')' => {
                    nesting = nesting.saturating_sub(1);
                    1
                }
                _ => 1,
            };
            place += length;
            tokens += 1;
            if tokens > self.tokens {
                return Err(Refusal::too_complex("tokens", self.tokens));
            }
            if nesting > self.nesting {
                return Err(Refusal::too_complex("brackets within brackets", self.nesting));
            }
        }
        Ok(())
    }

    /// Counts all that does not depend on variables.
    ///
    /// # Errors
    /// Where a limit is passed, or a fragment contains itself or is not used: nothing of it would have been counted.
    pub fn measure(&self, document: &ExecutableDocument, types: &SchemaTypes) -> Result<Measured, Refusal> {
        let mut used = HashSet::new();
        let operations = document.operations.iter().map(|(name, operation)| {
            let mut counter = Counter::new(document, types, None);
            let measured = self.measure_one(&mut counter, name, &operation.node)?;
            used.extend(counter.fragments.into_keys());
            Ok(measured)
        });
        let operations = operations.collect::<Result<_, _>>()?;
        if let Some(unused) = document.fragments.keys().find(|name| !used.contains(name)) {
            return Err(Refusal::invalid(format!("The fragment \"{unused}\" is not used.")));
        }
        Ok(Measured { operations })
    }

    fn measure_one<'a>(
        &self,
        counter: &mut Counter<'a>,
        name: Option<&Name>,
        operation: &'a OperationDefinition,
    ) -> Result<Operation, Refusal> {
        let root = root_type(operation);
        let count = counter.selections(Some(root), &operation.selection_set.node)?;
        let directives = count.directives.saturating_add(operation.directives.len() as u64);
        if count.depth > self.depth {
            return Err(Refusal::too_complex("levels of fields", self.depth));
        }
        if count.introspection_depth > 0 && !self.introspection {
            return Err(Refusal::invalid("Introspection is turned off; the schema is at /schema.graphql."));
        }
        if count.introspection_depth > self.introspection_depth {
            return Err(Refusal::too_complex("levels of introspection", self.introspection_depth));
        }
        if count.introspection_lists > self.introspection_lists {
            return Err(Refusal::too_complex("lists within lists of introspection", self.introspection_lists));
        }
        if count.aliases > self.aliases {
            return Err(Refusal::too_complex("aliases", self.aliases));
        }
        if directives > self.directives {
            return Err(Refusal::too_complex("directives", self.directives));
        }
        if count.cost > self.cost {
            return Err(self.too_costly());
        }
        // Bounded by now: the fields after expansion are no more than the cost, and without variables it is at its least.
        let mut keys = Vec::new();
        counter.root_fields(&operation.selection_set.node, &mut keys);
        if keys.len() > self.root_fields {
            return Err(Refusal::too_complex("root fields", self.root_fields));
        }
        let first_field = keys.first().map(|field| field.name.node.as_str());
        let is_known = |field: &&str| {
            counter.types.field(root, field).is_some() || matches!(*field, "__typename" | "__schema" | "__type")
        };
        let first_field = first_field.filter(is_known).unwrap_or("unknown").to_owned();
        let is_sized_by_variables = counter.is_sized_by_variables;
        Ok(Operation { name: name.cloned(), kind: operation.ty, first_field, is_sized_by_variables })
    }

    fn too_costly(&self) -> Refusal {
        Refusal::too_complex("fields, counted once for each row of a page", self.cost)
    }

    /// Checks the cost of an operation with its variables, the defaults among them.
    ///
    /// # Errors
    /// Where it is too high.
    pub fn check(
        &self,
        measured: &Measured,
        document: &ExecutableDocument,
        types: &SchemaTypes,
        operation: usize,
        variables: &Variables,
    ) -> Result<(), Refusal> {
        let measured = &measured.operations[operation];
        if !measured.is_sized_by_variables {
            return Ok(());
        }
        let found = document.operations.iter().find(|(name, _)| *name == measured.name.as_ref());
        let Some((_, operation)) = found else { return Ok(()) };
        let mut counter = Counter::new(document, types, Some(variables));
        let count = counter.selections(Some(root_type(&operation.node)), &operation.node.selection_set.node)?;
        if count.cost > self.cost { Err(self.too_costly()) } else { Ok(()) }
    }
}

pub(super) fn root_type(operation: &OperationDefinition) -> &'static str {
    match operation.ty {
        OperationType::Query => "Query",
        OperationType::Mutation => "Mutation",
        OperationType::Subscription => "Subscription",
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Count {
    depth: usize,
    introspection_depth: usize,
    introspection_lists: usize,
    aliases: u64,
    directives: u64,
    cost: u64,
}

struct Counter<'a> {
    document: &'a ExecutableDocument,
    types: &'a SchemaTypes,
    /// Counted fragments; `None`: being counted.
    fragments: HashMap<&'a Name, Option<Count>>,
    /// How many introspection fields we are inside of.
    introspection: usize,
    /// The variables; none: a page that a variable sizes counts as one row.
    variables: Option<&'a Variables>,
    is_sized_by_variables: bool,
}

impl<'a> Counter<'a> {
    fn new(document: &'a ExecutableDocument, types: &'a SchemaTypes, variables: Option<&'a Variables>) -> Self {
        let fragments = HashMap::new();
        Self { document, types, fragments, introspection: 0, variables, is_sized_by_variables: false }
    }

    fn selections(&mut self, parent: Option<&str>, set: &'a SelectionSet) -> Result<Count, Refusal> {
        let mut sum = Count::default();
        for selection in &set.items {
            let count = match &selection.node {
                Selection::Field(field) => self.field(parent, &field.node)?,
                Selection::InlineFragment(fragment) => {
                    let condition = fragment.node.type_condition.as_ref();
                    let parent = condition.map(|condition| condition.node.on.node.as_str()).or(parent);
                    let mut count = self.selections(parent, &fragment.node.selection_set.node)?;
                    count.directives = count.directives.saturating_add(fragment.node.directives.len() as u64);
                    count
                }
                Selection::FragmentSpread(spread) => {
                    let mut count = self.fragment(&spread.node.fragment_name.node)?;
                    count.directives = count.directives.saturating_add(spread.node.directives.len() as u64);
                    count
                }
            };
            sum = Count {
                depth: sum.depth.max(count.depth),
                introspection_depth: sum.introspection_depth.max(count.introspection_depth),
                introspection_lists: sum.introspection_lists.max(count.introspection_lists),
                aliases: sum.aliases.saturating_add(count.aliases),
                directives: sum.directives.saturating_add(count.directives),
                cost: sum.cost.saturating_add(count.cost),
            };
        }
        Ok(sum)
    }

    fn field(&mut self, parent: Option<&str>, field: &'a Field) -> Result<Count, Refusal> {
        let name = field.name.node.as_str();
        let is_introspection = matches!(name, "__schema" | "__type");
        let field_type = parent.and_then(|parent| self.types.field(parent, name));
        let of = field_type.map(base_name);
        self.introspection += usize::from(is_introspection);
        let inside = self.selections(of.map(Name::as_str), &field.selection_set.node);
        self.introspection -= usize::from(is_introspection);
        let inside = inside?;

        let is_connection = |name: &str| name.ends_with("Connection");
        let rows = match field_type {
            Some(of) if is_connection(base_name(of)) => self.page_size(field),
            // The rows of a connection were counted with it.
            Some(of) if is_list(of) && !parent.is_some_and(is_connection) => LARGEST_PAGE,
            _ => 1,
        };
        let is_introspected_list = self.introspection > 0
            && matches!(name, "types" | "fields" | "interfaces" | "possibleTypes" | "inputFields");
        let (depth, introspection_depth) = if self.introspection > 0 || is_introspection {
            (1, inside.depth.max(inside.introspection_depth) + 1)
        } else {
            (inside.depth + 1, inside.introspection_depth)
        };
        Ok(Count {
            depth,
            introspection_depth,
            introspection_lists: inside.introspection_lists + usize::from(is_introspected_list),
            aliases: inside.aliases.saturating_add(u64::from(field.alias.is_some())),
            directives: inside.directives.saturating_add(field.directives.len() as u64),
            cost: inside.cost.saturating_mul(rows).saturating_add(1),
        })
    }

    /// How many rows a page may have: with several sizes the largest, one of them is refused by the field itself.
    fn page_size(&mut self, field: &Field) -> u64 {
        let sizes = ["first", "last"].map(|argument| self.size(&field.get_argument(argument)?.node));
        sizes.into_iter().flatten().max().unwrap_or(DEFAULT_PAGE)
    }

    fn size(&mut self, size: &Literal) -> Option<u64> {
        let size = size.clone().into_const_with(|name| {
            self.is_sized_by_variables = true;
            Ok::<_, ()>(self.variables.ok_or(())?.get(&name).cloned().unwrap_or_default())
        });
        match size {
            Ok(Value::Null) => None,
            Ok(Value::Number(number)) => Some(number.as_u64().map_or(LARGEST_PAGE, |size| size.clamp(1, LARGEST_PAGE))),
            Ok(_) => Some(LARGEST_PAGE),
            Err(()) => Some(1),
        }
    }

    fn fragment(&mut self, name: &'a Name) -> Result<Count, Refusal> {
        match self.fragments.get(name) {
            Some(Some(count)) => return Ok(*count),
            Some(None) => return Err(Refusal::invalid(format!("The fragment \"{name}\" contains itself."))),
            None => {}
        }
        let Some(fragment) = self.document.fragments.get(name) else {
            return Err(Refusal::invalid(format!("There is no fragment \"{name}\".")));
        };
        self.fragments.insert(name, None);
        let parent = fragment.node.type_condition.node.on.node.as_str();
        let mut count = self.selections(Some(parent), &fragment.node.selection_set.node)?;
        count.directives = count.directives.saturating_add(fragment.node.directives.len() as u64);
        self.fragments.insert(name, Some(count));
        Ok(count)
    }

    fn root_fields(&self, set: &'a SelectionSet, into: &mut Vec<&'a Field>) {
        for selection in &set.items {
            match &selection.node {
                Selection::Field(field) => into.push(&field.node),
                Selection::InlineFragment(fragment) => self.root_fields(&fragment.node.selection_set.node, into),
                Selection::FragmentSpread(spread) => {
                    if let Some(fragment) = self.document.fragments.get(&spread.node.fragment_name.node) {
                        self.root_fields(&fragment.node.selection_set.node, into);
                    }
                }
            }
        }
    }
}

fn is_list(of: &Type) -> bool {
    matches!(of.base, BaseType::List(_))
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'+') || byte >= 0x80
}

/// The length of a string or block string at the start; `None` where it does not end.
fn string_length(bytes: &[u8]) -> Option<usize> {
    if bytes.starts_with(b"\"\"\"") {
        let mut place = 3;
        while place < bytes.len() {
            if bytes[place..].starts_with(b"\\\"\"\"") {
                place += 4;
            } else if bytes[place..].starts_with(b"\"\"\"") {
                return Some(place + 3);
            } else {
                place += 1;
            }
        }
        return None;
    }
    let mut place = 1;
    while let Some(&byte) = bytes.get(place) {
        match byte {
            b'\\' => place += 2,
            b'"' => return Some(place + 1),
            b'\n' | b'\r' => return None,
            _ => place += 1,
        }
    }
    None
}
