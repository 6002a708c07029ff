//! Texts folded into ranges: the inverse of [`line::expanded`].

use crate::registry::line;

/// A text as its parts that are no digits, and the runs of digits between them.
struct Split<'t> {
    words: Vec<&'t str>,
    numbers: Vec<&'t str>,
}

impl<'t> Split<'t> {
    fn of(text: &'t str) -> Split<'t> {
        let (mut words, mut numbers) = (Vec::new(), Vec::new());
        let mut rest = text;
        loop {
            let start = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
            words.push(&rest[..start]);
            if start == rest.len() {
                return Split { words, numbers };
            }
            let tail = &rest[start..];
            let end = tail.find(|c: char| !c.is_ascii_digit()).unwrap_or(tail.len());
            numbers.push(&tail[..end]);
            rest = &tail[end..];
        }
    }

    /// The runs of digits by which another text is the next of a range that this one begins `steps` before; `None` if it is none.
    fn steps_to(&self, other: &Split, steps: u64) -> Option<Vec<bool>> {
        if self.words != other.words || self.numbers.len() != other.numbers.len() {
            return None;
        }
        let moves =
            self.numbers.iter().zip(&other.numbers).map(|(from, to)| (from != to).then(|| is_after(from, to, steps)));
        let moves: Vec<Option<bool>> = moves.collect();
        let well = moves.iter().all(|it| *it != Some(false)) && moves.contains(&Some(true));
        well.then(|| moves.iter().map(Option::is_some).collect())
    }
}

/// Whether `to` is what [`line::expanded`] makes of a range that begins with `from`, `steps` later.
fn is_after(from: &str, to: &str, steps: u64) -> bool {
    let width = if from.starts_with('0') && from.len() > 1 { from.len() } else { 0 };
    // Longer ones are no ranges.
    let next = (from.len() < 10 && to.len() < 10).then(|| from.parse::<u64>().ok()).flatten();
    next.is_some_and(|next| format!("{:0width$}", next + steps) == to)
}

/// Folds neighbours that differ by counting alone. Expanded, the result gives the texts again, in their order; a text that would
/// not stays as it is.
pub fn folded(texts: &[String]) -> Vec<String> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < texts.len() {
        let first = Split::of(&texts[at]);
        let mut moving = None;
        let mut length = 1;
        while let Some(next) = texts.get(at + length) {
            match (first.steps_to(&Split::of(next), length as u64), &moving) {
                (Some(moves), None) => moving = Some(moves),
                (Some(moves), Some(known)) if moves == *known => {}
                _ => break,
            }
            length += 1;
        }
        let folded = moving.map(|moves| range(&first, &moves, length as u64 - 1));
        let is_well = |text: &String| line::expanded(text).is_ok_and(|again| again == texts[at..at + length]);
        match folded.filter(is_well) {
            Some(text) => found.push(text),
            None => found.extend_from_slice(&texts[at..at + length]),
        }
        at += length;
    }
    found
}

fn range(first: &Split, moves: &[bool], steps: u64) -> String {
    let mut text = first.words[0].to_owned();
    for ((number, moves), word) in first.numbers.iter().zip(moves).zip(&first.words[1..]) {
        match (moves, number.parse::<u64>()) {
            (true, Ok(from)) => {
                let width = if number.starts_with('0') { number.len() } else { 0 };
                text.push_str(&format!("[{number}-{:0width$}]", from + steps));
            }
            _ => text.push_str(number),
        }
        text.push_str(word);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fold(texts: &[&str]) -> Vec<String> {
        folded(&texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn neighbours_that_count_are_folded() {
        assert_eq!(fold(&["filer1 10.0.0.11", "filer2 10.0.0.12"]), ["filer[1-2] 10.0.0.[11-12]"]);
        assert_eq!(fold(&["a08", "a09", "a10", "b1"]), ["a[08-10]", "b1"]);
        assert_eq!(fold(&["a9", "a10"]), ["a[9-10]"]);
        assert_eq!(fold(&["a1", "a3"]), ["a1", "a3"]);
        assert_eq!(fold(&["a1 b1", "a2 b1", "a3 b2"]), ["a[1-2] b1", "a3 b2"]);
        assert_eq!(fold(&["a0000000001", "a0000000002"]), ["a0000000001", "a0000000002"]);
        assert_eq!(fold(&["a", "a"]), ["a", "a"]);
        // What follows would make a class of a regular expression of it.
        assert_eq!(fold(&["a1+", "a2+"]), ["a1+", "a2+"]);
        assert_eq!(fold(&["[0-1] 1", "[0-1] 2"]), ["[0-1] 1", "[0-1] 2"]);
    }

    proptest! {
        #[test]
        fn expanding_what_was_folded_gives_the_texts_again(
            head in "[a-z0-9/]{0,4}", tail in "[a-z0-9+]{0,4}", from in 0u64..1200, count in 1u64..30, width in 0usize..5,
            others in prop::collection::vec("[a-c]{0,2}[0-9]{0,3}[a-c0-9]{0,2}", 0..6),
        ) {
            let mut texts: Vec<String> = (from..from + count).map(|n| format!("{head}/{n:0width$}x{}{tail}", n + 7)).collect();
            texts.extend(others);
            let again: Vec<String> =
                folded(&texts).iter().flat_map(|text| line::expanded(text).unwrap()).collect();
            prop_assert_eq!(again, texts);
        }
    }
}
