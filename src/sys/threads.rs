//! Work on several threads, or on fewer where the system gives no more of them: `std::thread::spawn` panics there.

use std::panic::resume_unwind;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Mutex, PoisonError};
use std::thread::{Builder, Scope, ScopedJoinHandle, available_parallelism, scope};
use std::time::Duration;

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

/// Does `work` on each of `items`, `most` at a time however few cores there are, and answers the results in their order. This is
/// for work that waits for devices: a thread takes the next item when it is done with one, so a slow device holds up no other.
pub fn while_waiting<T: Sync, R: Send>(items: &[T], most: usize, work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let take = || {
        let mut done = Vec::new();
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(at) else { return done };
            done.push((at, work(item)));
        }
    };
    let mut done = scope(|scope| {
        let others: Vec<_> = (1..most.min(items.len())).map_while(|_| start(scope, take)).collect();
        let mut done = take();
        done.extend(others.into_iter().flat_map(end));
        done
    });
    done.sort_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, result)| result).collect()
}

/// Does `work` on a thread of its own, and calls `tell` on this one again and again until it is done.
pub fn followed<R: Send>(work: impl FnOnce() -> R + Send, every: Duration, tell: &dyn Fn()) -> R {
    let work = Mutex::new(Some(work));
    let run = || {
        let work = work.lock().unwrap_or_else(PoisonError::into_inner).take();
        work.expect("only one of the two places runs it")()
    };
    scope(|scope| {
        let (done, told) = mpsc::channel();
        let started = start(scope, move || {
            let _ = done.send(run());
        });
        let Some(started) = started else { return run() };
        loop {
            match told.recv_timeout(every) {
                Ok(result) => return result,
                Err(RecvTimeoutError::Timeout) => tell(),
                // It panicked, and so does this.
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        end(started);
        unreachable!("a thread that sent nothing has panicked")
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
    use std::sync::Barrier;

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

    #[test]
    fn work_that_is_followed_is_told_of_until_it_is_done() {
        let (tell, told) = mpsc::channel();
        let work = move || told.recv().and_then(|()| told.recv());
        assert_eq!(followed(work, Duration::from_millis(1), &|| tell.send(()).unwrap_or_default()), Ok(()));
        let panics = || followed(|| panic!("as it must"), Duration::from_secs(60), &|| {});
        assert!(std::panic::catch_unwind(panics).is_err());
    }

    #[test]
    fn work_that_waits_is_done_at_the_same_time_and_answered_in_order() {
        let items: Vec<usize> = (0..9).collect();
        // Each of the first three ends when all three have begun.
        let begun = Barrier::new(3);
        let work = |item: &usize| {
            if *item < 3 {
                begun.wait();
            }
            item * 2
        };
        assert_eq!(while_waiting(&items, 3, work), (0..9).map(|item| item * 2).collect::<Vec<_>>());
        assert_eq!(while_waiting(&items, 1, |item| *item), items);
        assert!(while_waiting(&[] as &[usize], 8, |item| *item).is_empty());
    }
}
