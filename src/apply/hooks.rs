//! The hooks `layout-apply-pre.d` and `layout-apply-post.d` around a run.

use std::collections::BTreeSet;

use crate::error::{Error, Result, one_line};
use crate::layout::LayoutName;
use crate::layout::plan::{Action, Allow, Step};
use crate::registry::view;
use crate::sys::hooks::{self, PATIENCE, Variables, boolean};
use crate::sys::run_dir;
use crate::types::seconds_now;

const BEFORE: &str = "layout-apply-pre.d";
const AFTER: &str = "layout-apply-post.d";

/// The hooks of a run whose pre hooks did not deny it.
pub struct Hooks(Variables);

impl Hooks {
    /// Runs the hooks before a run. `removes`: the run removes the layout. `steps`: those that will be done.
    ///
    /// # Errors
    /// [`Error::HookDenied`] with the hook and its words.
    pub fn begin(name: &LayoutName, removes: bool, steps: &[&Step], allow: &BTreeSet<Allow>) -> Result<Hooks> {
        let code = if removes { "LAYOUT_REMOVE" } else { "LAYOUT_APPLY" };
        let run = format!("{name}.{}.{}", seconds_now().unwrap_or_default(), std::process::id());
        let mut variables = hooks::common(code, "LAYOUT", &view::host_name(), &run_dir::layouts(), &run);
        let actions: BTreeSet<_> = steps.iter().map(|step| step.action).filter(|it| *it != Action::Check).collect();
        let listed = |words: Vec<&str>| words.join(",");
        variables.insert("SM_LAYOUT".to_owned(), name.to_string());
        variables.insert("SM_ACTIONS".to_owned(), listed(actions.iter().map(|action| action.word()).collect()));
        variables.insert("SM_ALLOW".to_owned(), listed(allow.iter().map(|allow| allow.word()).collect()));
        let denied =
            |cause| Error::HookDenied { op: "the change", set: format!("layout {name}"), cause: Box::new(cause) };
        hooks::run(BEFORE, "pre", &variables, PATIENCE, false).map_err(denied)?;
        Ok(Hooks(variables))
    }

    /// Runs the hooks after a run. A failure of theirs changes nothing of it, and is answered as a warning.
    pub fn end(mut self, is_done: bool) -> Option<String> {
        self.0.insert("SM_POST_RESULT".to_owned(), boolean(is_done));
        let failed = hooks::run(AFTER, "post", &self.0, PATIENCE, false).err();
        failed.map(|e| format!("a hook after the change failed: {}", one_line(&e)))
    }
}
