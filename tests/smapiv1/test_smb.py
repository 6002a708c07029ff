"""SMBSR as xapi uses it: SMB_SHARE is a share of a server, SMB_KEYS (JSON) who logs in there, SMB_DIR the directory that is
shared. Run by tests/guest/smb-xapi.sh."""

import json
import os
import subprocess
import unittest
import uuid
import xml.etree.ElementTree as etree

from agent import Agent
from test_file import MiB, Case

SHARE = os.environ.get("SMB_SHARE", "")
KEYS = json.loads(os.environ.get("SMB_KEYS", "{}"))


@unittest.skipUnless(SHARE, "wants a server")
class Smb(Case):
    executable = "SMBSR"

    def setUp(self):
        super().setUp()
        self.dir = os.environ["SMB_DIR"]
        self.agent = Agent(self.xapi, self.driver, dict(KEYS, server=SHARE), sr_type="smb")
        self.mounted = os.path.join(self.host, "sr-mount", self.agent.sr_uuid)

    def configured(self, **keys):
        self.agent.device_config = dict(KEYS, server=SHARE, SRmaster="true")
        self.agent.device_config.update(keys)
        return self.agent

    def delete(self):
        """As xapi does it, which attaches the SR first."""
        self.agent.call("sr_attach")
        self.agent.call("sr_delete")
        self.assertFalse(os.path.exists(os.path.join(self.dir, self.agent.sr_uuid)))

    def found(self):
        members = {k: v for k, v in self.agent.members("sr_probe", sr_sm_config={}).items()
                   if k not in ("sr_ref", "sr_uuid")}
        return {e.text for e in etree.fromstring(self.driver.call("sr_probe", members)).iter("UUID")}

    def test_the_life_of_an_sr(self):
        self.agent.create_sr()
        self.assertFalse(os.path.exists(self.mounted))
        self.agent.attach_sr()
        self.assertTrue(os.path.ismount(self.mounted))
        self.agent.attach_sr()
        vdi = self.agent.create(MiB, sm_config={})
        self.agent.scan()
        self.assertEqual(list(self.xapi.of(self.agent.sr_ref)), [vdi])
        self.agent.call("vdi_attach", "true", vdi=vdi)
        self.agent.call("vdi_activate", "true", vdi=vdi)
        self.agent.call("vdi_snapshot", vdi=vdi)
        self.fails(16, self.agent.call, "sr_detach")
        self.agent.call("vdi_deactivate", vdi=vdi)
        self.agent.call("vdi_detach", vdi=vdi)
        self.fails(42, self.agent.create_sr)
        self.fails(39, self.agent.call, "sr_delete")
        self.agent.scan()
        for ref in [ref for ref, record in self.xapi.of(self.agent.sr_ref).items() if record["managed"]]:
            self.agent.delete(ref)
        with open(os.path.join(self.mounted, ".sm-sr"), "rb"):
            self.assertIn("process", self.fails(112, self.agent.call, "sr_detach"))
        self.agent.call("sr_detach")
        self.agent.call("sr_detach")
        self.assertFalse(os.path.exists(self.mounted))
        self.fails(47, self.agent.call, "sr_scan")
        self.delete()

    def test_probe_finds_the_srs_of_any_storage_manager(self):
        self.assertEqual(self.found(), set())
        self.agent.create_sr()
        other = str(uuid.uuid4())
        for name in (other, "not-an-sr"):
            os.mkdir(os.path.join(self.dir, name))
            self.addCleanup(os.rmdir, os.path.join(self.dir, name))
        self.assertEqual(self.found(), {self.agent.sr_uuid, other})
        self.delete()

    def test_an_sr_of_the_python_driver_is_attached_with_its_disks(self):
        """A directory that is named like the SR, without a marker."""
        place = os.path.join(self.dir, self.agent.sr_uuid)
        os.mkdir(place)
        disk = str(uuid.uuid4())
        with open(os.path.join(place, f"{disk}.raw"), "wb") as file:
            file.truncate(MiB)
        self.agent.call("sr_attach")
        self.agent.call("sr_scan")
        self.assertEqual([record["uuid"] for record in self.xapi.of(self.agent.sr_ref).values()], [disk])
        self.agent.delete(next(iter(self.xapi.of(self.agent.sr_ref))))
        self.agent.call("sr_detach")
        self.delete()

    def test_what_the_server_has_not(self):
        for keys, code in (({"options": "port=1"}, 111), ({"server": "//no-such-host.invalid/x"}, 140),
                           ({"server": "//127.0.0.1/nowhere"}, 111), ({"server": "what"}, 111), ({"vers": "9"}, 111)):
            self.fails(code, self.configured(**keys).create_sr)
        self.fails(47, self.configured().call, "sr_attach")
        del self.agent.device_config["server"]
        self.fails(102, self.agent.call, "sr_attach")
        self.configured().create_sr()
        os.makedirs(self.mounted)
        subprocess.run(["mount", "-t", "tmpfs", "t", self.mounted], check=True)
        self.assertIn("is mounted there", self.fails(113, self.agent.call, "sr_attach"))
        subprocess.run(["umount", self.mounted], check=True)
        self.delete()

    def test_who_may(self):
        self.assertIn("mount error(13)", self.fails(111, self.configured(password="hunter3").create_sr))
        secret = str(uuid.uuid4())
        self.xapi.secrets["OpaqueRef:s"] = {"uuid": secret, "value": KEYS["password"]}
        config = {k: v for k, v in self.configured(password_secret=secret).device_config.items() if k != "password"}
        self.agent.device_config = config
        self.agent.create_sr()
        self.assertEqual(self.found(), {self.agent.sr_uuid})
        self.agent.attach_sr()
        self.agent.call("sr_detach")
        self.xapi.secrets["OpaqueRef:s"]["value"] = "hunter4"
        self.fails(111, self.agent.call, "sr_attach")
        self.xapi.secrets["OpaqueRef:s"]["value"] = KEYS["password"]
        self.delete()
        self.assertEqual([line for line in self.logged() if "hunter" in line], [])


del Case

if __name__ == "__main__":
    unittest.main()
