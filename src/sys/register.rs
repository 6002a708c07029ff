//! A small record on a shared directory that several hosts change without losing an update.
//!
//! NFS gives one operation that is atomic for all hosts and tells the loser: `link`. So each state of the
//! record is a file named by its number, and whoever links number n+1 has changed state n. The number
//! only grows while the record exists; nothing is ever waited for, and no dead host has to be declared so.
//!
//! To change state n: 1. write the new state to an unnamed or temporary file, fsync; 2. link it as n+1:
//! a name that exists means someone else was first; 3. list: a number above n+1 means that n+1 had been
//! passed already and its file removed, ours is taken back; 4. remove the files below n+1. A kill before 2
//! changes nothing; after it, the change has happened and the next change does 4.

use nix::errno::Errno;

use crate::error::{Error, Result};
use crate::sys::durable::Dir;

/// A state of the record, as it was read: its number and its bytes. Number 0 is the record that was never written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    pub number: u64,
    pub bytes: Vec<u8>,
}

/// The current state of the record kept in the directory `name`.
///
/// # Errors
/// [`Error::Io`] if the directory of the record cannot be read; [`Error::Damaged`] if it changes faster than it can be
/// read, or a state is no regular file.
pub fn read(parent: &Dir, name: &str) -> Result<State> {
    match parent.sub_dir(name)? {
        None => Ok(State::default()),
        Some(dir) => match current(&dir) {
            // Removed meanwhile, and with it what it was a record of.
            Err(e) if is_stale(&e) => Ok(State::default()),
            state => state,
        },
    }
}

/// Replaces the state `seen` by `bytes`, durably. `false`: it was no longer the current one, nothing changed.
///
/// # Errors
/// [`Error::Io`] if the state cannot be written; [`Error::Incomplete`] if the state was written and the directory
/// cannot be listed then.
pub fn advance(parent: &Dir, name: &str, seen: &State, bytes: &[u8]) -> Result<bool> {
    let made = seen.number == 0 && parent.make_dir(name)?;
    let change = || {
        if made {
            parent.sync()?;
        }
        change_in(parent, name, seen, bytes)
    };
    let result = change();
    if made && result.is_err() {
        // Only while it is empty.
        let _ = parent.remove_dir(name);
    }
    result
}

fn change_in(parent: &Dir, name: &str, seen: &State, bytes: &[u8]) -> Result<bool> {
    let dir = parent.sub_dir(name)?.ok_or_else(|| Error::sys("open", parent.join(name))(Errno::ENOENT))?;
    let next = seen.number + 1;
    if !dir.create(&next.to_string(), bytes)? {
        return Ok(false);
    }
    let numbers = numbers(&dir).map_err(|e| e.after(format!("the record {} was changed", dir.path().display())))?;
    if numbers.iter().any(|n| *n > next) {
        dir.remove(&next.to_string())?;
        return Ok(false);
    }
    for old in numbers.into_iter().filter(|n| *n < next) {
        // The change has happened; what can't be removed now the next change removes.
        let _ = dir.remove(&old.to_string());
    }
    Ok(true)
}

/// Makes the current state durable. Before the caller is told that a change is there already: whoever made it may have
/// been killed before it was durable.
///
/// # Errors
/// [`Error::Io`] if a directory cannot be made durable.
pub fn settle(parent: &Dir, name: &str) -> Result<()> {
    if let Some(dir) = parent.sub_dir(name)? {
        dir.sync()?;
    }
    parent.sync()
}

/// Removes the record and its directory. Only for a record that nobody may change any more. Files that another process
/// still reads are put aside: see [`Dir::discard`]. `false`: there was no record.
///
/// # Errors
/// [`Error::Io`] if a file of the record can neither be removed nor put aside.
pub fn remove(parent: &Dir, name: &str) -> Result<bool> {
    parent.discard(name)
}

/// Whether NFS says by this error that another host removed the directory after we opened it.
fn is_stale(e: &Error) -> bool {
    e.errno() == Some(Errno::ESTALE as i32)
}

fn current(dir: &Dir) -> Result<State> {
    const PATIENCE: u32 = 100;
    for _ in 0..PATIENCE {
        let Some(number) = numbers(dir)?.into_iter().max() else { return Ok(State::default()) };
        // Gone between the list and the read: a newer state replaced it.
        if let Some(bytes) = dir.read(&number.to_string())? {
            return Ok(State { number, bytes });
        }
    }
    Err(Error::Damaged { path: dir.path().to_owned(), what: "changes faster than it can be read".to_owned() })
}

fn numbers(dir: &Dir) -> Result<Vec<u64>> {
    // A name that is not written as this module writes it, `01` or `+2`, is no state.
    let number = |name: &String| name.parse().ok().filter(|number: &u64| number.to_string() == *name);
    Ok(dir.names()?.iter().filter_map(number).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_changes_to_one_state_the_second_is_refused() {
        let scratch = tempfile::tempdir().unwrap();
        let dir = Dir::open(scratch.path()).unwrap();
        let never = read(&dir, "r").unwrap();
        assert!(advance(&dir, "r", &never, b"a").unwrap());
        assert!(!advance(&dir, "r", &never, b"b").unwrap());
        let first = read(&dir, "r").unwrap();
        assert_eq!(first, State { number: 1, bytes: b"a".to_vec() });
        assert!(advance(&dir, "r", &first, b"c").unwrap());
        let second = read(&dir, "r").unwrap();
        assert!(advance(&dir, "r", &second, b"d").unwrap());
        // Number 2 is free again, but state 1 was left behind long ago.
        assert!(!advance(&dir, "r", &first, b"late").unwrap());
        assert_eq!(read(&dir, "r").unwrap().bytes, b"d");
    }

    #[test]
    fn of_many_threads_that_change_one_state_exactly_one_does() {
        let scratch = tempfile::tempdir().unwrap();
        let seen = read(&Dir::open(scratch.path()).unwrap(), "r").unwrap();
        let winners = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..16)
                .map(|i| {
                    let (path, seen) = (scratch.path(), &seen);
                    scope.spawn(move || advance(&Dir::open(path).unwrap(), "r", seen, &[i]).unwrap())
                })
                .collect();
            threads.into_iter().map(|t| t.join().unwrap()).filter(|won| *won).count()
        });
        assert_eq!(winners, 1);
    }
}
