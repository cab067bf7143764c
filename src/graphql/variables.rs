//! The variables of an operation, before it is executed.

use async_graphql::parser::types::OperationDefinition;
use async_graphql::{Value, Variables};

use super::walls::Refusal;

/// Gives each variable that was left out its default: the library forgets it in directives.
///
/// # Errors
/// Where one that may not be null is: nothing of the operation is done then.
pub fn complete_variables(operation: &OperationDefinition, variables: &mut Variables) -> Result<(), Refusal> {
    for definition in &operation.variable_definitions {
        let definition = &definition.node;
        let name = &definition.name.node;
        if !variables.contains_key(name)
            && let Some(default) = &definition.default_value
        {
            variables.insert(name.clone(), default.node.clone());
        }
        if !definition.var_type.node.nullable && matches!(variables.get(name), None | Some(Value::Null)) {
            return Err(Refusal::invalid(format!("The variable \"${name}\" must be given, and not be null.")));
        }
    }
    Ok(())
}
