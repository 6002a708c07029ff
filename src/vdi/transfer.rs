//! Disks in and out: to and from files and pipes, in the formats that other programs read.

use std::cmp::Ordering;
use std::fmt;
use std::fs::File;
use std::io::{Read, Seek as _, Write};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::PathBuf;
use std::sync::Arc;

use nix::fcntl::OFlag;

use crate::error::{Error, Result};
use crate::image::SECTOR;
use crate::image::ahead::pieces_ahead;
use crate::image::disk::{Disk, DiskWriter, PIECE, RawImage, pieces, stream};
use crate::image::qcow2;
use crate::image::storage::FileStorage;
use crate::image::vhd::{self, Chain};
use crate::sys::copy::Progress;
use crate::sys::durable::NewFile;
use crate::types::{Format, Mode, Size};
use crate::vdi::vhd::VhdDisk;

/// A file or a pipe, open, and what errors call it.
#[derive(Clone, Debug)]
pub struct Stream {
    pub file: Arc<File>,
    pub name: PathBuf,
    /// The word of the caller that stands for it: the name of a file, or `-`.
    pub word: String,
    pub format: Format,
    /// The caller said the format. Else its name did, or nothing.
    pub stated: bool,
}

impl Stream {
    fn is_file(&self) -> Result<bool> {
        let kind = self.file.metadata().map_err(Error::io("examine", &self.name))?.file_type();
        Ok(kind.is_file() || kind.is_block_device())
    }

    /// Whether every byte of the file is to be what is written now: not if a caller redirected his output into the middle,
    /// or to the end, of what he has there.
    fn is_all_ours(&self) -> Result<bool> {
        let meta = self.file.metadata().map_err(Error::io("examine", &self.name))?;
        let at = (&*self.file).stream_position().map_err(Error::io("examine", &self.name))?;
        let flags = nix::fcntl::fcntl(&self.file, nix::fcntl::FcntlArg::F_GETFL);
        let flags = OFlag::from_bits_truncate(flags.map_err(Error::sys("examine", &self.name))?);
        let empty = meta.file_type().is_block_device() || meta.len() == 0;
        Ok(empty && at == 0 && !flags.contains(OFlag::O_APPEND))
    }

    fn reader(&self) -> Result<File> {
        self.file.try_clone().map_err(Error::io("duplicate", &self.name))
    }

    fn storage(&self) -> Result<Arc<FileStorage>> {
        Ok(Arc::new(FileStorage::new(self.reader()?, &self.name)?))
    }

    /// The bytes of a file, whatever format they are in.
    fn raw(&self) -> Result<RawImage> {
        RawImage::new(self.storage()?)
    }

    /// The first sector of a file, and the last one.
    fn ends(&self) -> Result<(Vec<u8>, Vec<u8>)> {
        let disk = self.raw()?;
        let (mut first, mut last) = (vec![0; SECTOR as usize], vec![0; SECTOR as usize]);
        disk.read_at(&mut first, 0)?;
        disk.read_at(&mut last, disk.size().saturating_sub(SECTOR))?;
        Ok((first, last))
    }

    fn unfit(&self, expected: String) -> Error {
        let (name, value) = (self.name.display().to_string(), self.word.clone());
        let expected = if name == value { expected } else { format!("{name}: {expected}") };
        Error::Invalid { what: "FILE", value, expected }
    }

    /// Refuses to take an image for the bytes of a disk unless that was said: a guest would find the image on its disk.
    fn refuse_container(&self, first: &[u8], last: &[u8]) -> Result<()> {
        let Some(container) = Container::of(first, last).filter(|_| !self.stated) else { return Ok(()) };
        let as_image = match container {
            Container::Ours(format) => format!("--file-type {format} reads it as that"),
            Container::Foreign(_) => "qemu-img convert makes a qcow2 of it".to_owned(),
            Container::Packed(_) => "unpack it first".to_owned(),
        };
        Err(self.unfit(format!("it looks like {container}: {as_image}, --file-type raw takes its bytes as they are")))
    }

    /// Refuses the wrong file. One that begins as it should and is broken is another matter.
    fn refuse_other(&self, first: &[u8], last: &[u8]) -> Result<()> {
        match Container::of(first, last) {
            Some(Container::Ours(format)) if format == self.format => Ok(()),
            Some(other) => Err(self.unfit(format!("it is no {} image, it looks like {other}", self.format))),
            None => Err(self.unfit(format!("it is no {} image", self.format))),
        }
    }
}

/// The kinds of format that the bytes of a file may look like.
enum Container {
    Ours(Format),
    Foreign(&'static str),
    /// A compressed file or an archive, in which an image may be.
    Packed(&'static str),
}

impl Container {
    /// By the marks that the formats have in the first sector; a fixed VHD has its own in the last.
    fn of(first: &[u8], last: &[u8]) -> Option<Container> {
        // The second one is left by a resize of vhd-util that was killed.
        const VHD: [&[u8]; 2] = [b"conectix", b"v_poison"];
        match first {
            [b'Q', b'F', b'I', 0xfb, ..] => Some(Container::Ours(Format::Qcow2)),
            _ if VHD.iter().any(|mark| first.starts_with(mark) || last.starts_with(mark)) => {
                Some(Container::Ours(Format::Vhd))
            }
            _ if first.starts_with(b"vhdxfile") => Some(Container::Foreign("VHDX")),
            _ if first.starts_with(b"KDMV") => Some(Container::Foreign("VMDK")),
            _ if first.starts_with(b"QED\0") => Some(Container::Foreign("QED")),
            // The method is "deflate", the only one that there is.
            _ if first.starts_with(&[0x1f, 0x8b, 8]) => Some(Container::Packed("gzip")),
            _ if first.starts_with(b"\xfd7zXZ\0") => Some(Container::Packed("xz")),
            _ if first.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) => Some(Container::Packed("zstd")),
            // The first header of an OVA or XVA.
            _ if first.get(257..262) == Some(b"ustar") => Some(Container::Packed("tar")),
            // VirtualBox, behind 64 bytes of text.
            _ if first.get(64..68) == Some(&[0x7f, 0x10, 0xda, 0xbe]) => Some(Container::Foreign("VDI")),
            _ => None,
        }
    }
}

impl fmt::Display for Container {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Container::Ours(format) => write!(f, "a {format} image"),
            Container::Foreign(name) => write!(f, "a {name} image"),
            Container::Packed(name) => write!(f, "a file packed by {name}"),
        }
    }
}

/// Writes all of a disk in the stream's format. A raw file stays sparse; durable for files.
///
/// # Errors
/// [`Error::TooBig`] for the format; what reading and writing say.
pub fn export(disk: &dyn Disk, to: &Stream, progress: Progress) -> Result<()> {
    let is_file = to.is_file()?;
    match to.format {
        Format::Raw if is_file && to.is_all_ours()? => {
            to.file.set_len(disk.size()).map_err(Error::io("write", &to.name))?;
            let total = data_of(disk)?;
            let mut done = 0;
            pieces(disk, &mut |offset, bytes| {
                to.file.write_all_at(bytes, offset).map_err(Error::io("write", &to.name))?;
                done += bytes.len() as u64;
                progress(done, total);
                Ok(())
            })?;
        }
        Format::Raw => raw_to_pipe(disk, to, progress)?,
        Format::Vhd => {
            let mut out = std::io::BufWriter::with_capacity(PIECE, &*to.file);
            vhd::write_stream(disk, &mut out, &to.name, progress)?;
            out.flush().map_err(Error::io("write", &to.name))?;
        }
        Format::Qcow2 => {
            let mut out = std::io::BufWriter::with_capacity(PIECE, &*to.file);
            qcow2::write_stream(disk, &mut out, &to.name, progress)?;
            out.flush().map_err(Error::io("write", &to.name))?;
        }
    }
    if is_file {
        to.file.sync_all().map_err(Error::io("make durable", &to.name))?;
    }
    Ok(())
}

fn raw_to_pipe(disk: &dyn Disk, to: &Stream, progress: Progress) -> Result<()> {
    let mut out = &*to.file;
    let mut put = |bytes: &[u8]| out.write_all(bytes).map_err(Error::io("write", &to.name));
    let zeroes = vec![0; PIECE];
    let mut at = 0;
    let fill = |from: &mut u64, until: u64, put: &mut dyn FnMut(&[u8]) -> Result<()>| -> Result<()> {
        while *from < until {
            let len = PIECE.min((until - *from) as usize);
            put(&zeroes[..len])?;
            *from += len as u64;
        }
        Ok(())
    };
    pieces(disk, &mut |offset, bytes| {
        fill(&mut at, offset, &mut put)?;
        put(bytes)?;
        at = offset + bytes.len() as u64;
        progress(at, disk.size());
        Ok(())
    })?;
    fill(&mut at, disk.size(), &mut put)
}

/// Bytes that [`pieces`] will look at.
fn data_of(disk: &dyn Disk) -> Result<u64> {
    let (mut total, mut at) = (0, 0);
    while let Some((start, end)) = disk.next_data(at)? {
        total += end - start;
        at = end;
    }
    Ok(total)
}

/// A disk on its way in. Its size is known before its bytes.
pub enum Incoming<'a> {
    /// Can be read in any order.
    Disk(Box<dyn Disk + 'a>),
    /// Raw bytes from a pipe, of so many bytes.
    RawPipe(Stream, u64),
    VhdPipe(Stream),
    /// Its tables may lie behind its data, so it has to be put down before it can be read.
    Qcow2Pipe(Stream),
}

impl Incoming<'_> {
    /// # Errors
    /// [`Error::Unsupported`] format, or a raw pipe without a size; [`Error::Invalid`] for an image of another format;
    /// [`Error::Damaged`] for a broken one.
    pub fn open(from: &Stream, size: Option<u64>) -> Result<Incoming<'static>> {
        let is_file = from.is_file()?;
        match from.format {
            Format::Raw if is_file => {
                let (first, last) = from.ends()?;
                from.refuse_container(&first, &last)?;
                Incoming::whole(from, from.raw()?)
            }
            Format::Raw => match size {
                Some(size) => Ok(Incoming::RawPipe(from.clone(), size)),
                None => {
                    let kind = from.file.metadata().map_err(Error::io("examine", &from.name))?.file_type();
                    let what = if kind.is_char_device() { "character device" } else { "pipe" };
                    Err(Error::Usage(format!(
                        "a {what} does not say how long it is: give --size, or --file-type if a vhd or qcow2 comes"
                    )))
                }
            },
            Format::Vhd if is_file => {
                let (first, last) = from.ends()?;
                from.refuse_other(&first, &last)?;
                let place = from.storage()?;
                vhd::refuse_cut_off(&*place)?;
                Incoming::whole(from, VhdDisk(Chain::open_single(place, Mode::ReadOnly)?))
            }
            Format::Vhd => Ok(Incoming::VhdPipe(from.clone())),
            Format::Qcow2 if is_file => {
                let (first, last) = from.ends()?;
                from.refuse_other(&first, &last)?;
                let place = from.storage()?;
                Incoming::whole(from, qcow2::Chain::open_to_import(place)?)
            }
            Format::Qcow2 => Ok(Incoming::Qcow2Pipe(from.clone())),
        }
    }

    /// An empty disk is refused, as vdi_create does: it is what a copy that failed leaves.
    fn whole(from: &Stream, disk: impl Disk + 'static) -> Result<Incoming<'static>> {
        match disk.size() {
            0 => Err(from.unfit("it is empty: a disk has at least one byte".to_owned())),
            _ => Ok(Incoming::Disk(Box::new(disk))),
        }
    }

    /// Writes the disk to `make(size)`, which may be larger. Data that has to be put down meanwhile goes to `spool`.
    ///
    /// # Errors
    /// [`Error::Oversized`] or [`Error::Invalid`] if more or less comes from a pipe than was said, or an image of a
    /// format that was not said; [`Error::Damaged`] if what comes contradicts itself; [`Error::Io`]; the errors of
    /// `make` and `spool`.
    pub fn fill<'d>(
        self,
        make: &mut dyn FnMut(u64) -> Result<Box<dyn DiskWriter + 'd>>,
        spool: &dyn Fn() -> Result<NewFile<'d>>,
        progress: Progress,
    ) -> Result<()> {
        match self {
            Incoming::Disk(disk) => {
                let mut to = make(disk.size())?;
                let (total, mut done) = (data_of(&*disk)?, 0);
                if let (Some(from), Some(into)) = (disk.as_raw(), to.as_raw())
                    && from.reflink(into)?
                {
                    progress(total, total);
                    return to.finish();
                }
                let mut write = |offset: u64, bytes: &[u8]| {
                    done += bytes.len() as u64;
                    progress(done, total);
                    to.write_at(bytes, offset)
                };
                match disk.as_raw() {
                    Some(raw) => pieces_ahead(raw, &mut write)?,
                    None => pieces(&*disk, &mut write)?,
                }
                to.finish()
            }
            Incoming::RawPipe(from, size) => {
                let mut to = make(size)?;
                let too_long = || Error::Oversized {
                    what: from.name.display().to_string(),
                    limit: format!("it has more than the {} that --size says", Size(size)),
                };
                let came = stream(&mut from.reader()?, &from.name, &mut |offset, bytes| {
                    if offset == 0 {
                        from.refuse_container(bytes, &[])?;
                    }
                    let end = offset + bytes.len() as u64;
                    // A fixed VHD has its mark in the last sector.
                    let last = size.next_multiple_of(512).saturating_sub(512);
                    if end == last + 512 && offset <= last {
                        from.refuse_container(&[], &bytes[(last - offset) as usize..])?;
                    }
                    if end > size.next_multiple_of(512) {
                        return Err(too_long());
                    }
                    progress(end, size);
                    to.write_at(bytes, offset)
                })?;
                match came.cmp(&size) {
                    Ordering::Equal => to.finish(),
                    Ordering::Greater => Err(too_long()),
                    // The program that wrote into the pipe has failed, and only its own status says so.
                    Ordering::Less => {
                        Err(Error::Damaged { path: from.name, what: format!("it ended after {came} of {size} bytes") })
                    }
                }
            }
            Incoming::Qcow2Pipe(from) => {
                let file = put_down(&from, &mut from.reader()?, &spool()?)?;
                Incoming::open(&Stream { file, ..from }, None)?.fill(make, spool, progress)
            }
            Incoming::VhdPipe(from) => {
                let mut input = std::io::BufReader::with_capacity(PIECE, from.reader()?);
                let mut front = Vec::new();
                let len = vhd::Incoming::FRONT;
                (&mut input).take(len).read_to_end(&mut front).map_err(Error::io("read", &from.name))?;
                if let Some(Container::Foreign(_) | Container::Packed(_) | Container::Ours(Format::Qcow2)) =
                    Container::of(&front, &[])
                {
                    from.refuse_other(&front, &[])?;
                }
                let streams = vhd::Incoming::can_read(&front);
                let mut input = front.as_slice().chain(input);
                if !streams {
                    let file = put_down(&from, &mut input, &spool()?)?;
                    return Incoming::open(&Stream { file, ..from }, None)?.fill(make, spool, progress);
                }
                let incoming = vhd::Incoming::open(&mut input, &from.name)?;
                let mut to = make(incoming.size())?;
                incoming.read(&mut |offset, bytes| to.write_at(bytes, offset), progress)?;
                to.finish()
            }
        }
    }
}

/// Puts down all that comes in a file, for formats that are read in another order than they come.
fn put_down(from: &Stream, input: &mut dyn Read, spooled: &NewFile) -> Result<Arc<File>> {
    let file = spooled.file();
    let came = stream(input, &from.name, &mut |offset, bytes| {
        file.write_all_at(bytes, offset).map_err(Error::io("put down what came from", &from.name))
    })?;
    file.set_len(came).map_err(Error::io("put down what came from", &from.name))?;
    Ok(Arc::new(file.try_clone().map_err(Error::io("duplicate", &from.name))?))
}
