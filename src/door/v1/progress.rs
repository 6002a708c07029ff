//! How far a copy has come, for a person.

use std::io::{IsTerminal, stderr};

/// A bar on stderr, if stderr is a terminal. The bar appears with the first bytes.
pub struct ProgressBar(Option<indicatif::ProgressBar>);

impl ProgressBar {
    /// A bar that does not show yet.
    pub fn hidden() -> ProgressBar {
        if !stderr().is_terminal() {
            return ProgressBar(None);
        }
        let style =
            indicatif::ProgressStyle::with_template("{wide_bar} {bytes}/{total_bytes} {binary_bytes_per_sec} {eta}")
                .expect("the template is constant");
        ProgressBar(Some(indicatif::ProgressBar::hidden().with_style(style)))
    }

    /// Shows that `done` of `total` bytes are copied. Nothing is shown while there is nothing to copy.
    pub fn show(&self, done: u64, total: u64) {
        let Some(bar) = self.0.as_ref().filter(|_| total > 0) else { return };
        if bar.is_hidden() {
            bar.set_draw_target(indicatif::ProgressDrawTarget::stderr());
        }
        bar.set_length(total);
        bar.set_position(done);
    }
}

impl Drop for ProgressBar {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}
