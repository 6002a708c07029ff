//! Calls back into xapi: XenAPI over HTTP/1.1 on its unix socket; SMAPIv1, "XenAPI call-backs".
//!
//! One connection serves a whole command. Where xapi has closed it between two calls, what can be said twice
//! without harm is said again on a new one; what can't (db_introduce, add_to_…) is an error.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crate::door::host;
use crate::door::xmlrpc::{self, Response, Value};
use crate::sys::run_dir;

/// How long one call may take. xapi forwards writes to the pool's master, which may be busy.
const DEADLINE: Duration = Duration::from_secs(120);
/// Records of 10,000 VDIs are some 30 MB.
const LARGEST: u64 = 1 << 30;

#[derive(Debug)]
pub enum ApiError {
    /// xapi is down, slow past the deadline, or closed the connection: whether it did what it was asked is
    /// not known.
    Unreachable(String),
    /// It answered what no xapi answers.
    Malformed(String),
    /// It said no: the error's name, then its parameters.
    Refused(Vec<String>),
}

impl ApiError {
    /// Whether xapi said no with this error.
    pub fn is(&self, name: &str) -> bool {
        matches!(self, ApiError::Refused(words) if words.first().is_some_and(|w| w == name))
    }

    /// Whether the object of the call does not exist any more.
    pub fn is_gone(&self) -> bool {
        self.is("HANDLE_INVALID") || self.is("UUID_INVALID")
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ApiError::Unreachable(why) => write!(f, "xapi does not answer: {why}"),
            ApiError::Malformed(why) => write!(f, "xapi's answer is not understood: {why}"),
            ApiError::Refused(words) => write!(f, "xapi refused: {}", words.join(", ")),
        }
    }
}

/// A record of xapi's database: its members by name.
pub type Record = BTreeMap<String, Value>;

/// The key in a VDI's sm_config that keeps hosts from attaching it; SMAPIv1, "Claims".
pub const PAUSED: &str = "paused";
/// What begins the key in a VDI's sm_config by which a host claims the VDI; xapi's reference of the host follows.
pub const CLAIM: &str = "host_";

/// A member of a record that is text; empty if the record has no such text.
pub fn text<'r>(record: &'r Record, field: &str) -> &'r str {
    record.get(field).and_then(Value::as_str).unwrap_or("")
}

type Reader = fn(&str) -> Result<Response, xmlrpc::Malformed>;

/// The members that [`Xapi::vdi_records`] reads of a VDI's record. The dozens of other members take longer to read than
/// these to compare.
const VDI_MEMBERS: &[&str] =
    &["uuid", "location", "type", "virtual_size", "physical_utilisation", "read_only", "sm_config", "cbt_enabled"];

/// xapi, with the session that it gave us for this command.
pub struct Xapi {
    session: String,
    /// The task that ours is a part of.
    task: Option<String>,
    connection: Option<BufReader<UnixStream>>,
}

impl Xapi {
    pub fn new(session: &str, task: Option<&str>) -> Xapi {
        let safe = |text: &&str| !text.chars().any(char::is_control);
        Xapi { session: session.to_owned(), task: task.filter(safe).map(str::to_owned), connection: None }
    }

    /// xapi, with a session of its own. xapi trusts what comes by its socket, to which only root can connect; XenAPI,
    /// `session.login_with_password`.
    ///
    /// # Errors
    /// [`ApiError::Unreachable`] on a host without xapi.
    pub fn log_in() -> Result<Xapi, ApiError> {
        // The user stands where other calls have the session.
        let mut xapi = Xapi::new("root", None);
        let words = ["", "1.0", "xcp-storage-managers"].map(Value::text);
        let session = xapi.call("session.login_with_password", &words)?;
        xapi.session = session.as_str().unwrap_or_default().to_owned();
        Ok(xapi)
    }

    /// The same session by a connection of its own.
    pub fn another(&self) -> Xapi {
        Xapi::new(&self.session, self.task.as_deref())
    }

    /// Ends a session of [`Xapi::log_in`].
    pub fn log_out(&mut self) {
        // xapi ends a session that is not used, too.
        let _ = self.call("session.logout", &[]);
    }

    /// The reference of the host that xapi runs on; XenAPI, `session.get_this_host`.
    ///
    /// # Errors
    /// As [`Xapi::call`].
    pub fn this_host(&mut self) -> Result<String, ApiError> {
        let session = Value::text(self.session.as_str());
        Ok(self.call("session.get_this_host", &[session])?.as_str().unwrap_or_default().to_owned())
    }

    /// All records of a class by reference; `method`: `SR.get_all_records`.
    ///
    /// # Errors
    /// As [`Xapi::call`].
    pub fn records(&mut self, method: &str) -> Result<BTreeMap<String, Record>, ApiError> {
        let records = self.call(method, &[])?;
        let of = |value: &Value| value.as_struct().cloned();
        let records =
            records.as_struct().map(|all| all.iter().map(|(key, value)| Some((key.clone(), of(value)?))).collect());
        records.flatten().ok_or_else(|| ApiError::Malformed(format!("{method} answered no records")))
    }

    /// Calls `Class.message` with the session and `params`.
    ///
    /// # Errors
    /// [`ApiError::Unreachable`] if xapi does not answer; [`ApiError::Refused`] with the name of its error;
    /// [`ApiError::Malformed`] for an answer that is no XML-RPC.
    pub fn call(&mut self, method: &str, params: &[Value]) -> Result<Value, ApiError> {
        self.call_and_read(method, params, xmlrpc::read_response)
    }

    fn call_and_read(&mut self, method: &str, params: &[Value], read: Reader) -> Result<Value, ApiError> {
        let mut all = vec![Value::text(self.session.as_str())];
        all.extend_from_slice(params);
        let body = xmlrpc::write_call(method, &all);
        let answer = self.post(&body, can_be_repeated(method))?;
        let answer = read(&answer).map_err(|e| ApiError::Malformed(format!("{method}: {e}")))?;
        unwrap(method, answer).map_err(|error| match error {
            // If xapi does not know the session, the refusal names the session. A refusal is logged and shown.
            ApiError::Refused(words) => {
                ApiError::Refused(words.into_iter().map(|word| word.replace(&self.session, "******")).collect())
            }
            other => other,
        })
    }

    fn post(&mut self, body: &str, repeatable: bool) -> Result<String, ApiError> {
        let deadline = Instant::now() + host::patience(DEADLINE);
        if let Some(connection) = self.connection.take() {
            match self.exchange(connection, body, deadline) {
                Ok(answer) => return Ok(answer),
                // It was closed while we did something else.
                Err(Broken { before_answer: true, .. }) if repeatable => {}
                Err(broken) => return Err(broken.why),
            }
        }
        let path = run_dir::xapi();
        let stream = UnixStream::connect(&path)
            .map_err(|e| ApiError::Unreachable(format!("cannot connect to {}: {e}", path.display())))?;
        self.exchange(BufReader::new(stream), body, deadline).map_err(|broken| broken.why)
    }

    /// One request and its answer. The connection is kept if xapi keeps it.
    fn exchange(
        &mut self,
        mut connection: BufReader<UnixStream>,
        body: &str,
        deadline: Instant,
    ) -> Result<String, Broken> {
        let mut head = String::from("POST / HTTP/1.1\r\nHost: localhost\r\nConnection: keep-alive\r\n");
        head.push_str("User-Agent: xcp-storage-managers\r\nContent-Type: text/xml\r\noriginator: SM\r\n");
        if let Some(task) = &self.task {
            head.push_str(&format!("Subtask-of: {task}\r\n"));
        }
        for (variable, header) in [("TRACEPARENT", "traceparent"), ("BAGGAGE", "baggage")] {
            if let Some(value) = std::env::var(variable).ok().filter(|v| !v.chars().any(char::is_control)) {
                head.push_str(&format!("{header}: {value}\r\n"));
            }
        }
        head.push_str(&format!("Content-Length: {}\r\n\r\n", body.len()));
        let mut sent = head.into_bytes();
        sent.extend_from_slice(body.as_bytes());
        patience(&connection, deadline, UnixStream::set_write_timeout)?;
        connection.get_mut().write_all(&sent).map_err(|e| Broken::new(true, &e))?;

        let status = line(&mut connection, deadline, true)?;
        let mut words = status.split(' ');
        let (version, code) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
        if !version.starts_with("HTTP/1.") {
            return Err(Broken::malformed("it is no HTTP"));
        }
        let (mut length, mut keep) = (None, version == "HTTP/1.1");
        for number in 0.. {
            let header = line(&mut connection, deadline, false)?;
            if header.is_empty() {
                break;
            }
            if number > 100 {
                return Err(Broken::malformed("it has more than 100 headers"));
            }
            let Some((name, value)) = header.split_once(':') else {
                return Err(Broken::malformed("a header has no colon"));
            };
            let value = value.trim();
            match name.to_ascii_lowercase().as_str() {
                "content-length" => match value.parse::<u64>() {
                    Ok(bytes) if bytes <= LARGEST => length = Some(bytes),
                    _ => return Err(Broken::malformed("its Content-Length is no length")),
                },
                "connection" if value.eq_ignore_ascii_case("close") => keep = false,
                "connection" if value.eq_ignore_ascii_case("keep-alive") => keep = true,
                "transfer-encoding" => return Err(Broken::malformed("it is sent in a Transfer-Encoding")),
                _ => {}
            }
        }
        if code != "200" {
            return Err(Broken { why: ApiError::Unreachable(format!("HTTP status {code}")), before_answer: false });
        }
        let body = read_body(&mut connection, length, deadline)?;
        if keep && length.is_some() {
            self.connection = Some(connection);
        }
        String::from_utf8(body).map_err(|_| Broken::malformed("it is not UTF-8"))
    }

    // The calls that more than one command makes.

    /// The records of an SR's VDIs by reference, with [`VDI_MEMBERS`]: one round trip however many there are.
    ///
    /// # Errors
    /// As [`Xapi::call`]; [`ApiError::Malformed`] for a reference with a quotation mark.
    pub fn vdi_records(&mut self, sr_ref: &str) -> Result<Vec<(String, Record)>, ApiError> {
        if sr_ref.contains(['"', '\\']) {
            return Err(ApiError::Malformed("sr_ref has a quotation mark".to_owned()));
        }
        let expression = format!("field \"SR\" = \"{sr_ref}\"");
        let read: Reader = |answer| xmlrpc::read_records(answer, VDI_MEMBERS);
        match self.call_and_read("VDI.get_all_records_where", &[Value::text(expression)], read)? {
            Value::Struct(records) => records
                .into_iter()
                .map(|(reference, record)| match record {
                    Value::Struct(record) => Ok((reference, record)),
                    _ => Err(ApiError::Malformed("a VDI record is no struct".to_owned())),
                })
                .collect(),
            other => Err(ApiError::Malformed(format!("VDI.get_all_records_where answered {}", other.kind()))),
        }
    }

    /// The reference of the object of a class (`SR`, `VDI`) that has a UUID; `None`: xapi has none.
    ///
    /// # Errors
    /// Those of [`Xapi::call`].
    pub fn by_uuid(&mut self, class: &str, uuid: &str) -> Result<Option<String>, ApiError> {
        let method = format!("{class}.get_by_uuid");
        match self.call(&method, &[Value::text(uuid)]) {
            Ok(Value::String(reference)) => Ok(Some(reference)),
            Ok(other) => Err(ApiError::Malformed(format!("{method} answered {}", other.kind()))),
            Err(e) if e.is_gone() => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// A call whose value is a struct.
    ///
    /// # Errors
    /// As [`Xapi::call`]; [`ApiError::Malformed`] for any other value.
    pub fn record(&mut self, method: &str, reference: &str) -> Result<Record, ApiError> {
        match self.call(method, &[Value::text(reference)])? {
            Value::Struct(record) => Ok(record),
            other => Err(ApiError::Malformed(format!("{method} answered {}", other.kind()))),
        }
    }

    /// Calls a setter of one object: `VDI.set_name_label`.
    ///
    /// # Errors
    /// As [`Xapi::call`].
    pub fn set(&mut self, method: &str, reference: &str, value: Value) -> Result<(), ApiError> {
        self.call(method, &[Value::text(reference), value]).map(drop)
    }

    /// Sets a 64-bit number, which XenAPI writes as a string.
    ///
    /// # Errors
    /// As [`Xapi::call`].
    pub fn set_number(&mut self, method: &str, reference: &str, number: u64) -> Result<(), ApiError> {
        self.set(method, reference, Value::text(number.to_string()))
    }

    /// Adds a key to a map of an object, which must not have it yet: `VDI.add_to_sm_config`.
    ///
    /// # Errors
    /// As [`Xapi::call`]; xapi refuses a key that is there.
    pub fn add_key(&mut self, method: &str, reference: &str, key: &str, value: &str) -> Result<(), ApiError> {
        self.call(method, &[Value::text(reference), Value::text(key), Value::text(value)]).map(drop)
    }
}

/// Whether saying it twice is as good as saying it once.
fn can_be_repeated(method: &str) -> bool {
    let message = method.split_once('.').map_or(method, |(_, message)| message);
    ["get_", "set_", "remove_from_"].iter().any(|prefix| message.starts_with(prefix)) || message == "db_forget"
}

fn unwrap(method: &str, answer: Response) -> Result<Value, ApiError> {
    let envelope = match answer {
        Response::Value(Value::Struct(envelope)) => envelope,
        Response::Value(other) => return Err(ApiError::Malformed(format!("{method} answered {}", other.kind()))),
        Response::Fault { code, message } => return Err(ApiError::Refused(vec![format!("fault {code}"), message])),
    };
    let mut envelope = envelope;
    match envelope.get("Status").and_then(Value::as_str) {
        Some("Success") => Ok(envelope.remove("Value").unwrap_or(Value::Nil)),
        Some("Failure") => match envelope.remove("ErrorDescription") {
            Some(Value::Array(words)) => {
                Err(ApiError::Refused(words.iter().filter_map(|w| w.as_str().map(str::to_owned)).collect()))
            }
            _ => Err(ApiError::Malformed(format!("{method} failed without an ErrorDescription"))),
        },
        _ => Err(ApiError::Malformed(format!("{method} answered without a Status"))),
    }
}

/// An exchange that did not come to its end.
struct Broken {
    why: ApiError,
    /// No byte of an answer was seen.
    before_answer: bool,
}

impl Broken {
    fn new(before_answer: bool, error: &io::Error) -> Broken {
        let why = match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                format!("no answer within {} s", host::patience(DEADLINE).as_secs())
            }
            io::ErrorKind::UnexpectedEof => "it closed the connection".to_owned(),
            _ => error.to_string(),
        };
        Broken { why: ApiError::Unreachable(why), before_answer }
    }

    fn malformed(why: &str) -> Broken {
        Broken { why: ApiError::Malformed(why.to_owned()), before_answer: false }
    }
}

/// Limits the next system call to the time that is left for the whole answer. The kernel's time-out, which `set` sets,
/// is per system call.
fn patience(
    connection: &BufReader<UnixStream>,
    deadline: Instant,
    set: fn(&UnixStream, Option<Duration>) -> io::Result<()>,
) -> Result<(), Broken> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(Broken::new(false, &io::ErrorKind::TimedOut.into()));
    }
    set(connection.get_ref(), Some(left)).map_err(|e| Broken::new(true, &e))
}

fn line(connection: &mut BufReader<UnixStream>, deadline: Instant, first: bool) -> Result<String, Broken> {
    const LONGEST: usize = 16 << 10;
    let mut line = Vec::new();
    loop {
        if connection.buffer().is_empty() {
            patience(connection, deadline, UnixStream::set_read_timeout)?;
        }
        let fresh = first && line.is_empty();
        let buffer = connection.fill_buf().map_err(|e| Broken::new(fresh && !is_timeout(&e), &e))?;
        if buffer.is_empty() {
            return Err(Broken::new(fresh, &io::ErrorKind::UnexpectedEof.into()));
        }
        let (taken, done) = match buffer.iter().position(|b| *b == b'\n') {
            Some(end) => (end + 1, true),
            None => (buffer.len(), false),
        };
        line.extend_from_slice(&buffer[..taken]);
        connection.consume(taken);
        if line.len() > LONGEST {
            return Err(Broken::malformed("a header is too long"));
        }
        if done {
            let text = String::from_utf8_lossy(&line);
            return Ok(text.trim_end_matches(['\r', '\n']).to_owned());
        }
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

fn read_body(
    connection: &mut BufReader<UnixStream>,
    length: Option<u64>,
    deadline: Instant,
) -> Result<Vec<u8>, Broken> {
    // As much as a socket holds: an answer may have megabytes.
    const PIECE: usize = 256 << 10;
    let mut body = Vec::new();
    let wanted = length.unwrap_or(LARGEST);
    while (body.len() as u64) < wanted {
        patience(connection, deadline, UnixStream::set_read_timeout)?;
        let start = body.len();
        let most = (wanted - start as u64).min(PIECE as u64) as usize;
        body.resize(start + most, 0);
        let got = match connection.read(&mut body[start..]) {
            Ok(got) => got,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {
                body.truncate(start);
                continue;
            }
            Err(e) => return Err(Broken::new(false, &e)),
        };
        body.truncate(start + got);
        if got == 0 {
            match length {
                Some(_) => return Err(Broken::new(false, &io::ErrorKind::UnexpectedEof.into())),
                None => break,
            }
        }
    }
    Ok(body)
}
