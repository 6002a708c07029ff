#!/usr/bin/env python3
"""What `sm backup` and `sm vdi_copy` cost, beside what one would use instead, in the same run.

BIN is the directory of the release executables; BENCH_DIR a directory on the filesystem to measure; MIB the data of the disk.
Every row runs all commands in turn, several times, and prints medians: figures of one machine at one time compare.
"""
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

BIN = os.environ["BIN"]
MIB = int(os.environ.get("MIB", "1024"))
ROUNDS = int(os.environ.get("ROUNDS", "3"))
SR = "87b8646b-b800-9500-cb7b-af3b74e02f5c"
QUIET = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}


def run(*words, **more):
    done = subprocess.run(words, **{**QUIET, **more}, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(words)}: {done.stderr.decode()}")


def timed(work):
    start = time.monotonic()
    work()
    return time.monotonic() - start


def row(name, reference, others):
    """The median seconds of each work, and its ratio to that of the reference, round by round."""
    works = [reference, *others]
    seconds = {label: [] for label, *_ in works}
    for _ in range(ROUNDS):
        for label, prepare, work in works:
            prepare()
            os.sync()
            seconds[label].append(timed(work))
    base = seconds[reference[0]]
    print(f"{name}")
    for label, *_ in works:
        ratio = statistics.median(own / other for own, other in zip(seconds[label], base))
        rate = MIB / statistics.median(seconds[label])
        print(f"  {label:<34} {statistics.median(seconds[label]):>8.2f} s {rate:>8.0f} MiB/s {ratio:>7.2f}")


class Scene:
    def __init__(self, root):
        self.root = root
        os.environ["XCP_SM_RUN_DIR"] = self.path("run")
        for name in ("run", "store", "out"):
            os.mkdir(self.path(name), 0o700)
        with open(self.path("run/stores.conf"), "w", encoding="ascii") as conf:
            conf.write(f"store: name=nas path={self.path('store')}\n")
        self.sm("backup", "store-init", "nas")
        self.sm("sr_create", "--name", "fast", "-t", "file", "-d", self.path("sr"), SR)

    def path(self, name):
        return os.path.join(self.root, name)

    def sm(self, *words):
        run(os.path.join(BIN, "sm"), *words)

    def export(self, *more):
        self.sm("backup", "export", "web", "--disk", "fast/web", "--to", "nas", *more)

    def image(self):
        """The image of the disk, which is no base."""
        uuid = subprocess.run([os.path.join(BIN, "sm"), "vdi_get_params", "fast/web", "--format", "json"],
                              capture_output=True, check=True).stdout
        uuid = json.loads(uuid)
        return self.path(f"sr/{uuid['uuid']}.{uuid['type']}")

    def forget(self, image):
        """Has an image read from its disk the next time."""
        with open(image, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def clear(self):
        shutil.rmtree(self.path("out"))
        os.mkdir(self.path("out"))

    def peers(self, image, kind):
        """The other programs that are here, each with what it needs before a whole copy."""
        out = self.path("out")

        def remove(name):
            shutil.rmtree(f"{out}/{name}", ignore_errors=True)

        # Without -t, it ends before what it wrote is on the disk.
        found = [("qemu-img convert to raw", self.clear,
                  lambda: run("qemu-img", "convert", "-t", "writeback", "-f", kind, "-O", "raw", image, f"{out}/raw"))]
        if shutil.which("borg"):
            os.environ.update(BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK="yes", BORG_BASE_DIR=self.path("borg"))

            def borg():
                remove("borg")
                run("borg", "init", "-e", "none", f"{out}/borg")
            found.append(("borg create, no compression", borg,
                          lambda: run("borg", "create", "-C", "none", f"{out}/borg::{time.monotonic_ns()}", image)))
        if shutil.which("restic"):
            os.environ.update(RESTIC_PASSWORD="x", RESTIC_CACHE_DIR=self.path("restic"))

            def restic():
                remove("restic")
                run("restic", "init", "-r", f"{out}/restic")
            found.append(("restic backup, no compression", restic,
                          lambda: run("restic", "backup", "--compression", "off", "-r", f"{out}/restic", image)))
        return found


def read_by(*words):
    """The bytes that a command and the programs that it ran read, by the kernel's count for their shell."""
    script = '"$@" > /dev/null && cat /proc/$$/io'
    told = subprocess.run(["sh", "-c", script, "sh", *words], capture_output=True, check=True).stdout.decode()
    return int(next(line.split()[1] for line in told.splitlines() if line.startswith("rchar:")))


def bytes_read(scene, change):
    """What an increment after a change of 1 % reads, beside a whole export. The images tell what changed."""
    export = [os.path.join(BIN, "sm"), "backup", "export", "web", "--disk", "fast/web", "--to", "nas", "--keep", "9"]
    whole = read_by(*export, "--since", "none")
    change()
    part = read_by(*export, "--since", "last")
    print(f"bytes read by an increment after 1 % was changed: {part} of {whole} ({100 * part / whole:.2f} %)")
    if MIB >= 512 and part * 50 > whole:
        sys.exit("more than 2 % were read")


def increments(scene, source):
    """1 % of a disk is overwritten before each work: of a qcow2 disk of ours, and of a raw file for the others."""
    one, at = max(MIB // 100, 1), [0]

    def place():
        at[0] = (at[0] + one) % (MIB - one)
        return at[0] << 20

    def ours():
        words = f"write -P {random.randrange(1, 255)} {place()} {one << 20}"
        run("qemu-io", "-f", "qcow2", "-c", words, scene.image())

    def theirs():
        with open(source, "r+b") as file:
            file.seek(place())
            file.write(os.urandom(one << 20))

    scene.sm("vdi_import", "fast", source, "--type", "qcow2", "--label", "web")
    scene.export("--since", "none")
    others = []
    for label, prepare, work in scene.peers(source, "raw")[1:]:
        prepare()
        work()
        others.append((label, theirs, work))
    row("export after 1 % was changed", ("sm backup export --since last", ours,
        lambda: scene.export("--since", "last", "--keep", "9")), others)
    bytes_read(scene, ours)


def copies(scene, source):
    """A copy of a disk in each format. What the others made is on the disk when they end, as ours is."""
    scene.sm("vdi_import", "fast", source, "--type", "raw", "--label", "web")
    image, out = scene.image(), scene.path("out/copy")

    def remove():
        subprocess.run([os.path.join(BIN, "sm"), "vdi_delete", "fast/copy", "--yes"], **QUIET, check=False)

    def copied(kind):
        run("qemu-img", "convert", "-t", "writeback", "-f", "raw", "-O", kind, image, out)

    def cp():
        run("cp", "--sparse=always", "--reflink=never", image, out)
        run("sync", out)

    for kind, name in (("raw", "raw"), ("vhd", "vpc"), ("qcow2", "qcow2")):
        others = [("cp --sparse=always, sync", scene.clear, cp)] if kind == "raw" else []
        row(f"copy of a raw disk as {kind}", (f"qemu-img convert to {name}", scene.clear, lambda name=name: copied(name)), [
            ("sm vdi_copy", remove, lambda kind=kind: scene.sm("vdi_copy", "fast/web", "fast/copy", "--type", kind)),
            *others,
        ])
        remove()
    scene.sm("vdi_delete", "fast/web", "--yes")


def main():
    with tempfile.TemporaryDirectory(prefix="sm-bench.", dir=os.environ.get("BENCH_DIR")) as root:
        scene = Scene(root)
        print(f"backup: a disk with {MIB} MiB of data, and as much room again; seconds, rate, ratio to the first line")
        with open(scene.path("source"), "wb") as source:
            noise = random.Random(1)
            for _ in range(MIB):
                # Half of it can be packed.
                source.write(noise.randbytes(1 << 19) + b"abcdefgh" * (1 << 16))
            source.truncate(2 * MIB << 20)
        nothing = lambda: None
        for kind, name in (("raw", "raw"), ("vhd", "vpc")):
            scene.sm("vdi_import", "fast", scene.path("source"), "--type", kind, "--label", "web")
            image = scene.image()
            def read(image=image):
                run("dd", f"if={image}", "of=/dev/null", "bs=4M", f"count={MIB // 4}")
            def copy(image=image):
                run("cp", "--sparse=always", "--reflink=never", image, scene.path("out/cp"))
                run("sync", scene.path("out/cp"))
            def from_disk(work, image=image):
                label, prepare, run_it = work
                def and_forget():
                    prepare()
                    scene.forget(image)
                return label, and_forget, run_it
            first = ("dd of its data to /dev/null", nothing, read)
            works = [
                ("cp --sparse=always, sync", scene.clear, copy),
                ("sm backup export", nothing, scene.export),
                ("sm backup export --compress zstd", nothing, lambda: scene.export("--compress", "zstd")),
                *scene.peers(image, name),
            ]
            row(f"whole export of a {kind} disk", first, works)
            row(f"whole export of a {kind} disk that is not in memory", from_disk(first), [from_disk(it) for it in works])
            scene.sm("backup", "remove", "web")
            scene.sm("backup", "undefine", "web")
            scene.sm("vdi_delete", "fast/web")
        copies(scene, scene.path("source"))
        if shutil.which("qemu-io"):
            increments(scene, scene.path("source"))


main()
