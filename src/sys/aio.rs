//! Many small reads at a time by one thread: the kernel's own asynchronous I/O, which every kernel of a Xen host has (`io_uring` is
//! younger than some). A thread for each read would cost more than the read.

use std::fs::File;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::ptr;

use nix::errno::Errno;
use nix::libc::{self, c_long, c_ulong, iocb};

use crate::sys::uncached;

/// Bytes of one read, and what its place is a multiple of.
pub const PAGE: usize = uncached::PAGE as usize;
/// Reads at a time.
const AT_ONCE: usize = 32;
/// `linux/aio_abi.h`: `IOCB_CMD_PREAD`.
const READ: u16 = 0;

#[repr(C, align(4096))]
#[derive(Clone)]
struct Page([u8; PAGE]);

/// `linux/aio_abi.h`: what became of a request.
#[repr(C)]
struct Event {
    /// Which one: `aio_data` of the request.
    data: u64,
    request: u64,
    /// Bytes, or the number of an error below 0.
    result: i64,
    more: i64,
}

/// Reads a page at each of `places`, files that are open for reads past the page cache with an offset in bytes, and calls `each` with
/// the number of the place as the answers come. Of a page that cannot be read whole nothing is told: whoever reads it on its own
/// learns why.
pub fn pages(places: &[(&File, u64)], mut each: impl FnMut(usize, &[u8])) {
    let mut pages = vec![Page([0; PAGE]); AT_ONCE.min(places.len())];
    // It is dropped before the pages, and waits for the requests that are under way.
    let Ok(queue) = Queue::new() else { return };
    let pages: *mut Page = pages.as_mut_ptr();
    let (mut next, mut under_way) = (0, 0);
    let mut free: Vec<usize> = (0..AT_ONCE.min(places.len())).collect();
    let mut place_of = [0; AT_ONCE];
    loop {
        let mut requests = Vec::with_capacity(free.len());
        while let (Some((file, offset)), Some(slot)) = (places.get(next), free.pop()) {
            place_of[slot] = next;
            next += 1;
            // SAFETY: the slot is within the pages.
            requests.push(request(file, *offset, slot, unsafe { pages.add(slot) }));
        }
        let left = queue.submit(&mut requests);
        under_way += requests.len() - left.len();
        free.extend(left);
        if under_way == 0 {
            if next == places.len() {
                return;
            }
            continue;
        }
        let Ok(events) = queue.wait() else { return };
        for event in &events {
            under_way -= 1;
            let slot = event.data as usize;
            if event.result == PAGE as i64 {
                // SAFETY: the slot is within the pages, and the kernel is done with it.
                each(place_of[slot], unsafe { &(*pages.add(slot)).0 });
            }
            free.push(slot);
        }
    }
}

fn request(file: &File, offset: u64, slot: usize, page: *mut Page) -> iocb {
    // SAFETY: a request of zeroes is one.
    let mut request: iocb = unsafe { MaybeUninit::zeroed().assume_init() };
    request.aio_data = slot as u64;
    request.aio_lio_opcode = READ;
    request.aio_fildes = file.as_raw_fd() as u32;
    request.aio_buf = page as u64;
    request.aio_nbytes = PAGE as u64;
    request.aio_offset = offset as i64;
    request
}

/// io_setup(2).
struct Queue(c_ulong);

impl Queue {
    fn new() -> Result<Queue, Errno> {
        let mut context: c_ulong = 0;
        // SAFETY: the kernel writes the number of the queue, and nothing else.
        Errno::result(unsafe { libc::syscall(libc::SYS_io_setup, AT_ONCE as c_long, &raw mut context) })?;
        Ok(Queue(context))
    }

    /// Answers the slots of the requests that the kernel did not take.
    fn submit(&self, requests: &mut [iocb]) -> Vec<usize> {
        let (mut done, mut left) = (0, Vec::new());
        while done < requests.len() {
            let mut list: Vec<*mut iocb> = requests[done..].iter_mut().map(ptr::from_mut).collect();
            // SAFETY: the kernel copies the requests; their pages outlive the queue.
            let taken = unsafe { libc::syscall(libc::SYS_io_submit, self.0, list.len() as c_long, list.as_mut_ptr()) };
            match Errno::result(taken) {
                Ok(taken) if taken > 0 => done += taken as usize,
                Err(Errno::EINTR) => {}
                // It is the first one that is refused.
                _ => {
                    left.push(requests[done].aio_data as usize);
                    done += 1;
                }
            }
        }
        left
    }

    /// Waits for at least one request.
    fn wait(&self) -> Result<Vec<Event>, Errno> {
        let mut events: Vec<Event> = Vec::with_capacity(AT_ONCE);
        loop {
            let timeout: *mut libc::timespec = ptr::null_mut();
            // SAFETY: the kernel writes as many events as there is room for, and answers how many.
            let count = unsafe {
                libc::syscall(
                    libc::SYS_io_getevents,
                    self.0,
                    1 as c_long,
                    AT_ONCE as c_long,
                    events.as_mut_ptr(),
                    timeout,
                )
            };
            match Errno::result(count) {
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno),
                Ok(count) => {
                    // SAFETY: so many were written.
                    unsafe { events.set_len(count as usize) };
                    return Ok(events);
                }
            }
        }
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // SAFETY: it waits until the kernel writes to no page any more.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.0) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_page_that_can_be_read_is_told_once() {
        let dir = tempfile::tempdir_in(std::env::current_exe().unwrap().parent().unwrap()).unwrap();
        let path = dir.path().join("a");
        let bytes: Vec<u8> = (0..100 * PAGE).map(|at| (at / PAGE) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        let file = uncached::open(&path, false).unwrap();
        let closed = File::options().write(true).open(&path).unwrap();
        // The last page but one has half of its bytes, the last is behind the end; one is of a file that is not open for reads.
        std::fs::File::options().write(true).open(&path).unwrap().set_len(98 * PAGE as u64 + 2048).unwrap();
        let mut places: Vec<(&File, u64)> = (0..100).map(|page| (&file, page * PAGE as u64)).collect();
        places[40].0 = &closed;
        let mut told = Vec::new();
        pages(&places, |place, page| {
            assert_eq!(page, &bytes[place * PAGE..(place + 1) * PAGE]);
            told.push(place);
        });
        told.sort_unstable();
        assert_eq!(told, (0..98).filter(|place| *place != 40).collect::<Vec<_>>());
        pages(&[], |_, _| panic!("there is none"));
    }
}
