"""What the plug-ins ask xapi for, and the collector of an SR behind SMAPIv3, with the double of xapi of tests/smapiv1."""

import os
import subprocess
import sys
import uuid
from pathlib import Path

from plugin import Fault, Host
from test_volumes import SM, Case

sys.path.append(str(Path(__file__).resolve().parents[1] / "smapiv1"))
from xapi import Xapi  # noqa: E402, pylint: disable=wrong-import-position


class WithXapi(Case):
    def setUp(self):
        super().setUp()
        self.xapi = Xapi(os.path.join(self.host.run_dir, "xapi"))
        self.addCleanup(self.xapi.close)

    def collect(self):
        return subprocess.run([SM, "sr_collect", "--from-xapi", self.uuid], env=self.host.env, capture_output=True, text=True,
                              timeout=120, check=False)

    def test_the_collector_finds_the_sr_and_tells_xapi_nothing(self):
        self.attached()
        reference = self.xapi.add_sr(self.uuid, "sm-file")
        self.xapi.pbds["OpaqueRef:pbd"] = {"uuid": str(uuid.uuid4()), "host": self.xapi.host_ref, "SR": reference,
                                           "device_config": self.config, "currently_attached": True}
        key = self.new()["key"]
        snapshot = self.volume("snapshot", key)["key"]
        self.volume("destroy", snapshot)
        images = len([name for name in os.listdir(self.location) if name.endswith(".vhd")])
        self.assertEqual(images, 2)
        # Not while the plug-in of xapi's daemon is another one.
        refused = self.collect()
        self.assertIn("driver of another package", refused.stderr)
        os.symlink(self.host.root, os.path.join(self.host.run_dir, "xapi-storage-script"))
        done = self.collect()
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertEqual([name for name in os.listdir(self.location) if name.endswith(".vhd")], [f"{key}.vhd"])
        self.assertEqual(set(self.listed()), {key})
        self.assertFalse([method for method in self.xapi.methods() if method.startswith("VDI.")])

    def test_what_leaves_something_to_merge_starts_the_collector(self):
        os.mkdir(os.path.join(self.host.run_dir, "system"))
        told, tools = os.path.join(self.scratch, "told"), os.path.join(self.scratch, "bin")
        os.mkdir(tools)
        Path(tools, "systemctl").write_text(f'#!/bin/sh\necho "$*" >> {told}\n', encoding="ascii")
        os.chmod(os.path.join(tools, "systemctl"), 0o755)
        self.host.env["PATH"] = tools + ":" + self.host.env["PATH"]
        self.attached()
        key = self.new()["key"]
        snapshot = self.volume("snapshot", key)["key"]
        self.listed()
        self.assertFalse(os.path.exists(told))
        self.volume("destroy", snapshot)
        self.listed()
        unit = f"--quiet --no-block start sm-collect-xapi@{self.uuid}.service\n"
        self.assertEqual(Path(told).read_text(encoding="ascii"), unit * 2)

    def test_a_secret_of_xapi_is_fetched_and_not_shown(self):
        host = Host(self.scratch, SM, ["smb"])
        secret = str(uuid.uuid4())
        self.xapi.secrets["OpaqueRef:secret"] = {"uuid": secret, "value": "hunter2"}
        config = {"server": "//127.0.0.1/share", "username": "somebody", "password_secret": secret}
        with self.assertRaises(Fault) as raised:
            host.call("SR.create", sr_type="smb", uuid=self.uuid, configuration=config, name="", description="")
        self.assertNotIn("hunter2", str(raised.exception))
        self.assertNotIn("password", raised.exception.params[1])
        self.assertIn("session.logout", self.xapi.methods())
        config["password_secret"] = str(uuid.uuid4())
        with self.assertRaises(Fault) as raised:
            host.call("SR.probe", sr_type="smb", configuration=config)
        self.assertEqual(raised.exception.number, 20)

    def test_sm_sr_list_knows_the_type(self):
        self.attached()
        reference = self.xapi.add_sr(self.uuid, "sm-file")
        self.xapi.pbds["OpaqueRef:pbd"] = {"uuid": str(uuid.uuid4()), "host": self.xapi.host_ref, "SR": reference,
                                           "device_config": self.config, "currently_attached": True}
        listed = subprocess.run([SM, "sr_list", "--from-xapi"], env=self.host.env, capture_output=True, text=True, check=True).stdout
        self.assertIn('(state . "available")', listed)
