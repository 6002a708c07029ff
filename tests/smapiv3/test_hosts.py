"""Two hosts of a pool with one SR on NFS. Run by tests/guest/smapiv3.sh, which makes the hosts: HOST_A and HOST_B are processes in their
namespaces."""

import json
import os
import random
import signal
import subprocess
import tempfile
import time
import unittest
import uuid

from plugin import Fault, Host

SM = os.environ["SM"]
SERVED = os.environ.get("SERVED")
MiB = 1 << 20


def of_name(name):
    return f"00000000-0000-4000-8000-00000000000{name.lower()}"


class Member(Host):
    """A host of the pool."""

    def __init__(self, scratch, name, number, sr):
        super().__init__(os.path.join(scratch, name), SM, ["nfs"],
                         ["nsenter", "-t", os.environ[f"HOST_{name}"], "-m", "-n", "-u", "--"])
        with open(os.path.join(self.run_dir, "xensource-inventory"), "w", encoding="utf-8") as inventory:
            inventory.write(f"PRODUCT_BRAND='XCP-ng'\nINSTALLATION_UUID='{of_name(name)}'\n")
        self.config = {"server": f"10.0.{number}.1", "serverpath": "/", "nfsversion": "4.2", "sr_uuid": sr}
        self.sr = f"sm://nfs/{sr}"

    def attach(self):
        assert self.call("SR.attach", sr_type="nfs", configuration=self.config) == self.sr

    def volume(self, method, key, **more):
        return self.call(f"Volume.{method}", sr_type="nfs", sr=self.sr, key=key, **more)

    def datapath(self, method, key, domain="1"):
        return self.call(f"Datapath.{method}", uri=f"{self.sr}/{key}", domain=domain)

    def device(self, key):
        return dict(self.datapath("attach", key)["implementations"])["BlockDevice"]["path"]

    def refused(self, number, call):
        try:
            call()
        except Fault as fault:
            assert fault.number == number, fault
            return fault.params[1]
        raise AssertionError("it was not refused")


@unittest.skipUnless(SERVED, "tests/guest/smapiv3.sh makes the hosts")
class TwoHosts(unittest.TestCase):
    def setUp(self):
        self.scratch = tempfile.mkdtemp(prefix="smapiv3-")
        self.uuid = str(uuid.uuid4())
        self.a, self.b = Member(self.scratch, "A", 1, self.uuid), Member(self.scratch, "B", 2, self.uuid)
        config = {key: value for key, value in self.a.config.items() if key != "sr_uuid"}
        made = self.a.call("SR.create", sr_type="nfs", uuid=self.uuid, configuration=config, name="shared", description="")
        self.assertEqual(made, self.a.config)
        self.assertNotIn(self.uuid, subprocess.run([*self.a.prefix, "cat", "/proc/mounts"], capture_output=True,
                                                   text=True, check=True).stdout)
        self.a.attach()
        self.b.attach()
        self.key = self.a.call("Volume.create", sr_type="nfs", sr=self.a.sr, name="d", description="", size=4 * MiB,
                               sharable=False)["key"]

    def tearDown(self):
        for host in (self.a, self.b):
            host.datapath("detach", self.key)
        for volume in self.a.call("SR.ls", sr_type="nfs", sr=self.a.sr):
            self.a.volume("destroy", volume["key"])
        self.b.call("SR.detach", sr_type="nfs", sr=self.b.sr)
        self.a.call("SR.destroy", sr_type="nfs", sr=self.a.sr)
        self.assertEqual(os.listdir(SERVED), [name for name in os.listdir(SERVED) if name != self.uuid])

    def test_one_host_writes_and_the_other_one_takes_over(self):
        self.a.datapath("activate", self.key)
        with open(self.a.device(self.key), "r+b", buffering=0) as disk:
            disk.write(b"a" * 4096)
            os.fsync(disk)
        self.b.datapath("attach", self.key)
        self.assertIn("another host", self.b.refused(24, lambda: self.b.datapath("activate", self.key)))
        self.assertFalse(os.path.exists(self.b.device(self.key)))
        self.b.refused(24, lambda: self.b.volume("clone", self.key))
        self.b.refused(24, lambda: self.b.volume("destroy", self.key))
        # Only the host that writes can make a snapshot; xapi asks it then.
        with self.assertRaises(Fault) as raised:
            self.b.volume("snapshot", self.key)
        self.assertEqual(raised.exception.params, ["Activated_on_another_host", of_name("A")])
        for method, more in (("enable_cbt", {}), ("resize", {"new_size": 6 * MiB})):
            with self.assertRaises(Fault) as raised:
                self.b.volume(method, self.key, **more)
            self.assertEqual(raised.exception.params[0], "Activated_on_another_host")
        self.a.volume("enable_cbt", self.key)
        first, snapshot = (self.a.volume("snapshot", self.key)["key"] for _ in range(2))
        # The log of the disk gets the blocks of the snapshot, and is the writer's.
        self.b.refused(24, lambda: self.b.volume("destroy", snapshot))
        self.b.refused(24, lambda: self.b.volume("list_changed_blocks", first, key2=self.key, offset=0, length=-1))
        self.b.volume("list_changed_blocks", first, key2=snapshot, offset=0, length=-1)
        self.a.volume("resize", self.key, new_size=8 * MiB)
        # Both read the snapshot meanwhile.
        for host in (self.a, self.b):
            host.datapath("activate", snapshot)
            with open(host.device(snapshot), "rb") as disk:
                self.assertEqual(disk.read(2), b"aa")
        for host in (self.a, self.b):
            host.datapath("detach", snapshot)
        self.a.datapath("deactivate", self.key)
        self.b.volume("destroy", snapshot)
        self.b.volume("resize", self.key, new_size=9 * MiB)
        self.b.datapath("activate", self.key)
        with open(self.b.device(self.key), "rb") as disk:
            self.assertEqual(disk.read(2), b"aa")
        self.a.refused(24, lambda: self.a.datapath("activate", self.key))
        self.a.datapath("detach", self.key)
        self.b.datapath("detach", self.key)

    def test_a_host_that_was_rebooted_drops_its_claims_and_no_others(self):
        other = self.a.call("Volume.create", sr_type="nfs", sr=self.a.sr, name="", description="", size=MiB, sharable=False)["key"]
        self.b.datapath("activate", other)
        # As it is after a crash: the lock is there, the device is not.
        config = "(" + " ".join(f'({key} . "{value}")' for key, value in self.a.config.items() if key != "sr_uuid") + ")"
        subprocess.run([*self.a.prefix, "env", f"XCP_SM_RUN_DIR={self.a.run_dir}", SM, "-t", "nfs", "-d", config, "vdi_lock",
                        self.uuid, self.key, f"host {of_name('A')}"], check=True, capture_output=True)
        self.b.refused(24, lambda: self.b.datapath("activate", self.key))
        self.a.attach()
        self.b.datapath("activate", self.key)
        self.a.refused(24, lambda: self.a.datapath("activate", other))
        self.b.datapath("detach", self.key)
        self.b.datapath("detach", other)

    def test_a_volume_for_several_hosts_is_written_by_both(self):
        key = self.a.call("Volume.create", sr_type="nfs", sr=self.a.sr, name="", description="", size=MiB, sharable=True)["key"]
        for number, host in enumerate((self.a, self.b)):
            host.datapath("activate", key, "0")
            with open(host.device(key), "r+b", buffering=0) as disk:
                disk.seek(4096 * number)
                disk.write(host.config["server"].encode().ljust(4096))
                os.fsync(disk)
        for host in (self.a, self.b):
            host.datapath("detach", key, "0")
        self.a.datapath("activate", key, "0")
        with open(self.a.device(key), "rb") as disk:
            self.assertEqual([disk.read(4096).strip() for _ in range(2)], [b"10.0.1.1", b"10.0.2.1"])
        self.a.datapath("detach", key, "0")

    def test_a_call_for_a_device_that_is_killed_is_made_again(self):
        seed = int(os.environ.get("DAY") or "1")
        chance = random.Random(seed)
        for turn in range(int(os.environ.get("TURNS") or "12")):
            method = ("activate", "deactivate", "detach")[turn % 3]
            if method != "activate":
                self.a.datapath("activate", self.key)
            with self.a.start(f"Datapath.{method}", "--json") as call:
                call.stdin.write(json.dumps({"dbg": "", "uri": f"{self.a.sr}/{self.key}", "domain": "1"}).encode())
                call.stdin.close()
                time.sleep(chance.random() * 0.25)
                call.send_signal(signal.SIGKILL)
            self.a.datapath(method, self.key)
            there = method == "activate"
            self.assertEqual(os.path.exists(self.a.device(self.key)), there, (seed, turn, method))
            if there:
                with open(self.a.device(self.key), "r+b", buffering=0) as disk:
                    disk.write(bytes([turn]) * 512)
                    os.fsync(disk)
                self.b.refused(24, lambda: self.b.datapath("activate", self.key))
                self.a.datapath("deactivate", self.key)
            # Nothing is left that keeps another host from it.
            self.b.datapath("activate", self.key)
            self.b.datapath("deactivate", self.key)
        loops = subprocess.run(["losetup", "--noheadings", "-O", "BACK-FILE"], capture_output=True, text=True, check=True).stdout
        self.assertNotIn(self.key, loops)


if __name__ == "__main__":
    unittest.main()
