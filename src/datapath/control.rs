//! The control socket of a server: `<pid>.sock` in a directory of host-local state, one line a word.
//!
//! | word | what | answer |
//! |---|---|---|
//! | `status` | | `ok serving BYTES DEPTH`, `ok paused`, `ok failed WHY`, and the last I/O error |
//! | `flush` | makes everything durable | `ok` |
//! | `ready` | lets requests end and makes everything durable, unless it is paused: a pause that follows is short | `ok` |
//! | `pause` | lets requests end, flushes, closes the chain; requests wait | `ok` |
//! | `resume` | opens the chain by path, tells the kernel the size of its file | `ok BYTES` |
//! | `hold` | a pause that outlives its connection, until `release`; `resume` does not end it | `ok` |
//! | `release` | ends it as `resume` ends a pause; also mends a disk that could not be opened again | `ok`, `ok BYTES` if it goes on |
//! | `mirror WHERE` | a server that keeps a tapdisk: what is written is sent there as well; see [`crate::sys::tapdisk::is_secondary`] | `ok` |
//! | `end` | a server that keeps a tapdisk: ends the tapdisk and itself | `ok`, and again `ok` when the image is closed, or why it is not |
//! | `stop` | | `ok`, and again `ok` when the device is gone and the image closed |
//!
//! Or `error`, and words: see [`Failure`]. The size of the device follows that of the file when somebody asks for it: the client does,
//! because a server must not touch its own device.
//!
//! A pause ends with its connection: whoever paused and died leaves no disk that hangs. A hold
//! does not: it is for another host, whose death must not let this one write into an image that has become a base.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, UnixAddr, sockopt};
use nix::sys::time::TimeVal;

use super::disk::{self, State};
use super::serving::Serving;
use super::{TRACKED, server};
use crate::error::{Error, Result, one_line};

/// How long a request waits for a pause to end.
const PATIENCE: Duration = Duration::from_secs(60);

pub fn socket(dir: &Path, pid: u32) -> PathBuf {
    dir.join(format!("{pid}.sock"))
}

/// A directory of an empty name space, to mount on for a moment.
pub fn scratch(dir: &Path, pid: u32) -> PathBuf {
    dir.join(format!("{pid}.mnt"))
}

/// The directory of the sockets, made if need be. Returned open: socket addresses have no room for long paths.
fn directory(dir: &Path) -> Result<File> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(Error::io("create the directory", dir))?;
    open_directory(dir).map_err(Error::io("open the directory", dir))
}

fn open_directory(dir: &Path) -> io::Result<File> {
    fs::OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY | libc::O_PATH).open(dir)
}

fn short(dir: &File, pid: u32) -> PathBuf {
    socket(Path::new(&format!("/proc/self/fd/{}", dir.as_raw_fd())), pid)
}

/// One conversation with a server, which has an end.
pub struct Client {
    stream: BufReader<UnixStream>,
    path: PathBuf,
    pid: u32,
    begun: Instant,
    until: Instant,
}

impl Client {
    /// `until`: the end of every wait for an answer. A wait that is over is [`Error::DeviceInUse`] of `what`.
    pub fn connect(dir: &Path, pid: u32, until: Instant) -> Result<Client> {
        let path = socket(dir, pid);
        let begun = Instant::now();
        let connected = open_directory(dir).and_then(|open| connect_until(&short(&open, pid), until));
        match connected {
            Ok(stream) => Ok(Client { stream: BufReader::new(stream), path, pid, begun, until }),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Err(unanswered(pid, begun)),
            Err(e) => Err(Error::io("connect to", &path)(e)),
        }
    }

    /// Gives the conversation another end.
    pub fn wait_until(&mut self, until: Instant) {
        self.until = until;
    }

    pub fn say(&mut self, word: &str) -> Result<()> {
        let said = self.stream.get_mut().write_all(format!("{word}\n").as_bytes());
        said.map_err(|e| self.unheard("write to the image server at", e))
    }

    /// The rest of an `ok`.
    ///
    /// # Errors
    /// [`Error::DeviceInUse`] when there is no answer in time, with the process.
    pub fn hear(&mut self) -> Result<String> {
        let mut line = String::new();
        self.wait_no_longer()?;
        if let Err(e) = self.stream.read_line(&mut line) {
            return Err(self.unheard("hear from the image server at", e));
        }
        let line = line.trim_end_matches('\n');
        match line.split_once(' ').unwrap_or((line, "")) {
            ("ok", rest) => Ok(rest.to_owned()),
            ("error", failure) => Err(Failure::parse(failure).of(self.attempt())),
            _ => Err(Failure::from("it ended without an answer").of(self.attempt())),
        }
    }

    pub fn ask(&mut self, word: &str) -> Result<String> {
        self.say(word)?;
        self.hear()
    }

    /// Returns when the server has ended.
    pub fn wait_for_end(mut self) -> Result<()> {
        self.wait_no_longer()?;
        match io::copy(&mut self.stream, &mut io::sink()) {
            Ok(_) => Ok(()),
            Err(e) => Err(self.unheard("wait for the image server at", e)),
        }
    }

    fn wait_no_longer(&self) -> Result<()> {
        let left = left_of(self.until);
        self.stream.get_ref().set_read_timeout(Some(left)).map_err(Error::io("set a deadline on", &self.path))
    }

    fn unheard(&self, op: &'static str, e: io::Error) -> Error {
        if e.kind() == io::ErrorKind::WouldBlock {
            return unanswered(self.pid, self.begun);
        }
        Error::io(op, &self.path)(e)
    }

    fn attempt(&self) -> String {
        format!("cannot use the image server at {}", self.path.display())
    }
}

/// The part of an answer after `error`: `errno=N ` if a system call failed, then words. The number lets the caller tell
/// a full filesystem from other failures. A server of an earlier version says the words only.
#[derive(Debug, PartialEq, Eq)]
pub struct Failure {
    errno: Option<i32>,
    words: String,
}

impl Failure {
    pub fn parse(said: &str) -> Failure {
        let parsed = said.strip_prefix("errno=").and_then(|rest| {
            let (number, words) = rest.split_once(' ').unwrap_or((rest, ""));
            Some(Failure { errno: Some(number.parse().ok()?), words: words.to_owned() })
        });
        parsed.unwrap_or_else(|| Failure::from(said))
    }

    /// The error of the caller, who has tried `attempt`.
    pub fn of(self, attempt: String) -> Error {
        Error::ImageServer { attempt, errno: self.errno, why: self.words }
    }
}

impl From<&str> for Failure {
    fn from(words: &str) -> Failure {
        Failure { errno: None, words: words.to_owned() }
    }
}

impl From<&Error> for Failure {
    fn from(error: &Error) -> Failure {
        Failure { errno: disk::errno_of(error).map(|errno| errno as i32), words: one_line(error) }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::from(&error)
    }
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Failure {
        Failure { errno: Some(errno as i32), words: errno.desc().to_owned() }
    }
}

/// As [`Failure::parse`] reads it.
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.errno {
            Some(errno) => write!(f, "errno={errno} {}", self.words),
            None => f.write_str(&self.words),
        }
    }
}

/// A socket time-out of nothing would be none.
fn left_of(until: Instant) -> Duration {
    until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1))
}

/// A server that does not run lets nobody in once enough callers wait.
fn connect_until(path: &Path, until: Instant) -> io::Result<UnixStream> {
    let socket = socket::socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    let left = left_of(until);
    let left = TimeVal::new(left.as_secs() as i64, i64::from(left.subsec_micros()));
    socket::setsockopt(&socket, sockopt::SendTimeout, &left)?;
    socket::connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(UnixStream::from(socket))
}

fn unanswered(pid: u32, since: Instant) -> Error {
    let why = why_silent(pid).map(|why| format!(" ({why})")).unwrap_or_default();
    let seconds = since.elapsed().as_secs_f32().round();
    let holder = format!("its image server, process {pid}, which has not answered for {seconds} s{why}");
    Error::DeviceInUse { device: "the disk".to_owned(), holder }
}

/// Why a process does not answer, as far as the kernel tells.
pub fn why_silent(pid: u32) -> Option<String> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten();
    let states: Vec<char> = threads.filter_map(|thread| state_of(&thread.path().join("stat"))).collect();
    if states.iter().any(|state| matches!(state, 'T' | 't')) {
        return Some(format!("it is stopped; kill -CONT {pid} lets it go on"));
    }
    states.contains(&'D').then(|| "it waits for the storage of the disk".to_owned())
}

/// The state of a process or thread; proc(5).
fn state_of(stat: &Path) -> Option<char> {
    fs::read_to_string(stat).ok()?.rsplit_once(") ")?.1.chars().next()
}

/// The server's end.
pub struct Control {
    dir: PathBuf,
    /// The callers that wait for the end of the server.
    waiting: Mutex<Vec<UnixStream>>,
    /// Locked while a pause begins or ends.
    pauses: Mutex<Pauses>,
}

/// The reasons for which the disk is paused.
#[derive(Default)]
struct Pauses {
    /// How many a connection began: the last one counts.
    begun: u64,
    /// The last one has not ended.
    in_force: bool,
    /// Another host wants the disk paused, see `hold`.
    held: bool,
}

/// Tells the kernel the disk's size, and us whether it is another than before.
pub type Resized = Box<dyn Fn(u64) -> Result<bool> + Send + Sync>;

impl Control {
    pub fn bind(dir: &Path) -> Result<(Arc<Control>, UnixListener)> {
        let open = directory(dir)?;
        let path = socket(dir, std::process::id());
        // Of a server that had this PID before and was killed.
        let _ = fs::remove_file(&path);
        let listener = UnixListener::bind(short(&open, std::process::id())).map_err(Error::io("make", &path))?;
        Ok((Arc::new(Control { dir: dir.to_owned(), waiting: Mutex::default(), pauses: Mutex::default() }), listener))
    }

    /// Answers whoever connects, for ever.
    pub fn serve(self: &Arc<Self>, listener: UnixListener, disk: Arc<dyn Serving>, resized: Resized) {
        let resized = Arc::new(resized);
        let control = self.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (control, disk, resized) = (control.clone(), disk.clone(), resized.clone());
                std::thread::spawn(move || control.converse(stream, &*disk, &resized));
            }
        });
    }

    fn converse(&self, stream: UnixStream, disk: &dyn Serving, resized: &Resized) {
        let Ok(words) = stream.try_clone() else { return };
        let mut stream = stream;
        let (mut paused, mut grown) = (None, false);
        for word in BufReader::new(words).lines().map_while(Result::ok) {
            let answer: Result<String, Failure> = match word.as_str() {
                "status" => Ok(status(disk)),
                "ready" => match disk.state() {
                    State::Serving { .. } => {
                        disk.sync_log();
                        disk.flush().map(|()| String::new()).map_err(Failure::from)
                    }
                    State::Paused | State::Failed(_) => Ok(String::new()),
                },
                "flush" => disk.flush().map(|()| String::new()).map_err(Failure::from),
                "pause" => self.pause(disk, &mut paused).map(|()| tracked(disk)).map_err(Failure::from),
                "tracks" => Ok(tracked(disk)),
                "resume" => self.resume(disk, resized, &mut paused).map(|(size, changed)| {
                    grown |= changed;
                    size.to_string()
                }),
                "hold" => self.hold(disk).map(|()| String::new()).map_err(Failure::from),
                "release" => self.release(disk, resized).map_err(Failure::from),
                "stop" => match self.stop(&stream) {
                    Ok(()) => continue,
                    Err(e) => Err(Failure::from(e)),
                },
                "end" => match self.stop(&stream) {
                    Ok(()) if disk.end() => continue,
                    Ok(()) => Err(Failure::from("it ends with its device")),
                    Err(e) => Err(Failure::from(e)),
                },
                mirror if mirror.starts_with("mirror ") => {
                    self.mirror(disk, &mirror["mirror ".len()..]).map(|()| String::new()).map_err(Failure::from)
                }
                _ => Err(Failure::from(format!("{word:?} is no word of this server").as_str())),
            };
            let said = match answer {
                Ok(rest) if rest.is_empty() => writeln!(stream, "ok"),
                Ok(rest) => writeln!(stream, "ok {rest}"),
                Err(why) => writeln!(stream, "error {why}"),
            };
            if said.is_err() {
                break;
            }
        }
        // No caller is there to see that the device gets the size; or the caller was there, and may have been killed
        // before the device got it.
        grown |= paused.is_some() && matches!(self.resume(disk, resized, &mut paused), Ok((_, true)));
        if grown {
            server::fit_by_another();
        }
    }

    fn pauses(&self) -> MutexGuard<'_, Pauses> {
        self.pauses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pause(&self, disk: &dyn Serving, paused: &mut Option<u64>) -> Result<()> {
        let mut pauses = self.pauses();
        disk.pause()?;
        pauses.begun += 1;
        pauses.in_force = true;
        *paused = Some(pauses.begun);
        Ok(())
    }

    /// The disk's size, and whether it has changed. Ends a pause, unless another one began meanwhile: the end of a
    /// caller that was killed may be heard after the beginning of the next pause, which must not be lost by that.
    fn resume(&self, disk: &dyn Serving, resized: &Resized, paused: &mut Option<u64>) -> Result<(u64, bool), Failure> {
        let mut pauses = self.pauses();
        match paused.take() {
            Some(ours) if ours != pauses.begun => return Err("another call has paused it since".into()),
            Some(_) => pauses.in_force = false,
            None => {}
        }
        match pauses.held {
            true => Err("another host holds it paused".into()),
            false => resume(disk, resized).map_err(Failure::from),
        }
    }

    /// A pause by another call is waited for: it ends soon.
    fn mirror(&self, disk: &dyn Serving, secondary: &str) -> Result<()> {
        let until = Instant::now() + PATIENCE;
        loop {
            let pauses = self.pauses();
            if !(pauses.in_force || pauses.held) || Instant::now() > until {
                return disk.mirror(secondary);
            }
            drop(pauses);
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn hold(&self, disk: &dyn Serving) -> Result<()> {
        let mut pauses = self.pauses();
        disk.pause()?;
        pauses.held = true;
        Ok(())
    }

    /// The disk's size, if it goes on.
    fn release(&self, disk: &dyn Serving, resized: &Resized) -> Result<String> {
        let mut pauses = self.pauses();
        // A call of this host that has paused the disk as well goes on with its pause, and resumes the disk.
        let ended = std::mem::take(&mut pauses.held) && !pauses.in_force;
        if ended || matches!(disk.state(), State::Failed(_)) {
            return resume(disk, resized).map(|(size, _)| size.to_string());
        }
        Ok(String::new())
    }

    /// Tries again to let a disk go on that could not be opened again, unless it is meant to be paused. What fails is the disk's state.
    pub fn mend(&self, disk: &dyn Serving) {
        let pauses = self.pauses();
        if !pauses.in_force && !pauses.held && matches!(disk.state(), State::Failed(_)) {
            let _ = disk.resume();
        }
    }

    fn stop(&self, stream: &UnixStream) -> Result<()> {
        let ours = stream.try_clone().map_err(Error::io("duplicate", &self.dir))?;
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        // The end, which says it again, waits for the lock.
        (&ours).write_all(b"ok\n").map_err(Error::io("answer at", &self.dir))?;
        waiting.push(ours);
        Ok(())
    }

    /// Tells those who wait for the end that there is none.
    pub fn tell(&self, result: &Result<()>) {
        for mut stream in self.waiting.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let _ = stream.write_all(ended(result).as_bytes());
        }
    }

    /// Removes the socket, tells those who wait, and with the end of the process hangs up on them.
    pub fn end(&self, result: &Result<()>) {
        let _ = fs::remove_file(socket(&self.dir, std::process::id()));
        let line = ended(result);
        for mut stream in self.waiting.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let _ = stream.write_all(line.as_bytes());
            #[expect(
                clippy::mem_forget,
                reason = "the other side waits for the end of this process, not of the stream"
            )]
            std::mem::forget(stream);
        }
    }
}

fn ended(result: &Result<()>) -> String {
    match result {
        Ok(()) => "ok\n".to_owned(),
        Err(e) => format!("error {}\n", Failure::from(e)),
    }
}

fn tracked(disk: &dyn Serving) -> String {
    if disk.is_tracked() { TRACKED.to_owned() } else { String::new() }
}

fn status(disk: &dyn Serving) -> String {
    let mut text = match disk.state() {
        State::Serving { size, depth } => format!("serving {size} {depth}"),
        State::Paused => "paused".to_owned(),
        State::Failed(why) => format!("failed {why}"),
    };
    if let Some(complaint) = disk.complaint() {
        text.push_str("; last error: ");
        text.push_str(&complaint);
    }
    text
}

fn resume(disk: &dyn Serving, resized: &Resized) -> Result<(u64, bool)> {
    let size = disk.resume()?;
    Ok((size, resized(size)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_a_failure_reaches_the_caller() {
        let full = Error::io("write", "/sr/1.vhd")(io::Error::from_raw_os_error(libc::ENOSPC));
        let said = Failure::from(full.undone(Err(Error::Usage("undo".to_owned())))).to_string();
        let heard = Failure::parse(&said).of("cannot use the image server".to_owned());
        assert_eq!(heard.errno(), Some(libc::ENOSPC));
        assert!(one_line(&heard).starts_with("cannot use the image server: cannot write /sr/1.vhd"), "{heard}");
    }

    #[test]
    fn a_failure_without_a_number_is_words() {
        for words in ["another call has paused it since", "errno=x is no number", "errno=", ""] {
            assert_eq!(Failure::parse(words), Failure::from(words));
            assert_eq!(Failure::from(words).to_string(), words);
        }
    }
}
