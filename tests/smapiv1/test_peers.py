"""Programs of others on both sides: Python's XML-RPC library, as xapi's own Python library uses it; xapi's way to trace."""

import http.client
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import unittest
import xmlrpc.client

import test_file
from driver import Driver, request
from test_file import MiB

# As `python3 -m observer DRIVER XML` runs a driver; python3/packages/observer.py of xapi.
OBSERVER = "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
INFO = request("sr_get_driver_info", {"host_ref": "h", "command": "sr_get_driver_info", "args": [],
                                      "device_config": {}})


class ByLibrary(Driver):
    """Typed values, white space everywhere: what Python's library writes instead of xapi."""

    def call(self, command, members):
        return self.document(xmlrpc.client.dumps((members,), command))


class LifecycleByLibrary(test_file.Lifecycle):
    def setUp(self):
        super().setUp()
        self.agent.driver = self.driver = ByLibrary(self.driver.executable, self.host)


class Observer(unittest.TestCase):
    def setUp(self):
        self.scratch = tempfile.mkdtemp(prefix="smapiv1-")
        self.addCleanup(shutil.rmtree, self.scratch)
        self.sm = os.path.join(self.scratch, "sm")
        shutil.copy(os.path.join(test_file.BIN, "sm"), self.sm)
        self.driver = os.path.join(self.scratch, "FileSR")
        os.symlink("sm", self.driver)
        self.entry = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../support/observer-entry")

    def observed(self):
        return subprocess.run([sys.executable, "-c", OBSERVER, self.driver, INFO], capture_output=True, check=False)

    def test_a_traced_xapi_runs_it(self):
        self.assertNotEqual(self.observed().returncode, 0)
        for _ in range(2):
            subprocess.run([sys.executable, self.entry, self.sm], check=True)
            done = self.observed()
            self.assertEqual((done.returncode, done.stderr), (0, b""))
            self.assertIn("VDI_CREATE", xmlrpc.client.loads(done.stdout)[0][0]["capabilities"])
        native = subprocess.run([self.driver, INFO], capture_output=True, check=True)
        self.assertEqual(native.stdout, done.stdout)


class ByUnixSocket(xmlrpc.client.Transport):
    def __init__(self, path):
        super().__init__()
        self.path = path

    def make_connection(self, host):
        connection = http.client.HTTPConnection(host)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(self.path)
        return connection


class Refused(Exception):
    pass


class Api:
    """Calls of xapi as its Python library XenAPI makes them: by Python's XML-RPC library, with the session first."""

    def __init__(self, path, session):
        self.proxy = xmlrpc.client.ServerProxy("http://xapi", transport=ByUnixSocket(path))
        self.session = session

    def __call__(self, method, *args):
        answer = getattr(self.proxy, method)(self.session, *args)
        if answer["Status"] != "Success":
            raise Refused(answer["ErrorDescription"])
        return answer["Value"]


class PythonsXmlRpc(test_file.Case):
    def test_it_reads_what_the_driver_wrote_and_the_driver_what_it_wrote(self):
        api = Api(self.xapi.path, self.xapi.session)
        self.addCleanup(api.proxy("close"))
        self.an_sr()
        vdi = self.agent.create(MiB, "by the driver <&> é")
        self.assertEqual(list(api("VDI.get_all_records_where", f'field "SR" = "{self.agent.sr_ref}"')), [vdi])
        record = api("VDI.get_record", vdi)
        self.assertEqual((record["name_label"], record["virtual_size"]), ("by the driver <&> é", str(MiB)))
        self.assertEqual(api("SR.get_record", self.agent.sr_ref)["virtual_allocation"], str(MiB))

        (name,) = self.plant()
        wrong = api("VDI.db_introduce", name, "by the library", "", self.agent.sr_ref, "user", False, False, {}, name,
                    {}, {"mine": "1"}, True, "1", "1", "OpaqueRef:NULL", False,
                    xmlrpc.client.DateTime("19700101T00:00:00Z"), "OpaqueRef:NULL", False)
        self.agent.scan()
        record = api("VDI.get_record", wrong)
        self.assertEqual((record["name_label"], record["virtual_size"]), ("by the library", str(MiB)))
        self.assertEqual(record["sm_config"], {"mine": "1", "type": "raw", "image-format": "raw"})
        with self.assertRaises(Refused):
            api("VDI.get_record", "OpaqueRef:nothing")


if __name__ == "__main__":
    unittest.main()
