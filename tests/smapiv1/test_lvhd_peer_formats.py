"""Raw disks, qcow2s and tracked disks of LVMSR beside those of the Python driver of XCP-ng. Run by tests/guest/peers/lvhd.sh."""

import re
import unittest

import test_lvhd_peer as peer
from agent import Fault
from test_file import MiB
from test_lvhd_peer import DISKS

setUpModule = peer.setUpModule


class Formats(peer.Host):
    """The format is that of device_config: Python makes no disk whose sm_config names one."""

    def made(self, side):
        # Python puts a VHD into a volume with the prefix of a raw disk if that is what it prefers at the snapshot of a raw disk.
        if side.agent.device_config["preferred-image-formats"] == "raw":
            side.agent.device_config["preferred-image-formats"] = "vhd"

    def kept(self, state):
        """But for the format of a disk that was raw, which Python does not change."""
        disks = super().kept(state)
        for disk in disks.values():
            disk["sm_config"].pop("image-format", None)
        return disks

    def of_format(self, side):
        """Calls that make, change and delete disks; after each, its name."""
        agent, names = side.agent, side.names
        agent.create_sr()
        agent.attach_sr()
        names["a"] = agent.create(16 * MiB, "a", "the first", sm_config={})
        names["b"] = agent.create(5 * MiB + 1, "b", sm_config={})
        side.write("a", 0, 3)
        agent.scan()
        yield "disks"
        agent.resize(names["b"], 12 * MiB)
        agent.scan()
        yield "vdi_resize"
        self.made(side)
        names["s"] = agent.snapshot(names["a"])
        agent.scan()
        yield "vdi_snapshot"
        side.write("a", 4, 1)
        agent.scan()
        yield "data after it"
        record = self.xapi.vdis.pop(names["b"])
        agent.scan()
        names["b"] = self.xapi.by_uuid(self.xapi.vdis, record["uuid"], "VDI")
        yield "sr_scan when xapi forgot a disk"
        agent.call("sr_detach")
        agent.attach_sr()
        agent.scan()
        yield "sr_attach once more"
        for name in list(names):
            agent.delete(names.pop(name))
        side.collect()
        agent.scan()
        agent.call("sr_detach")
        agent.call("sr_delete")
        yield "sr_delete"

    def test_qcow2(self):
        def accept(what, name, state):
            """Python makes no base of qcow2 smaller."""
            if "QCOW2-(a+s)" in state.get("volumes", {}):
                self.allow(state, name, "QCOW2-(a+s)", {"python": 20, "ours": 8})
        self.differ(self.of_format, accept, allocation="thick", **{"preferred-image-formats": "qcow2"})

    def test_raw(self):
        def accept(what, name, state):
            """Python changes neither record of a raw disk that became a VHD over a raw base, before the next sr_attach."""
            if "MGT" not in state:
                return
            state["MGT"] = [re.sub("<vdi_type>[^<]*", "", line) for line in state["MGT"]]
            wrong = [line for line in state["wrong"].splitlines() if name == "ours" or "its record says" not in line]
            state["wrong"] = "".join(line + "\n" for line in wrong)
            self.kept(state)
        self.differ(self.of_format, accept, allocation="thick", **{"preferred-image-formats": "raw"})

    def test_what_python_tracks_stays_as_it_is(self):
        """A disk with a log of changed blocks, and a log that is all that is left of a snapshot."""
        side = self.side("python", DISKS[0], allocation="thin")
        agent, names = side.agent, side.names
        agent.create_sr()
        agent.attach_sr()
        names["a"] = agent.create(16 * MiB, "a", sm_config={})
        names["b"] = agent.create(8 * MiB, "b", sm_config={})
        side.write("a", 0, 1)
        agent.call("vdi_enable_cbt", vdi=names["a"])
        self.xapi.vdis[names["a"]]["cbt_enabled"] = True
        names["s"] = agent.snapshot(names["a"])
        names["t"] = agent.snapshot(names["a"])
        agent.call("vdi_data_destroy", vdi=names["s"])
        self.xapi.vdis[names["s"]]["type"] = "cbt_metadata"
        agent.scan()
        said = agent.call("vdi_list_changed_blocks", names["t"], vdi=names["s"])
        logs = [name for name in side.state()["volumes"] if name.endswith(".cbtlog")]
        self.assertEqual(len(logs), 3)
        self.hand_over(side, "ours", "records after the change of hands")
        for call in (lambda: agent.snapshot(names["a"]), lambda: agent.copy("vdi_clone", names["a"]), lambda: agent.delete(names["a"]),
                     lambda: agent.resize(names["a"], 32 * MiB), lambda: agent.call("vdi_activate", "true", vdi=names["a"])):
            with self.assertRaises(Fault) as refused:
                call()
            self.assertIn("cbtlog", str(refused.exception))
        # The others are served.
        side.write("b", 0, 1)
        agent.delete(agent.snapshot(names["b"]))
        side.collect()
        agent.scan()
        self.hand_over(side, "python", "records after it came back")
        self.assertEqual([name for name in side.state()["volumes"] if name.endswith(".cbtlog")], logs)
        self.assertEqual(agent.call("vdi_list_changed_blocks", names["t"], vdi=names["s"]), said)
        names["u"] = agent.snapshot(names["a"])
        for name in ("s", "t", "u", "a"):
            agent.delete(names.pop(name))
        side.collect()
        agent.scan()
        self.assertEqual([name for name in side.state()["volumes"] if name.endswith(".cbtlog")], [])


if __name__ == "__main__":
    unittest.main()
