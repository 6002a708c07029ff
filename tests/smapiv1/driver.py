"""Runs a driver as xapi does: two words in argv, an environment of its own, one document on stdout."""

import os
import subprocess
import xml.etree.ElementTree as etree
import xmlrpc.client
from pathlib import Path
from xml.sax.saxutils import escape

from xapi import Refusal, check_grammar

VOID = {"sr_create", "sr_delete", "sr_attach", "sr_detach", "sr_scan", "sr_update", "vdi_update", "vdi_delete",
        "vdi_detach", "vdi_activate", "vdi_deactivate", "vdi_epoch_begin", "vdi_epoch_end",
        "vdi_enable_cbt", "vdi_disable_cbt", "vdi_data_destroy", "vdi_revert", "vdi_compose"}


class Fault(Exception):
    def __init__(self, code, text):
        super().__init__(f"{code}: {text}")
        self.code, self.text = code, text


def value(of):
    """A value as xapi writes it: everything is an untyped string, an array or a struct of strings."""
    if isinstance(of, dict):
        members = "".join(f"<member><name>{escape(k)}</name>{value(v)}</member>" for k, v in of.items())
        return f"<value><struct>{members}</struct></value>" if of else "<value><struct/></value>"
    if isinstance(of, (list, tuple)):
        data = "".join(map(value, of))
        return f"<value><array><data>{data}</data></array></value>" if of else "<value><array><data/></array></value>"
    return f"<value>{escape(of)}</value>" if of else "<value/>"


def request(command, members):
    return (f"<methodCall><methodName>{command}</methodName><params><param>{value(members)}</param></params>"
            "</methodCall>")


def image_servers():
    """The image servers of this host, and the keepers of its tapdisks: number and arguments of each."""
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = line.read_bytes().split(b"\0")
        except OSError:
            continue
        if words[1:2] == [b"serve-image"]:
            yield int(line.parent.name), words


class Driver:
    def __init__(self, executable, run_dir, prefix=()):
        self.executable = executable
        # What runs it, where it is not this host.
        self.prefix = list(prefix)
        self.env = {"PATH": "/sbin:/usr/sbin:/bin:/usr/bin", "ORIGINATOR": "SM", "XCP_SM_RUN_DIR": run_dir}
        # tests/coverage: where the counts go.
        self.env.update((key, os.environ[key]) for key in ("LLVM_PROFILE_FILE",) if key in os.environ)

    def raw(self, *args):
        """Stdout of a call that may be anything; xapi's rules for it are checked."""
        done = subprocess.run([*self.prefix, self.executable, *args], env=self.env, stdin=subprocess.DEVNULL,
                              capture_output=True, cwd="/", timeout=120, check=False)
        assert done.returncode == 0, (done.returncode, args, done.stdout, done.stderr)
        assert done.stderr == b"", done.stderr
        check_grammar(etree.fromstring(done.stdout))
        return done.stdout

    def document(self, document):
        """The value of a methodCall, or a Fault."""
        answer = self.raw(document)
        try:
            (result,), _ = xmlrpc.client.loads(answer)
        except xmlrpc.client.Fault as fault:
            assert type(fault.faultCode) is int and type(fault.faultString) is str, fault
            raise Fault(fault.faultCode, fault.faultString) from None
        return result

    def call(self, command, members):
        result = self.document(request(command, members))
        if command in VOID:
            assert result is None, f"{command} answers {result!r}, xapi wants nil"
        return result


class Plugin(Driver):
    """Runs a host plug-in as xapi does; ocaml/xapi/xapi_plugins.ml."""

    def __init__(self, executable, run_dir, session, prefix=()):
        super().__init__(executable, run_dir, prefix)
        self.session = session

    def __call__(self, function, args):
        document = (f"<methodCall><methodName>{function}</methodName><params><param>{value(self.session)}</param>"
                    f"<param>{value(args)}</param></params></methodCall>")
        (answer,), _ = xmlrpc.client.loads(self.raw(document))
        if answer["Status"] == "Failure":
            raise Refusal(*answer["ErrorDescription"])
        assert set(answer) == {"Status", "Value"} and type(answer["Value"]) is str, answer
        return answer["Value"]
