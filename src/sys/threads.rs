//! Work on several threads, or on fewer where the system gives no more of them: `std::thread::spawn` panics there.

use std::panic::resume_unwind;
use std::sync::{Mutex, PoisonError};
use std::thread::{Builder, Scope, ScopedJoinHandle, available_parallelism, scope};

/// Does both at the same time.
pub fn both<A: Send, B>(one: impl FnOnce() -> A + Send, other: impl FnOnce() -> B) -> (A, B) {
    let one = Mutex::new(Some(one));
    let run = || {
        let work = one.lock().unwrap_or_else(PoisonError::into_inner).take();
        work.expect("only one of the two places runs it")()
    };
    scope(|scope| {
        let started = start(scope, run);
        let other = other();
        (started.map_or_else(run, end), other)
    })
}

/// Does `work` on parts of `items`, at most `most` at a time, and answers the results in their order.
pub fn in_parts<T: Sync, R: Send>(items: &[T], most: usize, work: impl Fn(&[T]) -> R + Sync) -> Vec<R> {
    let threads = if most < 2 { 1 } else { available_parallelism().map_or(1, usize::from).min(most) };
    let mut parts = items.chunks(items.len().div_ceil(threads).max(1));
    let (first, work) = (parts.next(), &work);
    scope(|scope| {
        let others: Vec<_> = parts.map(|part| (part, start(scope, move || work(part)))).collect();
        let first = first.map(work);
        let others = others.into_iter().map(|(part, started)| started.map_or_else(|| work(part), end));
        first.into_iter().chain(others).collect()
    })
}

fn start<'s, R: Send + 's>(
    scope: &'s Scope<'s, '_>,
    work: impl FnOnce() -> R + Send + 's,
) -> Option<ScopedJoinHandle<'s, R>> {
    Builder::new().spawn_scoped(scope, work).ok()
}

fn end<R>(started: ScopedJoinHandle<'_, R>) -> R {
    started.join().unwrap_or_else(|panic| resume_unwind(panic))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_in_order_and_nothing_is_left_out() {
        for length in [0usize, 1, 2, 3, 7, 64, 1001] {
            for most in [0, 1, 2, 3, 8] {
                let items: Vec<usize> = (0..length).collect();
                assert_eq!(in_parts(&items, most, <[usize]>::to_vec).concat(), items);
            }
        }
        let mut told = 0;
        assert_eq!((both(|| told += 1, || 2).1, told), (2, 1));
    }
}
