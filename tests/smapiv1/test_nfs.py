"""NFSSR as xapi uses it. Alone it needs no server; with NFS_EXPORT=SERVER:/PATH and NFS_DIR, the directory that is
exported, all of it (tests/guest/nfs-xapi.sh)."""

import os
import socket
import struct
import subprocess
import threading
import unittest
import uuid
import xml.etree.ElementTree as etree
from contextlib import contextmanager

from driver import Fault
from test_file import MiB, Case, request

EXPORT = os.environ.get("NFS_EXPORT")


class Null:
    """Answers RPC NULL calls of one version of NFS, and of every other one with PROG_MISMATCH."""

    def __init__(self, version):
        self.version = version
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            with connection:
                while len(call := connection.recv(44, socket.MSG_WAITALL)) == 44:
                    xid, version = struct.unpack(">4xI12xI20x", call)
                    status = 0 if version == self.version else 2
                    connection.sendall(struct.pack(">7I", 0x80000018, xid, 1, 0, 0, 0, status))


class Nfs(Case):
    executable = "NFSSR"

    def setUp(self):
        super().setUp()
        self.agent.device_config = {"server": "127.0.0.1", "serverpath": "/export", "SRmaster": "true"}

    def configured(self, **keys):
        self.agent.device_config.update(keys)
        return self

    def probe(self):
        members = {k: v for k, v in self.agent.members("sr_probe", sr_sm_config={}).items()
                   if k not in ("sr_ref", "sr_uuid")}
        return etree.fromstring(self.driver.call("sr_probe", members))

    def test_a_server_that_is_not_there_has_its_own_faults(self):
        silent = {"options": "port=1"}
        for command in ("sr_create", "sr_attach"):
            args = ["0"] if command == "sr_create" else []
            self.assertIn("127.0.0.1 port 1", self.fails(108, self.configured(**silent).agent.call, command, *args))
        self.fails(108, self.probe)
        self.fails(140, self.configured(server="no-such-host.invalid").agent.call, "sr_attach")
        self.assertEqual(os.listdir(os.path.join(self.host, "sr-mount")), [])

    def test_a_version_that_the_server_has_not(self):
        server = Null(3)
        self.addCleanup(server.socket.close)
        self.configured(options=f"port={server.port}", nfsversion="4.1")
        self.assertIn("it speaks version 3", self.fails(72, self.agent.call, "sr_attach"))
        self.fails(72, self.configured(nfsversion="5").agent.call, "sr_attach")

    def test_keys_that_are_missing_or_wrong(self):
        for keys, code in (({"serverpath": "../x"}, 103), ({"server": "-o"}, 140), ({"options": "x=\""}, 1),
                           ({"options": "vers=9"}, 1)):
            before = dict(self.agent.device_config)
            self.fails(code, self.configured(**keys).agent.call, "sr_attach")
            self.agent.device_config = before
        # Taken, so it gets as far as the server: there is none here, or one without this SR.
        with self.assertRaises(Fault) as raised:
            self.configured(options="soft,vers=4.1").agent.call("sr_attach")
        self.assertIn(raised.exception.code, (47, 108))
        self.agent.device_config = before
        del self.agent.device_config["serverpath"]
        self.configured(options="port=1")
        self.fails(101, self.agent.call, "sr_create", "0")
        self.fails(108, self.probe)
        del self.agent.device_config["server"]
        self.fails(102, self.agent.call, "sr_attach")
        self.fails(102, self.probe)

    def test_who_never_attached_may_detach(self):
        self.agent.call("sr_detach")


@unittest.skipUnless(EXPORT, "wants a server")
class Served(Nfs):
    def setUp(self):
        super().setUp()
        server, path = EXPORT.rsplit(":", 1)
        self.dir = os.environ["NFS_DIR"]
        self.agent.device_config = {"server": server, "serverpath": path, "SRmaster": "true"}
        self.mounted = os.path.join(self.host, "sr-mount", self.agent.sr_uuid)

    def delete(self):
        """As xapi does it, which attaches the SR first."""
        self.agent.call("sr_attach")
        self.agent.call("sr_delete")
        self.assertFalse(os.path.exists(os.path.join(self.dir, self.agent.sr_uuid)))

    @contextmanager
    def exported(self, options):
        subprocess.run(["exportfs", "-i", "-o", f"{options},no_subtree_check,insecure,fsid=0", f"*:{self.dir}"],
                       check=True)
        yield
        subprocess.run(["exportfs", "-ra"], check=True)

    def test_the_life_of_an_sr(self):
        self.agent.create_sr()
        self.agent.attach_sr()
        self.assertTrue(os.path.ismount(self.mounted))
        self.agent.attach_sr()
        vdi = self.agent.create(MiB)
        self.agent.scan()
        self.assertEqual(list(self.xapi.of(self.agent.sr_ref)), [vdi])
        self.agent.call("vdi_attach", "true", vdi=vdi)
        self.agent.call("vdi_activate", "true", vdi=vdi)
        self.fails(16, self.agent.call, "sr_detach")
        self.agent.call("vdi_deactivate", vdi=vdi)
        self.agent.call("vdi_detach", vdi=vdi)
        self.fails(42, self.agent.create_sr)
        self.fails(39, self.agent.call, "sr_delete")
        self.agent.delete(vdi)
        with open(os.path.join(self.mounted, ".sm-sr"), "rb"):
            self.assertIn("process", self.fails(74, self.agent.call, "sr_detach"))
        self.agent.call("sr_detach")
        self.agent.call("sr_detach")
        self.assertFalse(os.path.exists(self.mounted))
        self.fails(47, self.agent.call, "sr_scan")
        self.delete()

    def test_probe_finds_the_srs_of_any_storage_manager(self):
        self.assertEqual(self.probe().findall("SR"), [])
        self.agent.create_sr()
        other, empty = str(uuid.uuid4()), str(uuid.uuid4())
        for name in (other, empty, "not-an-sr"):
            os.mkdir(os.path.join(self.dir, name))
            self.addCleanup(os.rmdir, os.path.join(self.dir, name))
        disk = os.path.join(self.dir, other, f"{uuid.uuid4()}.raw")
        with open(disk, "wb") as file:
            file.truncate(MiB)
        self.configured(probeversion="")
        answer = self.probe()
        self.assertEqual({e.text for e in answer.iter("UUID")}, {self.agent.sr_uuid, other, empty})
        self.assertEqual([e.text for e in answer.findall("SupportedVersions/Version")], ["3", "4"])
        self.assertEqual(os.listdir(os.path.join(self.dir, other)), [os.path.basename(disk)])
        os.unlink(disk)
        self.delete()

    def test_without_a_path_the_exports_are_listed(self):
        del self.agent.device_config["serverpath"]
        members = {k: v for k, v in self.agent.members("sr_probe", sr_sm_config={}).items()
                   if k not in ("sr_ref", "sr_uuid")}
        for document in (request("sr_probe", members), request("sr_create", self.agent.members("sr_create", "0"))):
            done = subprocess.run([self.driver.executable, document], env=self.driver.env, capture_output=True,
                                  check=True)
            self.assertIn(b"101", done.stdout)
            exports = etree.fromstring(done.stderr)
            self.assertEqual(exports.tag, "nfs-exports")
            self.assertEqual([[child.text for child in export] for export in exports.findall("Export")],
                             [["127.0.0.1", self.dir, "*"]])

    def test_what_the_server_refuses(self):
        self.assertIn("no such path", self.fails(73, self.configured(serverpath="/no").agent.create_sr))
        self.fails(47, self.agent.call, "sr_attach")
        self.configured(serverpath=EXPORT.rsplit(":", 1)[1])
        with self.exported("ro"):
            self.fails(461, self.agent.create_sr)
        with self.exported("rw,root_squash"):
            self.fails(461, self.agent.create_sr)
        self.agent.create_sr()
        os.makedirs(self.mounted)
        subprocess.run(["mount", "-t", "tmpfs", "t", self.mounted], check=True)
        self.assertIn("is mounted there", self.fails(75, self.agent.call, "sr_attach"))
        subprocess.run(["umount", self.mounted], check=True)
        self.delete()


del Case

if __name__ == "__main__":
    unittest.main()
