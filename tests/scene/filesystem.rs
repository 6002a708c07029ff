//! Small filesystems of their own, on a file or in memory.

use std::path::{Path, PathBuf};

use assert_cmd::Command;
use tempfile::TempDir;

/// A mounted filesystem; unmounted and removed when dropped.
pub struct Filesystem {
    dir: TempDir,
    kind: &'static str,
}

impl Filesystem {
    /// `kind`: ext4, xfs or tmpfs.
    pub fn new(kind: &'static str, mib: u64) -> Filesystem {
        let dir = tempfile::Builder::new().prefix("sm-fs-").tempdir().expect("a scratch directory");
        let fs = Filesystem { dir, kind };
        std::fs::create_dir(fs.path()).unwrap();
        if kind != "tmpfs" {
            let image = std::fs::File::create_new(fs.image()).unwrap();
            image.set_len(mib << 20).unwrap();
            let mkfs = format!("mkfs.{kind}");
            // Without a lazily written inode table, which a background thread would go on writing.
            let options: &[&str] =
                if kind == "ext4" { &["-q", "-E", "lazy_itable_init=0,lazy_journal_init=0"] } else { &["-q"] };
            run(Command::new(mkfs).args(options).arg(fs.image()));
            fs.mount("loop");
        } else {
            fs.mount(&format!("size={mib}m"));
        }
        fs
    }

    pub fn path(&self) -> PathBuf {
        self.dir.path().join("m")
    }

    fn image(&self) -> PathBuf {
        self.dir.path().join("image")
    }

    pub fn mount(&self, options: &str) {
        let source = if self.kind == "tmpfs" { Path::new("none").to_owned() } else { self.image() };
        run(Command::new("mount").args(["-t", self.kind, "-o", options]).arg(source).arg(self.path()));
    }

    pub fn remount(&self, options: &str) {
        run(Command::new("mount").args(["-o", &format!("remount,{options}")]).arg(self.path()));
    }

    pub fn unmount(&self) {
        run(Command::new("umount").arg(self.path()));
    }

    /// The power fails: what was not made durable is lost. Then it comes back.
    pub fn power_cut(&self) {
        run(Command::new("xfs_io").args(["-x", "-c", "shutdown"]).arg(self.path()));
        for _ in 0..50 {
            self.unmount();
            self.mount("loop");
            if !self.is_shut_down() {
                return;
            }
            // A process in another mount namespace kept the filesystem as it was.
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        panic!("{}: still shut down after 5 s", self.path().display());
    }

    /// As the kernel tells of ext4.
    fn is_shut_down(&self) -> bool {
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        let own = self.path().display().to_string();
        let mut fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        fields.any(|of| of[1] == own && of[3].split(',').any(|option| option == "shutdown"))
    }

    /// Leaves about this many bytes free.
    pub fn fill(&self) {
        use std::io::Write;
        let mut file = std::fs::File::create(self.path().join("filler")).unwrap();
        for size in [1 << 20, 1 << 16, 1 << 12, 1] {
            while file.write_all(&vec![7; size]).is_ok() {}
        }
        let _ = file.sync_all();
    }
}

impl Drop for Filesystem {
    fn drop(&mut self) {
        for device in super::loop_devices(&self.path()) {
            let _ = Command::new("losetup").arg("-d").arg(device).output();
        }
        let _ = Command::new("umount").arg("-l").arg(self.path()).output();
    }
}

/// Runs a tool of the system. Others look at every new device for a moment, and it is busy for that long.
fn run(command: &mut Command) {
    for _ in 0..50 {
        let output = command.output().expect("it starts");
        if output.status.success() {
            return;
        }
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(words.contains("busy"), "{command:?}: {words}");
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    panic!("{command:?}: busy for 5 s");
}
