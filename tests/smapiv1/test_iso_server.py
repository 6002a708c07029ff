"""ISOSR on a server, as xapi uses it: ISO_LOCATION and ISO_KEYS (JSON) are device_config, ISO_DIR is the directory that
the server exports. Run by tests/guest/iso-nfs.sh and iso-smb.sh."""

import json
import os
import subprocess
import unittest
import uuid

from agent import Agent
from test_file import MiB, Case, checksum

LOCATION = os.environ.get("ISO_LOCATION", "")
KEYS = json.loads(os.environ.get("ISO_KEYS", "{}"))
SMB = LOCATION.startswith("//")


@unittest.skipUnless(LOCATION, "wants a server")
class Served(Case):
    executable = "ISOSR"

    def setUp(self):
        super().setUp()
        self.dir = os.environ["ISO_DIR"]
        self.agent = Agent(self.xapi, self.driver, dict(KEYS, location=LOCATION), sr_type="iso")
        self.mounted = os.path.join(self.host, "sr-mount", self.agent.sr_uuid)
        self.put("a b.iso", 2)
        self.put("x.img", 1)
        self.put("notes.txt", 1)

    def put(self, name, megabytes):
        path = os.path.join(self.dir, name)
        with open(path, "wb") as file:
            file.write(os.urandom(megabytes * MiB))
        self.addCleanup(lambda: os.path.exists(path) and os.unlink(path))

    def names(self):
        return {v["location"]: r for r, v in self.xapi.of(self.agent.sr_ref).items()}

    def configured(self, **keys):
        self.agent.device_config = dict(KEYS, location=LOCATION, SRmaster="true")
        self.agent.device_config.update(keys)
        return self.agent

    def activated(self, vdi, writable):
        link = self.agent.call("vdi_attach", writable, vdi=vdi)["params"]
        self.agent.call("vdi_activate", writable, vdi=vdi)
        return link

    def deactivated(self, vdi):
        self.agent.call("vdi_deactivate", vdi=vdi)
        self.agent.call("vdi_detach", vdi=vdi)

    def test_the_life_of_an_sr(self):
        before = checksum(self.dir)
        self.agent.create_sr()
        self.assertEqual(self.xapi.srs[self.agent.sr_ref]["sm_config"]["iso_type"], "cifs" if SMB else "nfs_iso")
        self.assertFalse(os.path.exists(self.mounted))
        self.agent.attach_sr()
        self.agent.attach_sr()
        self.assertTrue(os.path.ismount(self.mounted))
        self.agent.scan()
        self.assertEqual(set(self.names()), {"a b.iso", "x.img"})
        vdi = self.names()["a b.iso"]
        self.assertTrue(self.xapi.vdis[vdi]["read_only"])
        with open(self.activated(vdi, "false"), "rb") as device, open(os.path.join(self.dir, "a b.iso"), "rb") as file:
            self.assertEqual(device.read(), file.read())
        self.fails(16, self.agent.call, "sr_detach")
        self.deactivated(vdi)
        self.assertEqual(checksum(self.dir), before)
        with open(os.path.join(self.mounted, "x.img"), "rb"):
            self.assertIn("process", self.fails(223, self.agent.call, "sr_detach"))
        self.agent.call("sr_detach")
        self.agent.call("sr_detach")
        self.assertFalse(os.path.exists(self.mounted))
        self.fails(47, self.agent.call, "sr_scan")
        self.assertEqual(set(self.names()), {"a b.iso", "x.img"})

    def test_a_disk_is_made_filled_and_deleted(self):
        self.agent.attach_sr()
        vdi = self.agent.create(2 * MiB + 5, sm_config={})
        record = self.xapi.vdis[vdi]
        self.assertEqual(record["location"], record["uuid"] + ".img")
        self.assertFalse(record["read_only"])
        self.agent.scan()
        self.assertFalse(record["read_only"])
        data = os.urandom(2 * MiB)
        with open(self.activated(vdi, "true"), "r+b") as device:
            device.write(data)
            device.flush()
            os.fsync(device.fileno())
        self.fails(24, self.agent.call, "vdi_delete", vdi=vdi)
        self.deactivated(vdi)
        with open(os.path.join(self.dir, record["location"]), "rb") as file:
            self.assertEqual(file.read()[:2 * MiB], data)
        self.agent.delete(vdi)
        self.agent.delete(self.names()["x.img"])
        self.agent.scan()
        self.assertEqual(set(self.names()), {"a b.iso"})
        self.assertEqual({n for n in os.listdir(self.dir) if os.path.isfile(os.path.join(self.dir, n))},
                         {"a b.iso", "notes.txt"})
        self.agent.call("sr_detach")

    def test_a_directory_below(self):
        below = os.path.join(self.dir, "below")
        os.mkdir(below)
        self.addCleanup(os.rmdir, below)
        self.put("below/deep.iso", 1)
        self.configured(iso_path="/below").call("sr_attach")
        self.assertEqual(set(self.names()), {"deep.iso"})
        self.agent.call("sr_detach")
        self.fails(224, self.configured(iso_path="nowhere").call, "sr_attach")
        self.assertFalse(os.path.exists(self.mounted))

    def test_what_the_server_has_not(self):
        nowhere = "//127.0.0.1/nowhere" if SMB else "127.0.0.1:/nowhere"
        for command in ("sr_attach", "sr_create"):
            args = ["0"] if command == "sr_create" else []
            self.fails(224, self.configured(location=nowhere).call, command, *args)
            self.fails(222 if SMB else 108, self.configured(options="port=1").call, command, *args)
            unknown = "//no-such.invalid/x" if SMB else "no-such.invalid:/x"
            self.fails(140, self.configured(location=unknown).call, command, *args)
        self.fails(225, self.configured(location="what").call, "sr_attach")
        os.makedirs(self.mounted)
        subprocess.run(["mount", "-t", "tmpfs", "t", self.mounted], check=True)
        self.assertIn("is mounted there", self.fails(222, self.configured().call, "sr_attach"))
        self.fails(222, self.configured().call, "sr_attach")
        subprocess.run(["umount", self.mounted], check=True)

    @unittest.skipUnless(SMB, "of a user")
    def test_who_may(self):
        for key in ({"cifspassword": "hunter3"}, {"username": "root"}):
            self.assertIn("mount error(13)", self.fails(224, self.configured(**key).call, "sr_attach"))
        self.fails(227, self.configured(vers="4").call, "sr_attach")
        without = {k: v for k, v in self.configured().device_config.items() if k not in ("username", "cifspassword")}
        self.agent.device_config = dict(without, options="-o username=nobody,password=hunter2")
        self.assertIn("mount error(13)", self.fails(224, self.agent.call, "sr_attach"))
        secret = str(uuid.uuid4())
        self.xapi.secrets["OpaqueRef:s"] = {"uuid": secret, "value": KEYS["cifspassword"]}
        config = {k: v for k, v in self.configured(cifspassword_secret=secret).device_config.items()
                  if k != "cifspassword"}
        self.agent.device_config = dict(config, vers="3.0")
        self.agent.create_sr()
        self.agent.attach_sr()
        self.agent.scan()
        self.assertEqual(set(self.names()), {"a b.iso", "x.img"})
        self.agent.call("sr_detach")
        self.xapi.secrets["OpaqueRef:s"]["value"] = "hunter4"
        self.fails(224, self.agent.call, "sr_attach")
        self.xapi.secrets.clear()
        self.fails(20, self.agent.call, "sr_attach")
        self.assertEqual([line for line in self.logged() if "hunter" in line], [])


del Case

if __name__ == "__main__":
    unittest.main()
