"""LVMoISCSISR as xapi uses it: ISCSI (JSON) has two targets, the LUNs of the first, and the secrets of the second. Run by
tests/guest/iscsi-xapi.sh."""

import json
import os
import subprocess
import unittest
import uuid
import xml.etree.ElementTree as etree
import xmlrpc.client

from agent import Agent
from driver import request
from test_file import MiB, Case

FACTS = json.loads(os.environ.get("ISCSI", "{}"))
LOGIN = ("ISCSI login failed - check access settings for the initiator on the storage, if CHAP is used verify CHAP "
         "credentials")
TARGETS = """<?xml version="1.0" ?>
<iscsi-target-iqns>
	<TGT>
		<Index>0</Index>
		<IPAddress>127.0.0.1</IPAddress>
		<TargetIQN>{0}</TargetIQN>
	</TGT>
	<TGT>
		<Index>1</Index>
		<IPAddress>127.0.0.1</IPAddress>
		<Port>3262</Port>
		<TargetIQN>{1}</TargetIQN>
	</TGT>
	<TGT>
		<Index>2</Index>
		<IPAddress>127.0.0.1</IPAddress>
		<TargetIQN>*</TargetIQN>
	</TGT>
</iscsi-target-iqns>
"""
LUNS = """<?xml version="1.0" ?>
<iscsi-target>
	<LUN>
		<vendor>LIO-ORG</vendor>
		<serial>1a1ab1e0-0000-4000-8000-000000000000</serial>
		<LUNid>0</LUNid>
		<size>104857600</size>
		<SCSIid>{0}</SCSIid>
	</LUN>
</iscsi-target>
"""


@unittest.skipUnless(FACTS, "wants targets")
class Iscsi(Case):
    maxDiff = None
    executable = "LVMoISCSISR"

    def setUp(self):
        super().setUp()
        self.iqn, self.id = FACTS["open"], FACTS["id"]
        self.agent = Agent(self.xapi, self.driver, {}, sr_type="lvmoiscsi")
        # The guest has no udevd, so LVM makes the nodes.
        self.driver.env["DM_DISABLE_UDEV"] = "1"
        self.xapi.hosts[self.xapi.host_ref]["other_config"] = {"iscsi_iqn": FACTS["initiator"], "multipathing": "false"}
        self.configure()

    def configure(self, without=(), **keys):
        config = {"target": "127.0.0.1", "targetIQN": self.iqn, "SCSIid": self.id, "SRmaster": "true", **keys}
        self.agent.device_config = {k: v for k, v in config.items() if k not in without}

    def call(self, command, *args):
        """The value or the fault, and stderr, of which xapi makes the third parameter."""
        more = {"sr_sm_config": {}} if command == "sr_probe" else {}
        members = self.agent.members(command, *args, **more)
        if command == "sr_probe":
            del members["sr_ref"], members["sr_uuid"]
        done = subprocess.run([self.driver.executable, request(command, members)], env=self.driver.env,
                              capture_output=True, check=True, text=True)
        try:
            (value,), _ = xmlrpc.client.loads(done.stdout)
        except xmlrpc.client.Fault as fault:
            return (fault.faultCode, fault.faultString), done.stderr
        return value, done.stderr

    def sessions(self):
        return os.listdir("/sys/class/iscsi_session")

    def test_the_stages_of_a_probe(self):
        everything = ("target", "targetIQN", "SCSIid")
        for without, keys, fault, said in (
                (everything, {}, (95, "The request is missing the target parameter"), ""),
                ((), {"target": ""}, (95, "The request is missing the target parameter"), ""),
                ((), {"target": "no-such-host.invalid"}, (140, "Incorrect DNS name, unable to resolve."), ""),
                ((), {"port": "0"}, (142, "Incorrect value for iSCSI port, must be a number between 1 and 65535"), ""),
                ((), {"port": "x"}, (142, "Incorrect value for iSCSI port, must be a number between 1 and 65535"), ""),
                ((), {"port": "3261"}, (141, "Unable to connect to ISCSI service on target"), ""),
                (everything[1:], {}, (96, "The request is missing or has an incorrect target IQN parameter"),
                 TARGETS.format(self.iqn, FACTS["closed"])),
                (("SCSIid",), {"targetIQN": "iqn.2003-01.org.example:none"},
                 (83, "ISCSI discovery failed [opterr=check target settings]"), TARGETS.format(self.iqn, FACTS["closed"])),
                (("SCSIid",), {}, (107, "The SCSIid parameter is missing or incorrect"), LUNS.format(self.id)),
                # One of them refuses.
                (("SCSIid",), {"targetIQN": "*"}, (68, LOGIN), ""),
                ((), {"SCSIid": "3" + "0" * 32}, (107, "The SCSIid parameter is missing or incorrect"),
                 LUNS.format(self.id)),
                (("SCSIid",), {"port": "3262", "targetIQN": FACTS["closed"]}, (68, LOGIN), ""),
                (("SCSIid",), {"port": "3262", "targetIQN": FACTS["closed"], "chapuser": FACTS["user"],
                               "chappassword": "not-the-secret"}, (68, LOGIN), ""),
                (("SCSIid",), {"localIQN": "iqn.2003-01.org.example:other"},
                 (70, "Failed to set ISCSI initiator [opterr=Daemon already running with target(s) attached using "
                      "different IQN]"), ""),
        ):
            with self.subTest(keys=keys, without=without):
                self.configure(without, **keys)
                self.assertEqual(self.call("sr_probe"), (fault, said))
                self.assertEqual(self.sessions(), [])
                logged = "".join(self.logged())
                # The log has more than the fault.
                self.assertRegex(logged, f"{fault[0]} {fault[1].split(' [')[0]}.*: ")
                self.assertNotIn("not-the-secret", logged)
        self.configure()
        self.assertEqual(self.call("sr_probe"), ('<?xml version="1.0" ?>\n<SRlist/>\n', ""))
        # As XO does it: sr_create of what is not complete tells the same.
        self.configure(("SCSIid",))
        self.assertEqual(self.call("sr_create", "0"),
                         ((107, "The SCSIid parameter is missing or incorrect"), LUNS.format(self.id)))
        self.configure(("targetIQN", "SCSIid"))
        self.assertEqual(self.call("sr_create", "0")[1], TARGETS.format(self.iqn, FACTS["closed"]))

    def test_the_life_of_an_sr(self):
        self.agent.create_sr()
        self.assertEqual(self.sessions(), [])
        self.assertEqual(self.xapi.srs[self.agent.sr_ref]["sm_config"].get("multipathable"), "true")
        value, _ = self.call("sr_probe")
        (found,) = etree.fromstring(value).iter("SR")
        self.assertEqual([(e.tag, e.text) for e in found][:2],
                         [("UUID", self.agent.sr_uuid), ("Devlist", "/dev/disk/by-id/scsi-" + self.id)])
        self.assertGreater(int(found.find("size").text), 80 * MiB)
        self.fails(47, self.agent.call, "sr_scan")
        other = {"other": "stays"}
        pbd = {"uuid": str(uuid.uuid4()), "SR": self.agent.sr_ref, "host": self.xapi.host_ref, "device_config": {},
               "currently_attached": False, "other_config": {"iscsi_sessions": "7", **other}}
        foreign = {**pbd, "host": "OpaqueRef:host-2", "other_config": dict(other)}
        self.xapi.pbds.update({"OpaqueRef:pbd": pbd, "OpaqueRef:pbd-2": foreign})
        self.agent.attach_sr()
        self.agent.attach_sr()
        self.assertEqual(pbd["other_config"], {"iscsi_sessions": "1", **other})
        self.assertEqual(len(self.sessions()), 1)
        vdi = self.agent.create(8 * MiB, sm_config={})
        self.agent.scan()
        self.agent.call("vdi_attach", "true", vdi=vdi)
        self.agent.call("vdi_activate", "true", vdi=vdi)
        self.fails(16, self.agent.call, "sr_detach")
        self.agent.call("vdi_deactivate", vdi=vdi)
        self.agent.call("vdi_detach", vdi=vdi)
        # By the host's counter of paths.
        pbd["other_config"].update({"multipathed": "true", f"mpath-{self.id}": "[1, 1]", "mpath-another": "[2, 2]"})
        self.agent.call("sr_detach")
        self.agent.call("sr_detach")
        self.assertEqual(pbd["other_config"], {"mpath-another": "[2, 2]", **other})
        self.assertEqual(foreign["other_config"], other)
        self.assertEqual(self.sessions(), [])
        self.fails(42, self.agent.create_sr)
        self.agent.attach_sr()
        self.fails(39, self.agent.call, "sr_delete")
        self.agent.delete(vdi)
        self.agent.call("sr_delete")
        self.assertEqual(self.sessions(), [])

    def test_secrets_are_those_of_xapi(self):
        secret = str(uuid.uuid4())
        self.xapi.secrets["OpaqueRef:s"] = {"uuid": secret, "value": FACTS["password"]}
        self.id = FACTS["closed_id"]
        self.configure(port="3262", targetIQN=FACTS["closed"], chapuser=FACTS["user"], chappassword_secret=secret)
        self.agent.create_sr()
        self.agent.attach_sr()
        self.agent.call("sr_detach")
        self.xapi.secrets["OpaqueRef:s"]["value"] = "not-the-secret"
        self.fails(68, self.agent.call, "sr_attach")
        self.assertEqual(self.sessions(), [])
        self.xapi.secrets["OpaqueRef:s"]["value"] = FACTS["password"]
        self.agent.call("sr_attach")
        self.agent.call("sr_delete")
        del self.xapi.secrets["OpaqueRef:s"]
        self.fails(20, self.agent.call, "sr_attach")
        self.assertEqual([line for line in self.logged() if "secret-of" in line or "not-the" in line], [])
        self.assertEqual(self.sessions(), [])


del Case

if __name__ == "__main__":
    unittest.main()
