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

    /// Shows that `done` of `total` bytes are copied. Nothing is shown while there is nothing to copy. A total that turns out to be
    /// too low grows with what is done.
    pub fn show(&self, done: u64, total: u64) {
        let Some(bar) = self.0.as_ref().filter(|_| total > 0) else { return };
        if bar.is_hidden() {
            bar.set_draw_target(indicatif::ProgressDrawTarget::stderr());
        }
        // Each of the two may draw the bar. The next disk of several begins anew.
        if done < bar.position() {
            bar.set_position(done);
        }
        if bar.length() != Some(total.max(done)) {
            bar.set_length(total.max(done));
        }
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

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use indicatif::{ProgressDrawTarget, ProgressStyle, TermLike};

    use super::*;

    /// A terminal that keeps each text that was written to it.
    #[derive(Clone, Debug, Default)]
    struct Kept(Arc<Mutex<Vec<String>>>);

    impl TermLike for Kept {
        fn width(&self) -> u16 {
            80
        }
        fn move_cursor_up(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_down(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_right(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_left(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn write_line(&self, text: &str) -> io::Result<()> {
            self.write_str(text)
        }
        fn write_str(&self, text: &str) -> io::Result<()> {
            self.0.lock().unwrap().push(text.trim().to_owned());
            Ok(())
        }
        fn clear_line(&self) -> io::Result<()> {
            Ok(())
        }
        fn flush(&self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn no_more_is_done_than_there_is() {
        let kept = Kept::default();
        let style = ProgressStyle::with_template("{pos}/{len}").unwrap();
        let target = ProgressDrawTarget::term_like(Box::new(kept.clone()));
        let bar = ProgressBar(Some(indicatif::ProgressBar::with_draw_target(None, target).with_style(style)));
        // A disk of 9, then one of 3, of which 4 are copied, then one of 7.
        for (done, total) in [(4, 9), (9, 9), (1, 3), (4, 3), (2, 7)] {
            bar.show(done, total);
        }
        let drawn = kept.0.lock().unwrap().clone();
        let pairs = drawn.iter().filter_map(|text| text.split_once('/'));
        let pairs: Vec<(u64, u64)> =
            pairs.filter_map(|(done, total)| Some((done.parse().ok()?, total.parse().ok()?))).collect();
        assert!(pairs.len() >= 5, "{drawn:?}");
        assert!(pairs.iter().all(|(done, total)| done <= total), "{pairs:?}");
    }
}
