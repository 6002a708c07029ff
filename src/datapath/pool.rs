//! Threads for work that may wait for storage.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

/// Requests that wait for the storage at the same time.
const THREADS: usize = 16;

type Job = Box<dyn FnOnce() + Send>;

/// Its threads end, after their work, when it is dropped.
pub struct Pool(Sender<Job>);

impl Pool {
    pub fn start() -> Pool {
        let (give, take) = channel::<Job>();
        let take: Arc<Mutex<Receiver<Job>>> = Arc::new(Mutex::new(take));
        for _ in 0..THREADS {
            let take = take.clone();
            std::thread::spawn(move || {
                loop {
                    let job = take.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    match job {
                        Ok(job) => job(),
                        Err(_) => break,
                    }
                }
            });
        }
        Pool(give)
    }

    pub fn run(&self, job: impl FnOnce() + Send + 'static) {
        // The threads live as long as the sender.
        let _ = self.0.send(Box::new(job));
    }
}
