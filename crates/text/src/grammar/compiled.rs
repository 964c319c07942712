//! A constraint compiled once for all answers of a request.
//!
//! The state that an answer modifies is copied when the answer's first token is chosen, so that answers waiting for
//! their turn take no memory: the state of a large schema takes megabytes. The last answer takes the original.

use std::{collections::HashMap, sync::Arc};

use hearth_domain::TokenConstraint;
use parking_lot::Mutex;

use super::{
    arguments_check::ArgumentsCheck,
    constraint::{GrammarConstraint, PhasedConstraint},
};

/// See the module's documentation.
pub struct CompiledConstraint {
    start: Mutex<State>,
    unenforced: Vec<String>,
    checks: Arc<HashMap<String, ArgumentsCheck>>,
}

impl std::fmt::Debug for CompiledConstraint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CompiledConstraint").field("unenforced", &self.unenforced).finish_non_exhaustive()
    }
}

/// The state of an answer's constraint.
pub(super) enum State {
    Whole(Box<GrammarConstraint>),
    Phased(Box<PhasedConstraint>),
}

impl State {
    fn copied(&self) -> Self {
        match self {
            Self::Whole(grammar) => Self::Whole(Box::new(grammar.copied())),
            Self::Phased(phased) => Self::Phased(Box::new(phased.copied())),
        }
    }

    fn constraint(&mut self) -> &mut dyn TokenConstraint {
        match self {
            Self::Whole(grammar) => &mut **grammar,
            Self::Phased(phased) => &mut **phased,
        }
    }
}

impl CompiledConstraint {
    pub(super) fn new(start: State) -> Self {
        Self { start: Mutex::new(start), unenforced: Vec::new(), checks: Arc::default() }
    }

    pub(super) fn with_checks(self, unenforced: Vec<String>, checks: HashMap<String, ArgumentsCheck>) -> Self {
        Self { unenforced, checks: Arc::new(checks), ..self }
    }

    /// Parts of the tools' schemas that the grammar does not enforce, each with its path in the request, such as
    /// `tools.0.function.parameters.properties.tags.uniqueItems`.
    pub fn unenforced(&self) -> &[String] {
        &self.unenforced
    }

    /// The checks of the tools, by name, whose schemas the grammar does not enforce entirely.
    pub fn checks(&self) -> &Arc<HashMap<String, ArgumentsCheck>> {
        &self.checks
    }

    /// The constraints for `count` answers.
    pub fn answers(self, count: usize) -> Vec<Box<dyn TokenConstraint>> {
        let compiled = Arc::new(self);
        let answer =
            || Box::new(AnswerConstraint { compiled: Some(compiled.clone()), state: None }) as Box<dyn TokenConstraint>;
        (0..count).map(|_| answer()).collect()
    }
}

/// The constraint of one answer.
struct AnswerConstraint {
    /// `None` after the first token.
    compiled: Option<Arc<CompiledConstraint>>,
    state: Option<State>,
}

impl AnswerConstraint {
    fn constraint(&mut self) -> Result<&mut dyn TokenConstraint, String> {
        if let Some(compiled) = self.compiled.take() {
            self.state = Some(match Arc::try_unwrap(compiled) {
                Ok(last) => last.start.into_inner(),
                Err(shared) => shared.start.lock().copied(),
            });
        }
        self.state.as_mut().map(State::constraint).ok_or_else(|| "the constraint was lost".to_owned())
    }
}

impl TokenConstraint for AnswerConstraint {
    fn allowed(&mut self, mask: &mut [u32]) -> Result<(), String> {
        self.constraint()?.allowed(mask)
    }

    fn accept(&mut self, token: u32) -> Result<(), String> {
        self.constraint()?.accept(token)
    }

    fn is_finished(&mut self) -> bool {
        // An answer is not finished before its first token.
        self.state.as_mut().is_some_and(|state| state.constraint().is_finished())
    }
}
