//! The fuzz targets: one for each kind of bytes that somebody else writes, with seeds to start from. `tests/fuzz.rs` runs
//! all of them for a bounded time; `make fuzz` runs them under libFuzzer for as long as one likes. So nothing here depends
//! on either.
//!
//! A target returns, whatever the bytes are: a panic, a loop without end, or memory out of proportion is a fault. What the
//! operations answer does not matter, but where a target says so.

#![allow(dead_code, reason = "each fuzz target uses its part")]
#![allow(clippy::disallowed_types, reason = "qemu-img makes seeds")]

#[path = "backups.rs"]
pub mod backups;
#[path = "../vhd_support/hostile.rs"]
mod hostile;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{env, fs};

use xcp_sm::door::{sexp, size, xmlrpc};
use xcp_sm::image::vhd::{self, NewImage, ParentLink};
use xcp_sm::image::{qcow2, storage::Storage};
use xcp_sm::layout::{installed, model::Model};
use xcp_sm::sr::{DRIVERS, file};
use xcp_sm::sys::lvm;
use xcp_sm::types::{DeviceConfig, Mode};

/// A fuzz target.
pub struct Target {
    pub name: &'static str,
    pub run: fn(&[u8]),
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// What the format is made of, to be inserted.
    pub words: &'static [&'static str],
    /// How many inputs the bounded run tries.
    pub bounded: u32,
}

pub const TARGETS: &[Target] = &[
    Target {
        name: "vhd",
        run: vhd,
        seeds: vhd_seeds,
        words: &["conectix", "cxsparse", "W2ru", "./base.vhd"],
        bounded: 200,
    },
    Target { name: "qcow2", run: qcow2, seeds: qcow2_seeds, words: &["QFI\u{fb}", "raw", "base.qcow2"], bounded: 700 },
    Target {
        name: "xmlrpc",
        run: xmlrpc,
        seeds: xmlrpc_seeds,
        words: &[
            "<value>",
            "</value>",
            "<struct>",
            "</struct>",
            "<array><data>",
            "<member><name>",
            "<string>",
            "<i4>",
            "<int>",
            "<double>",
            "<boolean>",
            "<nil/>",
            "<base64>",
            "<dateTime.iso8601>",
            "<params>",
            "<fault>",
            "&amp;",
            "&#x0;",
            "&#1114112;",
            "<![CDATA[",
            "]]>",
            "<!--",
            "-->",
            "<?xml version='1.0'?>",
            "<!DOCTYPE a [",
            "1e999",
            "-",
        ],
        bounded: 20_000,
    },
    Target {
        name: "dconf",
        run: dconf,
        seeds: dconf_seeds,
        words: &[
            "((",
            " . ",
            "))",
            "\"",
            "\\x41;",
            "'",
            "#t",
            "#u8(",
            "location",
            "server",
            "serverpath",
            "device",
            "/..",
            "::1",
        ],
        bounded: 20_000,
    },
    Target {
        name: "records",
        run: records,
        seeds: records_seeds,
        words: &[
            "(sr ",
            "(vdi ",
            "(lock ",
            "(fork ",
            "(relink ",
            "(collapse ",
            "users",
            " . ",
            "\"",
            A,
            BASE,
            "#t",
            "#nil",
            "()",
        ],
        bounded: 2000,
    },
    Target {
        name: "lvm",
        run: lvm,
        seeds: lvm_seeds,
        words: &[
            "\"report\":",
            "\"vg\":[",
            "\"lv\":[",
            "\"lv_tags\":",
            "18446744073709551615",
            "-1",
            "\\u0000",
            "100.00",
            "99.",
            "null",
        ],
        bounded: 5000,
    },
    Target {
        name: "model",
        run: model,
        seeds: model_seeds,
        words: &[
            "layout: ", "uuid: ", "lvm: ", "file: ", "nfs: ", "addr: ", "attach: ", "host=", "dev=", "index=",
            "size>=", "span=all", "[0-9]", "[00-99]", "[", "]", "\"", ",", "#", "\n", "%2c", "$index", "(a*)*",
        ],
        bounded: 3000,
    },
    Target {
        name: "age",
        run: backups::age,
        seeds: backups::age_seeds,
        words: &["age-encryption.org/v1\n", "-> ", "X25519 ", "scrypt ", "\n--- ", "--- ", "\n", "AAAAAAAA", "=", "\r"],
        bounded: 5000,
    },
    Target {
        name: "stream",
        run: backups::stream,
        seeds: backups::stream_seeds,
        words: &[
            "sm-backup-stream 1\n",
            "set web\n",
            "run ",
            "block 0 ",
            "block 4194304 ",
            "end\n",
            "done\n",
            "../",
            "0-0 zero\n",
            "-18446744073709551615 zero\n",
            "\"virtual_size\": ",
            "\"parent\": null",
            "\"index\": 1",
            "zstd",
            "gzip",
            "9223372036854775807",
        ],
        bounded: 400,
    },
];

/// Images are at most so long, bytes.
const LONGEST: usize = 6 << 20;

/// An image as a list of its pieces: sector and length, 16 bits each with the lower byte first, then the bytes. What lies
/// between them is zero. So an image of megabytes is an input of a few hundred bytes, all of which mean something.
fn image(mut pieces: &[u8]) -> Vec<u8> {
    let mut image = Vec::new();
    while let Some((head, rest)) = pieces.split_first_chunk::<4>() {
        let at = usize::from(u16::from_le_bytes([head[0], head[1]])) * 512 % LONGEST;
        let len = usize::from(u16::from_le_bytes([head[2], head[3]])).min(rest.len());
        if image.len() < at + len {
            image.resize(at + len, 0);
        }
        image[at..at + len].copy_from_slice(&rest[..len]);
        pieces = &rest[len..];
    }
    image
}

/// The pieces of a whole number of sectors.
fn pieces(image: &[u8]) -> Vec<u8> {
    let mut pieces = Vec::new();
    let mut piece = |sector: usize, bytes: &[u8]| {
        pieces.extend(u16::try_from(sector).expect("a short image").to_le_bytes());
        pieces.extend(u16::try_from(bytes.len()).expect("one sector").to_le_bytes());
        pieces.extend(bytes);
    };
    for (sector, bytes) in image.chunks(512).enumerate() {
        if let Some(last) = bytes.iter().rposition(|byte| *byte != 0) {
            piece(sector, &bytes[..=last]);
        }
    }
    piece(image.len() / 512, &[]);
    pieces
}

/// A directory in memory, if there is one.
pub fn memory() -> PathBuf {
    Some(PathBuf::from("/dev/shm")).filter(|dir| dir.is_dir()).unwrap_or_else(env::temp_dir)
}

fn bytes_of(place: &dyn Storage) -> Vec<u8> {
    let mut all = vec![0; place.size().unwrap() as usize];
    for (i, part) in all.chunks_mut(1 << 20).enumerate() {
        place.read_at(part, (i as u64) << 20).unwrap();
    }
    all
}

/// What `qemu-img create` makes of these options, if there is a qemu-img.
fn made_by_qemu(options: &[&str]) -> Option<Vec<u8>> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    let (size, options) = options.split_last().unwrap();
    let mut qemu_img = Command::new("qemu-img");
    qemu_img.args(["create", "-q"]).args(options).arg(&path).arg(size).stderr(Stdio::inherit());
    qemu_img.status().ok()?.success().then(|| fs::read(path).unwrap())
}

// ==== VHD

/// The first byte decides whether the checksums are made right, so that what lies behind them is reached.
pub fn vhd(bytes: &[u8]) {
    let Some((shape, bytes)) = bytes.split_first() else { return };
    let mut image = image(bytes);
    if shape & 1 == 1 {
        seal(&mut image);
    }
    hostile::try_everything(&image);
}

fn seal(image: &mut [u8]) {
    let end = image.len();
    for (start, len, at) in [(0, 512, 0x40), (512, 1024, 0x24), (end.saturating_sub(512), 512, 0x40)] {
        if let Some(part) = image.get_mut(start..start + len) {
            part[at..at + 4].fill(0);
            let sum = part.iter().fold(0u32, |sum, byte| sum.wrapping_add(u32::from(*byte)));
            part[at..at + 4].copy_from_slice(&(!sum).to_be_bytes());
        }
    }
}

fn vhd_seeds() -> Vec<Vec<u8>> {
    let fixed_uuid = |mut image: Vec<u8>| {
        let end = image.len();
        for footer in [0, end - 512] {
            if image[footer..].starts_with(b"conectix") {
                image[footer + 0x18..footer + 0x1c].fill(0);
                image[footer + 0x44..footer + 0x54].fill(7);
            }
        }
        seal(&mut image);
        [vec![1], pieces(&image)].concat()
    };
    let new = NewImage::new(10 << 20);
    let dynamic = hostile::small(&[]);
    vhd::create(&*dynamic, &new).unwrap();
    let child = hostile::small(&[]);
    let link = ParentLink { path: "./base.vhd".into(), uuid: Some(new.uuid), timestamp: 1 };
    vhd::create_child(&*child, &new, &link).unwrap();
    let written = hostile::small(&bytes_of(&*dynamic));
    let chain = vhd::Chain::open(written.clone(), Mode::ReadWrite, |_| unreachable!()).unwrap();
    chain.write_at(&[0x55; 512], 4 << 20).unwrap();
    chain.close().unwrap();
    let fixed = hostile::small(&[]);
    vhd::create_fixed(&*fixed, &NewImage::new(1 << 20)).unwrap();
    let ours = [dynamic, child, written, fixed].into_iter().map(|place| bytes_of(&*place));
    let qemu = [["-f", "vpc", "10M"].as_slice(), &["-f", "vpc", "-o", "subformat=fixed", "1M"]];
    ours.chain(qemu.into_iter().filter_map(made_by_qemu)).map(fixed_uuid).collect()
}

// ==== qcow2

/// A table of a qcow2 has 32 MiB at most.
fn small(bytes: &[u8]) -> Arc<dyn Storage> {
    hostile::read_by(bytes, 32 << 20)
}

/// Takes 4 MiB.
struct Little(usize);

impl Write for Little {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 = self.0.checked_sub(bytes.len()).ok_or(io::ErrorKind::StorageFull)?;
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

pub fn qcow2(bytes: &[u8]) {
    use qcow2::{Chain, Header, Image, Parent};
    use xcp_sm::image::disk::Served;
    let image = image(bytes);
    let place = small(&image);
    let _ = qcow2::named_parent(&*place);
    let Ok(header) = Header::read(&*place) else { return };
    let raw = small(&[7; 5120]);
    let open = |leaf, mode| Chain::open(Parent::Qcow2(leaf), mode, |_| Ok(Parent::Raw(raw.clone())));
    let reads = |chain: &Chain| {
        let size = chain.virtual_size();
        let mut buf = vec![0; 64 << 10];
        for at in [0, 64 << 10, 1 << 20, size / 2, size.saturating_sub(64 << 10)] {
            let at = at / 512 * 512;
            let len = (buf.len() as u64).min(size.saturating_sub(at)) as usize / 512 * 512;
            let _ = chain.read_at(&mut buf[..len], at);
        }
    };
    if let Ok(chain) = open(place.clone(), Mode::ReadOnly) {
        reads(&chain);
        let _ = qcow2::write_stream(&chain, &mut Little(4 << 20), Path::new("out"), &|_, _| {});
    }
    let itself = Chain::open(Parent::Qcow2(place.clone()), Mode::ReadOnly, |_| Ok(Parent::Qcow2(place.clone())));
    let _ = itself.map(|chain| reads(&chain));

    let copy = small(&image);
    if let Ok(chain) = open(copy, Mode::ReadWrite) {
        let size = chain.virtual_size() / 512 * 512;
        for at in [0, 1 << 20, size / 2, size.saturating_sub(1024)] {
            let _ = chain.write_at(&[1; 1024], at / 512 * 512);
        }
        let _ = chain.write_zeroes(0, size.min(4 << 20));
        let _ = chain.flush();
        reads(&chain);
        let _ = Box::new(chain).close();
    }
    let copy = small(&image);
    let _ = qcow2::set_hidden(&*copy, true);
    let _ = qcow2::set_parent(&*copy, "other.qcow2", "qcow2");
    let _ = qcow2::resize(&copy, 600 << 20);
    if let Ok(child) = Image::open(place, Mode::ReadOnly) {
        let parent = small(&[]);
        if qcow2::create(&*parent, header.virtual_size).is_ok()
            && let Ok(parent) = Chain::open_single(parent, Mode::ReadWrite)
        {
            let _ = qcow2::coalesce(&child, &parent, &|_, _| std::ops::ControlFlow::Continue(()));
        }
    }
}

fn qcow2_seeds() -> Vec<Vec<u8>> {
    use xcp_sm::image::disk::Served;
    let empty = small(&[]);
    qcow2::create(&*empty, 10 << 20).unwrap();
    let written = small(&bytes_of(&*empty));
    let chain = qcow2::Chain::open_single(written.clone(), Mode::ReadWrite).unwrap();
    chain.write_at(&[0x55; 512], 1 << 20).unwrap();
    chain.write_zeroes(2 << 20, 64 << 10).unwrap();
    Box::new(chain).close().unwrap();
    let child = small(&[]);
    qcow2::create_child(&*child, 10 << 20, None, "base.qcow2", "qcow2").unwrap();
    let ours = [empty, written, child].into_iter().map(|place| bytes_of(&*place));
    let qemu: [&[&str]; 6] = [
        &["-f", "qcow2", "10M"],
        &["-f", "qcow2", "-o", "compat=0.10", "10M"],
        &["-f", "qcow2", "-o", "cluster_size=512", "1M"],
        &["-f", "qcow2", "-o", "cluster_size=512,preallocation=metadata", "64k"],
        &["-f", "qcow2", "-o", "cluster_size=2M", "10M"],
        &["-f", "qcow2", "-o", "extended_l2=on", "10M"],
    ];
    let short = |image: &Vec<u8>| image.len() < LONGEST;
    ours.chain(qemu.into_iter().filter_map(made_by_qemu)).filter(short).map(|image| pieces(&image)).collect()
}

// ==== XML-RPC

/// What was read and is written again is read again as the same.
pub fn xmlrpc(bytes: &[u8]) {
    let document = String::from_utf8_lossy(bytes);
    if let Ok((method, params)) = xmlrpc::read_call(&document) {
        let written = xmlrpc::write_call(&method, &params);
        let (again, same) = xmlrpc::read_call(&written).expect("a call that we wrote");
        assert_eq!((again, xmlrpc::write_call(&method, &same)), (method, written));
    }
    let _ = xmlrpc::read_records(&document, &["uuid", "name_label"]);
    if let Ok(xmlrpc::Response::Value(value)) = xmlrpc::read_response(&document) {
        let written = xmlrpc::write_response(&value);
        let again = xmlrpc::read_response(&written).expect("a response that we wrote");
        let xmlrpc::Response::Value(again) = again else { panic!("a value became a fault") };
        assert_eq!(xmlrpc::write_response(&again), written);
    }
}

fn xmlrpc_seeds() -> Vec<Vec<u8>> {
    use xmlrpc::Value;
    // What xapi sends to a driver, as tests/smapiv1 does.
    let request = Value::Struct(
        [
            ("host_ref", Value::text("OpaqueRef:0")),
            ("command", Value::text("vdi_create")),
            (
                "args",
                Value::Array(vec![Value::text("1048576"), Value::text("a & b"), Value::text(""), Value::text("false")]),
            ),
            ("device_config", Value::map([("SRmaster", "true"), ("location", "/srv/sr0")])),
            ("session_ref", Value::text("OpaqueRef:1")),
            ("sr_uuid", Value::text("87b8646b-b800-9500-cb7b-af3b74e02f5c")),
            ("vdi_sm_config", Value::map([("type", "raw")])),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into(),
    );
    let record = Value::Struct(
        [
            ("uuid", Value::text("98de866e-b035-4b1a-a571-00000000000a")),
            ("virtual_size", Value::Int(-1)),
            ("ratio", Value::Double(0.5)),
            ("read_only", Value::Boolean(true)),
            ("snapshot_time", Value::DateTime("19700101T00:00:00Z".to_owned())),
            ("blob", Value::Base64("QQ==".to_owned())),
            ("nothing", Value::Nil),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into(),
    );
    let records = Value::Struct([("OpaqueRef:2".to_owned(), record)].into());
    let envelope = Value::Struct([("Status".to_owned(), Value::text("Success")), ("Value".to_owned(), records)].into());
    let by_python = "<?xml version='1.0'?>\n<methodCall>\n<methodName>sr_scan</methodName>\n<params>\n<param>\n<value><struct>\n\
                     <member>\n<name>args</name>\n<value><array><data>\n<value><int>1</int></value>\n</data></array></value>\n\
                     </member>\n</struct></value>\n</param>\n</params>\n</methodCall>\n";
    [
        xmlrpc::write_call("vdi_create", &[request]),
        xmlrpc::write_response(&envelope),
        xmlrpc::write_fault(46, "The VDI is not available [opterr=x]"),
        by_python.to_owned(),
    ]
    .map(String::into_bytes)
    .into()
}

// ==== dconf

/// The first byte chooses the driver. Nothing outside is touched.
pub fn dconf(bytes: &[u8]) {
    let Some((first, text)) = bytes.split_first() else { return };
    let driver = DRIVERS[usize::from(*first) % DRIVERS.len()];
    if let Ok(config) = sexp::device_config(driver, &String::from_utf8_lossy(text)) {
        let sr = "87b8646b-b800-9500-cb7b-af3b74e02f5c".parse().unwrap();
        let _ = (driver.open)(sr, &config, Instant::now().into());
    }
}

fn dconf_seeds() -> Vec<Vec<u8>> {
    let forms = [
        "/srv/sr0",
        "/dev/sdb,/dev/sdc",
        "10.0.0.5:/export",
        "[fe80::1%eth0]:/export/a b",
        "user%pass@server:/share",
        "//server/share",
        "((location . \"/srv/sr0\"))",
        "((device . \"/dev/sdb\") (allocation . \"thin\"))",
        "((server . \"10.0.0.5\") (serverpath . \"/export\") (nfsversion . \"4.1\") (options . \"soft,timeo=600\"))",
        "((location . \"//server/share\") (type . \"cifs\") (username . \"a\") (cifspassword . \"b\\x41;\"))",
    ];
    (0..DRIVERS.len()).flat_map(|driver| forms.map(|form| [&[driver as u8], form.as_bytes()].concat())).collect()
}

// ==== Models and installed layouts

/// A layout that is read is written as a text that is read as the same layout, or refused.
pub fn model(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let _ = Model::parse(&text, Path::new("x.model"), "node1", size::parse);
    if let Ok(layout) = installed::parse(&text, Path::new("x.layout")) {
        let _ = installed::text_of(&layout);
    }
}

fn model_seeds() -> Vec<Vec<u8>> {
    let model = "layout: rack1 # x\ndescription: a b\naddr: host=f[1-2] addr=10.0.0.[11-12]\nlvm_format: allocation=thin\n\
                 lvm: host=node1 dev=/dev/disk/by-id/wwn-.* size>=100G span=all index=0 tag=\"a b\"\nfile: host=node1 dev=/srv/sr[00-02]\n\
                 nfs: host=f1 dev=/e[0-3] index=[4-7] active=no\nattach: host=node1 class=nfs options=ro\ngateway: host=node1 fabric=iscsi\n";
    let layout = "layout: rack1\nuuid: 87b8646b-b800-9500-cb7b-af3b74e02f5c\nattach_path: /mnt/$layout\n\
                  lvm: index=0 host=node1 dev=/dev/a,/dev/b identity=wwid:a,wwid:%2cb size=1B,2B\n\
                  file: index=[0-3] host=node1 dev=/srv/sr[0-3] identity=file:/srv/sr[0-3]\n";
    [model, layout].map(|text| text.as_bytes().to_vec()).to_vec()
}

// ==== Records beside the disks of a file SR

const SR: &str = "87b8646b-b800-9500-cb7b-af3b74e02f5c";
const A: &str = "98de866e-b035-4b1a-a571-00000000000a";
const B: &str = "98de866e-b035-4b1a-a571-00000000000b";
const BASE: &str = "98de866e-b035-4b1a-a571-0000000000ba";

/// The files that hold records. The first byte of an input chooses which of them has the rest.
const RECORDS: [&str; 6] = [
    ".sm-sr",
    "98de866e-b035-4b1a-a571-00000000000a.params",
    "98de866e-b035-4b1a-a571-00000000000a.lock/1",
    ".sm-tree",
    ".sm-sr-deleting",
    "98de866e-b035-4b1a-a571-0000000000ba.params",
];

/// An SR that is listed, attached (which repairs it), and listed again. The disk B, of which no record tells, is there
/// afterwards as it was.
pub fn records(bytes: &[u8]) {
    let Some((first, record)) = bytes.split_first() else { return };
    let scratch = tempfile::Builder::new().prefix("sm-fuzz-").tempdir_in(memory()).expect("a scratch directory");
    let dir = scratch.path();
    fs::create_dir(dir.join(format!("{A}.lock"))).unwrap();
    for (disk, byte) in [(A, 1), (B, 2), (BASE, 3)] {
        fs::write(dir.join(format!("{disk}.raw")), [byte; 4096]).unwrap();
    }
    fs::write(dir.join(RECORDS[0]), marker()).unwrap();
    fs::write(dir.join(RECORDS[usize::from(*first) % RECORDS.len()]), record).unwrap();

    let config = DeviceConfig::from([("location", dir.to_str().unwrap())]);
    let sr =
        (file::DRIVER.open)(SR.parse().unwrap(), &config, (Instant::now() + Duration::from_secs(5)).into()).unwrap();
    let look = || {
        let _ = (file::DRIVER.probe)(&config, (Instant::now() + Duration::from_secs(5)).into());
        let _ = sr.stat();
        let _ = sr.scan();
        let _ = sr.vdi(A.parse().unwrap()).map(|vdi| vdi.info());
    };
    look();
    let _ = sr.attach();
    look();
    assert_eq!(fs::read(dir.join(format!("{B}.raw"))).ok(), Some(vec![2; 4096]), "the disk B is not what it was");
}

fn marker() -> String {
    format!("(sr (uuid . \"{SR}\") (type . \"file\") (made_directory . #f))\n")
}

fn records_seeds() -> Vec<Vec<u8>> {
    let tree = |kind: &str| format!("({kind} (vdi . \"{A}\") (base . \"{BASE}\") (format . \"vhd\"))");
    let params =
        "(vdi (label . \"root disk\") (description . \"a \\\"b\\\" \\x41;\") (read_only . #f) (shareable . #f))";
    let fork = format!("(fork (vdi . \"{A}\") (base . \"{BASE}\") (dest \"{A}\") (format . \"raw\"))");
    let texts = [
        (0, marker()),
        (1, params.to_owned()),
        (5, params.to_owned()),
        (2, "(lock (users \"host1/vm7\" \"u2\"))".to_owned()),
        (3, fork),
        (3, tree("relink")),
        (3, tree("collapse")),
        (4, marker()),
    ];
    texts.into_iter().map(|(which, text)| [&[which], text.as_bytes()].concat()).collect()
}

// ==== What LVM says

/// Tags hold any text, and come back as they were.
pub fn lvm(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let _ = lvm::parse_report(&text);
    if let Some(read) = lvm::parse_metadata(&text, |uuid, _| Some(Path::new("/dev").join(uuid))) {
        let held: u64 = read.vg.lvs.iter().map(|lv| lv.size).sum();
        assert_eq!(held + read.vg.free, read.vg.size, "each extent is of one volume, or free");
    }
    let _ = lvm::parse_extents(&text);
    let _ = lvm::parse_signatures(&text);
    let _ = lvm::unescape(&text);
    assert_eq!(lvm::unescape(&lvm::escape(&text)), text);
}

fn lvm_seeds() -> Vec<Vec<u8>> {
    let reports = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/lvm");
    // The fuzz package is a directory of this one.
    let reports =
        if reports.is_dir() { reports } else { Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/lvm") };
    let mut files: Vec<_> = fs::read_dir(reports).expect("reports of LVM").map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let extents =
        r#"{"report":[{"seg":[{"seg_pe_ranges":"/dev/sda:0-2 /dev/x:y:3-4"}]},{"lv":[{"seg_pe_ranges":""}]}]}"#;
    let signatures = "# offset,uuid,label,type\n0x438,0a1b,root,ext4\n0x0,,,dos\n";
    let said = [extents, signatures].map(|text| text.as_bytes().to_vec());
    files.iter().map(|file| fs::read(file).unwrap()).chain(said).collect()
}

/// Panics unless the seeds of images are images.
pub fn sound_images() {
    let vhds = vhd_seeds();
    assert!(vhds.iter().all(|seed| vhd::query(&*hostile::small(&image(&seed[1..]))).is_ok()));
    let known = |seed: &&Vec<u8>| qcow2::Header::read(&*hostile::small(&image(seed))).is_ok();
    assert!(qcow2_seeds().iter().filter(known).count() >= 3);
}
