//! Whether a VDI can be used.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Whether a VDI can be used, as far as its headers and those of its parents tell.
///
/// In answers it is one text: the words of [`fmt::Display`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", from = "String")]
pub enum State {
    #[default]
    Healthy,
    /// The image, or what is stored beside it, cannot be read; the text says why.
    Broken(String),
    /// The parent is not in the SR, or is another image than the child names; the text says which.
    ParentMissing(String),
    /// The image has a feature that this program does not serve; the text names it.
    Unsupported(String),
    /// The VDI is attached, and the process that served its image has ended: I/O on its device fails until it is
    /// detached and attached again.
    ServerDied,
}

impl State {
    pub fn is_healthy(&self) -> bool {
        *self == State::Healthy
    }

    /// The state without its reason, for a column of a table.
    pub fn word(&self) -> &'static str {
        match self {
            State::Healthy => "",
            State::Broken(_) => "broken",
            State::ParentMissing(_) => "parent missing",
            State::Unsupported(_) => "unsupported",
            State::ServerDied => SERVER_DIED,
        }
    }
}

const BROKEN: &str = "broken: ";
const PARENT_MISSING: &str = "parent missing: ";
const UNSUPPORTED: &str = "unsupported: ";
const SERVER_DIED: &str = "server died";

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            State::Healthy => Ok(()),
            State::Broken(why) => write!(f, "{BROKEN}{why}"),
            State::ParentMissing(which) => write!(f, "{PARENT_MISSING}{which}"),
            State::Unsupported(feature) => write!(f, "{UNSUPPORTED}{feature}"),
            State::ServerDied => f.write_str(SERVER_DIED),
        }
    }
}

impl From<State> for String {
    fn from(state: State) -> String {
        state.to_string()
    }
}

impl From<String> for State {
    /// The state that has these words. A text of another program is one more reason not to use the VDI.
    fn from(text: String) -> State {
        let after = |prefix: &str| text.strip_prefix(prefix).map(str::to_owned);
        match text.as_str() {
            "" => State::Healthy,
            SERVER_DIED => State::ServerDied,
            _ => after(BROKEN)
                .map(State::Broken)
                .or_else(|| after(PARENT_MISSING).map(State::ParentMissing))
                .or_else(|| after(UNSUPPORTED).map(State::Unsupported))
                .unwrap_or(State::Broken(text)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_of_a_vdi_is_read_back_from_its_words() {
        for state in [
            State::Healthy,
            State::Broken("x.vhd: it is empty".to_owned()),
            State::ParentMissing("y".to_owned()),
            State::Unsupported("encryption".to_owned()),
            State::ServerDied,
        ] {
            assert_eq!(State::from(state.to_string()), state);
        }
    }
}
