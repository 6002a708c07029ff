"""The plug-in of the data path, with the block devices of this host. Run by `cargo test --test smapiv3`."""

import json
import os
import socket
import stat
import subprocess
import threading
import time
import unittest
import uuid

from plugin import Fault
from test_volumes import MiB, Case


@unittest.skipUnless(os.geteuid() == 0, "block devices want root")
class Datapath(Case):
    def setUp(self):
        super().setUp()
        self.attached()
        self.busy = []

    def clean(self):
        for uri, domain in self.busy:
            self.path("detach", uri, domain)
        super().clean()

    def path(self, method, uri, domain="0"):
        answer = self.host.call(f"Datapath.{method}", uri=uri, domain=domain)
        if method.startswith("activate"):
            self.busy.append((uri, domain))
        return answer

    def refused_path(self, number, method, uri, domain):
        with self.assertRaises(Fault) as raised:
            self.path(method, uri, domain)
        self.assertEqual(raised.exception.number, number, raised.exception)
        return raised.exception.params[1]

    def device(self, uri):
        found = dict(self.path("attach", uri)["implementations"])
        return found["BlockDevice"]["path"]

    def is_there(self, uri):
        return os.path.exists(self.device(uri))

    def read_only(self, device):
        return subprocess.run(["blockdev", "--getro", device], capture_output=True, check=True).stdout.strip() == b"1"

    def test_an_attachment_names_a_device_and_makes_none(self):
        for sharable in (False, True):
            volume = self.new(sharable=sharable)
            (uri,) = volume["uri"]
            backend = self.path("attach", uri, "7")
            self.assertEqual(self.path("attach", uri, "8"), backend)
            found = dict(backend["implementations"])
            self.assertEqual(len(found), len(backend["implementations"]))
            self.assertEqual(found["XenDisk"]["params"], found["BlockDevice"]["path"])
            self.assertEqual(found["XenDisk"]["backend_type"], "vbd")
            self.assertEqual(found["XenDisk"]["extra"]["vdi-uuid"], volume["key"])
            self.assertFalse(self.is_there(uri))
            self.path("detach", uri, "7")
            self.path("deactivate", uri, "7")

    def test_what_one_domain_writes_the_next_one_reads(self):
        for sharable in (False, True):
            volume = self.new(sharable=sharable)
            (uri,) = volume["uri"]
            device = self.device(uri)
            for _ in range(2):
                self.path("activate", uri, "12")
            self.assertTrue(stat.S_ISBLK(os.stat(device).st_mode))
            self.assertEqual(int(subprocess.run(["blockdev", "--getsize64", device], capture_output=True, check=True).stdout),
                             volume["virtual_size"])
            with open(device, "r+b") as disk:
                disk.seek(5 * MiB)
                disk.write(b"written by 12")
            self.refused(24, "Volume.destroy", sr=self.sr, key=volume["key"])
            # xenopsd asks for it twice.
            for _ in range(2):
                self.path("deactivate", uri, "12")
            self.path("detach", uri, "12")
            self.assertFalse(self.is_there(uri))
            self.path("activate", uri, "u0_vbd_0_xvda")
            with open(device, "rb") as disk:
                disk.seek(5 * MiB)
                self.assertEqual(disk.read(13), b"written by 12")
            self.path("detach", uri, "u0_vbd_0_xvda")
            self.volume("destroy", volume["key"])
        self.assertEqual(os.listdir(f"{self.host.run_dir}/sm/smapiv3/{self.uuid}"), ["sr"])

    def test_the_last_domain_ends_the_device(self):
        (uri,) = self.new()["uri"]
        domains = ["0", "u0_a/../b", "", "λ\n"]
        for domain in domains:
            self.path("activate", uri, domain)
        for domain in domains[:-1]:
            self.path("deactivate", uri, domain)
            self.path("deactivate", uri, domain)
            self.assertTrue(self.is_there(uri), domain)
        self.path("deactivate", uri, "somebody else")
        self.assertTrue(self.is_there(uri))
        self.refused(16, "SR.detach", sr=self.sr)
        self.path("deactivate", uri, domains[-1])
        self.assertFalse(self.is_there(uri))
        self.host.call("SR.detach", sr=self.sr)
        self.refused_path(47, "activate", uri, "0")
        self.path("deactivate", uri, "0")
        self.path("detach", uri, "0")

    def test_readers_and_writers(self):
        volume = self.new()
        (uri,) = volume["uri"]
        self.path("activate_readonly", uri, "1")
        self.path("activate_readonly", uri, "2")
        self.assertTrue(self.read_only(self.device(uri)))
        self.assertIn("read-only", self.refused_path(24, "activate", uri, "3"))
        self.path("deactivate", uri, "1")
        self.path("deactivate", uri, "3")
        self.assertTrue(self.is_there(uri))
        self.path("deactivate", uri, "2")
        self.path("activate", uri, "3")
        self.assertFalse(self.read_only(self.device(uri)))
        self.assertIn("writable", self.refused_path(24, "activate_readonly", uri, "4"))
        self.path("deactivate", uri, "3")
        self.assertFalse(self.is_there(uri))
        (snapshot,) = self.volume("snapshot", volume["key"])["uri"]
        self.path("activate", snapshot, "5")
        self.assertTrue(self.read_only(self.device(snapshot)))
        self.path("deactivate", snapshot, "5")

    def test_a_disk_in_use_is_snapshotted_resized_and_tracked(self):
        volume = self.new()
        key, (uri,) = volume["key"], volume["uri"]
        self.path("activate", uri, "9")
        device = self.device(uri)
        self.volume("enable_cbt", key)
        with open(device, "r+b", buffering=0) as disk:
            disk.write(b"a" * 65536)
            os.fsync(disk)
            first = self.volume("snapshot", key)
            disk.seek(3 * 65536)
            disk.write(b"b" * 65536)
            os.fsync(disk)
            second = self.volume("snapshot", key)
        self.volume("resize", key, new_size=20 * MiB)
        self.assertEqual(int(subprocess.run(["blockdev", "--getsize64", device], capture_output=True, check=True).stdout), 20 * MiB)
        self.assertEqual(self.volume("stat", key)["virtual_size"], 20 * MiB)
        blocks = self.volume("list_changed_blocks", first["key"], key2=second["key"], offset=0, length=-1)
        self.assertEqual(blocks["bitmap"][:4], "EAAA")
        self.refused(24, "Volume.clone", sr=self.sr, key=key)
        self.refused(24, "Volume.revert", sr=self.sr, key=key, snapshot=first["key"])
        self.path("deactivate", uri, "9")
        self.volume("revert", key, snapshot=first["key"])
        self.path("activate", uri, "9")
        with open(device, "rb") as disk:
            disk.seek(3 * 65536)
            self.assertEqual(disk.read(1), b"\0")
        self.path("detach", uri, "9")

    def test_a_device_that_is_held_is_removed_later(self):
        (uri,) = self.new()["uri"]
        self.path("activate", uri, "3")
        with open(self.device(uri), "rb"):
            self.refused_path(24, "deactivate", uri, "3")
            # Never fails: xenopsd would ignore it, and come back never.
            self.path("detach", uri, "3")
            self.assertTrue(os.path.exists(f"{self.host.run_dir}/sm/smapiv3/{self.uuid}/{uri.rsplit('/', 1)[1]}"))
            self.refused(16, "SR.detach", sr=self.sr)
        self.path("activate", uri, "4")
        self.path("deactivate", uri, "4")
        self.assertFalse(self.is_there(uri))
        self.path("activate", uri, "5")
        with open(self.device(uri), "rb"):
            self.path("detach", uri, "5")
        self.host.call("SR.detach", sr=self.sr)
        self.assertFalse(os.path.exists(f"{self.host.run_dir}/sm/smapiv3/{self.uuid}"))

    def test_calls_for_one_volume_at_the_same_time(self):
        (uri,) = self.new()["uri"]
        failures = []

        def work(domain):
            try:
                for _ in range(4):
                    self.path("attach", uri, domain)
                    self.path("activate", uri, domain)
                    with open(self.device(uri), "rb") as disk:
                        disk.read(512)
                    self.path("deactivate", uri, domain)
                    self.path("detach", uri, domain)
            except (Fault, AssertionError, OSError) as failure:
                failures.append(failure)

        threads = [threading.Thread(target=work, args=(str(number),)) for number in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        # A device that another domain's last use closes late is a refusal that its domain can repeat.
        self.assertEqual([str(failure) for failure in failures], [])
        self.assertFalse(self.is_there(uri))

    def test_what_is_no_uri(self):
        uri = self.new()["uri"][0]
        for bad in ("", "sm://file", uri + "/..", uri.replace("sm:", "file:"), uri.replace("file/", "lvm/"), "/dev/sda"):
            self.refused_path(1, "attach", bad, "0")
            self.refused_path(1, "activate", bad, "0")
        self.refused_path(1, "activate", uri, "x" * 5000)
        self.refused_path(46, "attach", uri[:-1] + ("0" if uri[-1] != "0" else "1"), "0")
        self.refused_path(46, "activate", f"sm://file/{self.uuid}/{uuid.uuid4()}", "0")

    def test_a_volume_is_used_before_xapi_is_there(self):
        """As static-vdis does it at boot."""
        volume = self.new()
        words = [word for pair in self.config.items() for word in ("--configuration", *pair)]
        sr = self.host.words("SR.attach", *words)
        (uri,) = self.host.words("Volume.stat", sr, volume["key"])["uri"]
        backend = self.host.words("Datapath.attach", uri, "0")
        self.busy.append((uri, "0"))
        self.assertIsNone(self.host.words("Datapath.activate", uri, "0"))
        with open(dict(backend["implementations"])["BlockDevice"]["path"], "r+b") as disk:
            disk.write(b"statefile")
        # xapi takes the volume up later, and lets go of it.
        self.path("attach", uri, "u0_x")
        self.path("activate", uri, "u0_x")
        self.path("deactivate", uri, "u0_x")
        self.assertTrue(self.is_there(uri))
        self.assertIsNone(self.host.words("Datapath.deactivate", uri, "0"))
        self.assertFalse(self.is_there(uri))

    def test_a_call_whose_caller_closes_the_pipe_early_is_carried_out(self):
        (uri,) = self.new()["uri"]
        self.busy.append((uri, "0"))
        with self.host.start("Datapath.activate", "--json") as call:
            call.stdout.close()
            call.stdin.write(json.dumps({"dbg": "", "uri": uri, "domain": "0"}).encode())
            call.stdin.close()
            call.wait(timeout=60)
        until = time.monotonic() + 10
        while not self.is_there(uri) and time.monotonic() < until:
            time.sleep(0.05)
        self.assertTrue(self.is_there(uri))
        self.path("deactivate", uri, "0")
        self.assertFalse(self.is_there(uri))


TAP_CTL = """#!/bin/sh
# A tap-ctl of version 4.
case $1 in
allocate) echo @DIR@/tapdisk-8 ;;
spawn) echo @PID@ ;;
esac
"""


@unittest.skipUnless(os.geteuid() == 0, "block devices want root")
class Tapdisk(Case):
    """A host with blktap 4: guests get at their disks through a tapdisk only, which has no block device."""

    def setUp(self):
        super().setUp()
        path = os.path.join(self.scratch, "tap-ctl")
        with open(path, "w", encoding="ascii") as file:
            # A tapdisk that does not live is none; this process does.
            self.pid = os.getpid()
            file.write(TAP_CTL.replace("@DIR@", self.scratch).replace("@PID@", str(self.pid)))
        os.chmod(path, 0o755)
        self.host.env["PATH"] = self.scratch + ":" + self.host.env["PATH"]
        os.makedirs("/run/blktap-control", exist_ok=True)
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.bind(f"/run/blktap-control/nbd{self.pid}.8")
        self.addCleanup(os.unlink, f"/run/blktap-control/nbd{self.pid}.8")
        self.addCleanup(self.socket.close)
        self.attached()

    def test_a_volume_has_a_tapdisk_while_a_domain_has_it(self):
        self.assertNotIn("VDI_RESIZE_ONLINE", self.host.call("Plugin.Query")["features"])
        volume = self.new()
        key, (uri,) = volume["key"], volume["uri"]
        found = dict(self.host.call("Datapath.attach", uri=uri, domain="1")["implementations"])
        self.assertEqual(set(found), {"XenDisk", "Nbd"})
        self.assertEqual(found["XenDisk"]["backend_type"], "vbd3")
        self.assertEqual(found["XenDisk"]["params"], found["Nbd"]["uri"])
        scheme, unix, path, name = found["Nbd"]["uri"].split(":")
        self.assertEqual((scheme, unix, name), ("nbd", "unix", f"exportname={key}"))
        for domain in ("1", "2"):
            self.host.call("Datapath.activate", uri=uri, domain=domain)
        self.assertTrue(os.path.islink(path))
        self.refused(24, "Volume.resize", sr=self.sr, key=key, new_size=20 * MiB)
        self.host.call("Datapath.deactivate", uri=uri, domain="1")
        self.assertTrue(os.path.islink(path))
        self.host.call("Datapath.detach", uri=uri, domain="2")
        self.assertFalse(os.path.lexists(path))
        self.volume("resize", key, new_size=20 * MiB)


if __name__ == "__main__":
    unittest.main()
