//! Plans: the steps that make of one state of a layout another.
//!
//! A plan is made of three things, and says which: the layout that is installed, the claims, and the media that the host has. It
//! fits as long as none of them has changed.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The form of plans that this release reads and writes.
pub const VERSION: u32 = 1;

/// A thing that is done to a slot or to the layout as a whole. The order of the variants is that of the steps of a plan, but for
/// [`Restart`](Action::Restart) and the last three, which are no steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Looks whether the slot is as the plan takes it to be.
    Check,
    /// Ends the use of the SR by a host that attaches it.
    Detach,
    /// Brings the SR down on its host.
    Stop,
    /// Deletes the SR with its data.
    Wipe,
    /// Removes the name of the SR on a host that it does not concern any more.
    Drop,
    /// Releases the claims of a slot that is removed.
    Release,
    /// Saves the new layout and loads it again.
    Save,
    /// Claims the media of a slot.
    Claim,
    /// Writes what the layout says to the tables of the host.
    CopyConf,
    /// Makes the SR.
    Create,
    /// Takes the SR that the media hold already.
    Adopt,
    /// Lets the SR use what its medium has become larger by.
    Grow,
    /// Changes a property that is stored with the SR.
    Retune,
    /// Changes where hosts find the SR. It is down meanwhile.
    Rewire,
    /// Deletes the SR with its data and makes it anew.
    Reformat,
    /// Brings the SR down and up.
    Restart,
    /// Brings the SR up on its host.
    Start,
    /// Begins the use of the SR by a host that attaches it.
    Attach,
    /// Changes whether the SR is brought up.
    Tune,
    /// Removes a slot from the layout: its steps are `stop`, `drop` and `release`.
    Remove,
    /// Begins to show SRs to others.
    Publish,
    /// Ends to show SRs to others.
    Unpublish,
}

impl Action {
    /// What has to be allowed for an action that destroys data, whatever a plan says.
    pub fn destroys(self) -> Option<Allow> {
        match self {
            Action::Wipe => Some(Allow::Wipe),
            Action::Reformat => Some(Allow::Reformat),
            _ => None,
        }
    }

    pub fn word(self) -> &'static str {
        match self {
            Action::Check => "check",
            Action::Detach => "detach",
            Action::Stop => "stop",
            Action::Wipe => "wipe",
            Action::Drop => "drop",
            Action::Release => "release",
            Action::Save => "save",
            Action::Claim => "claim",
            Action::CopyConf => "copyconf",
            Action::Create => "create",
            Action::Adopt => "adopt",
            Action::Grow => "grow",
            Action::Retune => "retune",
            Action::Rewire => "rewire",
            Action::Reformat => "reformat",
            Action::Restart => "restart",
            Action::Start => "start",
            Action::Attach => "attach",
            Action::Tune => "tune",
            Action::Remove => "remove",
            Action::Publish => "publish",
            Action::Unpublish => "unpublish",
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// What a caller has to allow by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Allow {
    Reformat,
    Retune,
    Rewire,
    Restart,
    Wipe,
}

impl Allow {
    pub const ALL: [Allow; 5] = [Allow::Reformat, Allow::Retune, Allow::Rewire, Allow::Restart, Allow::Wipe];

    pub fn word(self) -> &'static str {
        match self {
            Allow::Reformat => "reformat",
            Allow::Retune => "retune",
            Allow::Rewire => "rewire",
            Allow::Restart => "restart",
            Allow::Wipe => "wipe",
        }
    }
}

/// One step of a plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// From 1, without gaps.
    pub n: u32,
    pub action: Action,
    /// The slot in the form of [`SlotId`](super::SlotId), or [`WHOLE`].
    pub object: String,
    /// The host that does it.
    pub host: String,
    /// Whether data are lost.
    pub destructive: bool,
    /// What the caller has to allow; without that, the step is left out and named as one to follow.
    pub allow: Option<Allow>,
    pub done: bool,
    /// The step in words.
    pub what: String,
}

/// The object of a step that concerns no slot alone.
pub const WHOLE: &str = "layout";

/// The steps from the installed layout to another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    pub version: u32,
    /// The name of the layout.
    pub layout: String,
    /// [`digest`] of the text of the installed layout; empty if none is installed.
    pub base_digest: String,
    /// The generation of the claims.
    pub registry_generation: u64,
    /// [`digest`] of the media that may change the plan, and of their states.
    pub inventory_digest: String,
    /// The patterns of the model for paths of devices: a device that none of them fits, and that no layout has, changes no plan.
    #[serde(default)]
    pub watched: Vec<String>,
    /// The differences, as actions.
    pub actions: BTreeSet<Action>,
    pub steps: Vec<Step>,
    /// The text of the layout that is installed by the plan.
    pub target: String,
}

impl Plan {
    /// Reads a plan.
    ///
    /// # Errors
    /// A clause that says what is wrong.
    pub fn parse(text: &[u8]) -> Result<Plan, String> {
        let plan: Plan = serde_json::from_slice(text).map_err(|e| format!("it is no plan: {e}"))?;
        if plan.version != VERSION {
            return Err(format!("the plan has version {}, and this release reads version {VERSION}", plan.version));
        }
        plan.is_numbered()?;
        Ok(plan)
    }

    /// Refuses steps whose numbers are not 1, 2, 3 and so on.
    ///
    /// # Errors
    /// A clause with the first of them.
    pub fn is_numbered(&self) -> Result<(), String> {
        match self.steps.iter().zip(1..).find(|(step, n)| step.n != *n) {
            Some((step, n)) => Err(format!("step {n} of the plan has the number {}", step.n)),
            None => Ok(()),
        }
    }

    /// The text of a plan, a step a line.
    pub fn text(&self) -> String {
        let steps: Vec<String> = self.steps.iter().map(|step| format!("\n{}", json(step))).collect();
        format!(
            "{{\"version\":{},\"layout\":{},\"base_digest\":{},\"registry_generation\":{},\"inventory_digest\":{},\n\
             \"watched\":{},\n\"actions\":{},\n\"steps\":[{}\n],\n\"target\":{}}}\n",
            self.version,
            json(&self.layout),
            json(&self.base_digest),
            self.registry_generation,
            json(&self.inventory_digest),
            json(&self.watched),
            json(&self.actions),
            steps.join(","),
            json(&self.target)
        )
    }

    /// Whether nothing is to be done.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }
}

fn json<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("a plan is plain data")
}

/// A text that differs where the other differs. It keeps no secret.
pub fn digest(text: &str) -> String {
    Uuid::new_v5(&Uuid::NAMESPACE_OID, text.as_bytes()).simple().to_string()
}

#[cfg(test)]
pub mod tests {
    use super::*;

    fn plan() -> Plan {
        let step = |n, action: Action, object: &str, allow: Option<Allow>| Step {
            n,
            action,
            object: object.to_owned(),
            host: "node1".to_owned(),
            destructive: allow == Some(Allow::Reformat),
            allow,
            done: false,
            what: format!("{action} {object}"),
        };
        Plan {
            version: VERSION,
            layout: "rack1".to_owned(),
            base_digest: String::new(),
            registry_generation: 3,
            inventory_digest: digest("x"),
            watched: Vec::new(),
            actions: BTreeSet::from([Action::Reformat, Action::CopyConf]),
            steps: vec![step(1, Action::Save, WHOLE, None), step(2, Action::Reformat, "lvm/0", Some(Allow::Reformat))],
            target: "layout: rack1\n".to_owned(),
        }
    }

    #[test]
    fn a_plan_is_read_back_as_it_was_written() {
        let text = plan().text();
        assert_eq!(Plan::parse(text.as_bytes()), Ok(plan()));
        assert_eq!(text.lines().filter(|line| line.contains("\"action\":")).count(), 2, "{text}");
        assert!(text.contains("\"action\":\"copyconf\"") || text.contains("[\"copyconf\",\"reformat\"]"), "{text}");
    }

    #[test]
    fn what_is_no_plan_is_refused() {
        let text = plan().text();
        for bad in [
            "",
            "{}",
            &text[..text.len() - 3],
            &text.replace("\"version\":1", "\"version\":2"),
            &text.replace("\"n\":2", "\"n\":3"),
            &text.replace("\"host\"", "\"hoist\""),
            &text.replace("\"save\"", "\"sing\""),
        ] {
            assert!(Plan::parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn words_are_those_of_the_text_and_digests_differ() {
        for action in [Action::CopyConf, Action::Unpublish, Action::Check] {
            assert_eq!(json(&action), format!("\"{action}\""));
        }
        for allow in Allow::ALL {
            assert_eq!(json(&allow), format!("\"{}\"", allow.word()));
        }
        assert_ne!(digest("a"), digest("b"));
        assert_eq!(digest("a").len(), 32);
    }
}
