"""A test double of xapi: XenAPI over HTTP on a unix socket, strict about what a driver may say.

It keeps tables of hosts, SRs and VDIs as xapi does, refuses what xapi refuses, and writes down every call.
Documents are read by the Python library, not by the driver's own reader; on top their grammar is checked.
"""

import contextlib
import os
import re
import socketserver
import sys
import threading
import time
import uuid as uuids
import xml.etree.ElementTree as etree
import xmlrpc.client
from http.server import BaseHTTPRequestHandler

NULL = "OpaqueRef:NULL"
VDI_TYPES = {"user", "system", "ephemeral", "suspend", "crashdump", "ha_statefile", "metadata", "redo_log",
             "rrd", "pvs_cache", "cbt_metadata"}
# What follows the session: s string, n number as a string, b boolean, m map of strings, d date.
SIGNATURES = {
    "VDI.db_introduce": "sssssbbmsmmbnnsbdsb",
    "VDI.db_forget": "s", "VDI.get_by_uuid": "s", "VDI.get_record": "s", "VDI.get_sm_config": "s",
    "VDI.get_all_records_where": "s", "VDI.get_uuid": "s", "VDI.get_name_label": "s",
    "VDI.get_name_description": "s", "VDI.get_managed": "s",
    "VDI.set_virtual_size": "sn", "VDI.set_physical_utilisation": "sn", "VDI.set_read_only": "sb",
    "VDI.set_managed": "sb", "VDI.set_cbt_enabled": "sb", "VDI.set_sm_config": "sm",
    "VDI.add_to_sm_config": "sss", "VDI.remove_from_sm_config": "ss",
    "VDI.add_to_other_config": "sss", "VDI.remove_from_other_config": "ss",
    "SR.get_by_uuid": "s", "SR.get_record": "s", "SR.get_virtual_allocation": "s", "SR.get_other_config": "s",
    "SR.get_sm_config": "s", "SR.get_all_records": "", "SR.get_type": "s", "SR.get_all_records_where": "s",
    "SR.set_virtual_allocation": "sn", "SR.set_physical_size": "sn", "SR.set_physical_utilisation": "sn",
    "SR.set_sm_config": "sm", "SR.add_to_sm_config": "sss", "SR.add_to_other_config": "sss",
    "SR.remove_from_other_config": "ss", "SR.get_uuid": "s",
    "PBD.get_all_records": "", "PBD.get_all_records_where": "s", "PBD.get_device_config": "s",
    "PBD.add_to_other_config": "sss", "PBD.remove_from_other_config": "ss",
    "host.get_all_records": "", "host.get_record": "s", "host.get_by_uuid": "s", "host.get_other_config": "s", "host.call_plugin": "sssm",
    "pool.get_all": "", "pool.get_all_records": "", "pool.get_master": "s",
    "secret.get_by_uuid": "s", "secret.get_value": "s",
    "VM.get_by_uuid": "s", "VM.get_VBDs": "s", "VBD.get_record": "s",
    "SM.get_all_records": "", "SM.get_all_records_where": "s", "message.create": "snsss",
    "session.login_with_password": None, "session.logout": "", "session.get_this_host": "s",
}


class Refusal(Exception):
    """An ErrorDescription."""


class Misuse(AssertionError):
    """What no client may say to xapi."""


class Xapi:
    """The tables, the journal, and how to behave."""

    def __init__(self, path):
        self.lock = threading.RLock()
        self.session = "OpaqueRef:session-" + str(uuids.uuid4())
        # Of hosts besides the first: session -> host.
        self.sessions = {}
        self.host_ref = "OpaqueRef:host-1"
        self.host_uuid = str(uuids.uuid4())
        self.hosts = {self.host_ref: {"uuid": self.host_uuid, "name_label": "one", "other_config": {}}}
        self.vms, self.vbds = {}, {}
        self.srs, self.vdis, self.messages, self.pbds, self.secrets = {}, {}, [], {}, {}
        self.capabilities, self.driver_filenames = [], {}
        # SR type -> name of a feature -> its version, as text.
        self.features = {}
        # (host, name) -> what is called with the function and its arguments.
        self.plugins = {}
        self.journal, self.misuses = [], []
        self.connections = 0
        # (method, number of its call so far) -> None, or how to go wrong; see `Handler.misbehave`.
        self.behaviour = lambda method, number: None
        self.counts = {}
        self.path = path
        self.server = Server(path, Handler)
        self.server.xapi = self
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def calls(self):
        """The journal so far, which is then empty."""
        with self.lock:
            journal, self.journal = self.journal, []
        return journal

    def methods(self):
        return [method for method, _ in self.calls()]

    def add_sr(self, sr_uuid, sr_type="file"):
        reference = "OpaqueRef:sr-" + sr_uuid[:8]
        self.srs[reference] = {
            "uuid": sr_uuid, "type": sr_type, "name_label": "an SR", "name_description": "", "shared": False,
            "virtual_allocation": "0", "physical_size": "0", "physical_utilisation": "0",
            "sm_config": {}, "other_config": {}, "VDIs": [], "PBDs": [],
        }
        return reference

    def by_uuid(self, table, uuid, name):
        for reference, record in table.items():
            if record["uuid"] == uuid:
                return reference
        raise Refusal("UUID_INVALID", name, uuid)

    def table(self, name):
        return {"VDI": self.vdis, "SR": self.srs, "host": self.hosts, "PBD": self.pbds, "VM": self.vms, "VBD": self.vbds,
                "secret": self.secrets}[name]

    def of(self, sr_ref):
        return {r: v for r, v in self.vdis.items() if v["SR"] == sr_ref}

    # One method for each message that is not a plain getter or setter.

    def VDI_db_introduce(self, uuid, label, description, sr, vdi_type, sharable, read_only, other_config, location,
                         xenstore_data, sm_config, managed, size, used, pool, is_snapshot, time_, snapshot_of, cbt):
        if str(uuids.UUID(uuid)) != uuid:
            raise Misuse("not a lower-case UUID: " + uuid)
        if sr not in self.srs:
            raise Refusal("HANDLE_INVALID", "SR", sr)
        if vdi_type not in VDI_TYPES:
            raise Refusal("XMLRPC_UNMARSHAL_FAILURE", "vdi_type", vdi_type)
        for record in self.vdis.values():
            if record["SR"] == sr and record["location"] == location:
                raise Refusal("LOCATION_NOT_UNIQUE", sr, location)
            if record["uuid"] == uuid:
                raise Refusal("INTERNAL_ERROR", "Db_exn.Uniqueness_constraint_violation(VDI, uuid)")
        for reference in (pool, snapshot_of):
            if not reference.startswith("OpaqueRef:"):
                raise Misuse("not a reference: " + reference)
        reference = "OpaqueRef:vdi-" + str(uuids.uuid4())
        self.vdis[reference] = {
            "uuid": uuid, "name_label": label, "name_description": description, "SR": sr, "type": vdi_type,
            "sharable": sharable, "read_only": read_only, "other_config": other_config, "location": location,
            "xenstore_data": xenstore_data, "sm_config": dict(sm_config), "managed": managed, "missing": False,
            "virtual_size": size, "physical_utilisation": used, "metadata_of_pool": pool,
            "is_a_snapshot": is_snapshot, "snapshot_time": time_, "snapshot_of": snapshot_of, "cbt_enabled": cbt,
        }
        return reference

    def VDI_db_forget(self, vdi):
        if vdi not in self.vdis:
            raise Refusal("HANDLE_INVALID", "VDI", vdi)
        del self.vdis[vdi]
        return ""

    def where(self, table, expression):
        wanted = re.fullmatch(r'field "(\w+)" = "([^"]*)"', expression.strip())
        if not wanted:
            raise Misuse("not an expression this double knows: " + expression)
        return {r: v for r, v in self.table(table).items() if v[wanted[1]] == wanted[2]}

    def SM_get_all_records_where(self, expression):
        sm_type = re.fullmatch(r'field "type" = "(\w+)"', expression)[1]
        return {"OpaqueRef:sm": {"capabilities": self.capabilities, "type": sm_type,
                                 "driver_filename": self.driver_filenames.get(sm_type, "")}}

    def SM_get_all_records(self):
        return {"OpaqueRef:sm-" + sm_type: {"type": sm_type, "features": features}
                for sm_type, features in self.features.items()}

    def pool_get_all(self):
        return ["OpaqueRef:pool"]

    def pool_get_all_records(self):
        return {"OpaqueRef:pool": {"restrictions": {"restrict_read_caching": "true"}, "other_config": {}}}

    def pool_get_master(self, pool):
        return self.host_ref

    def host_call_plugin(self, host, plugin, function, args):
        if host not in self.hosts:
            raise Refusal("HANDLE_INVALID", "host", host)
        if (host, plugin) not in self.plugins:
            raise Refusal("XENAPI_MISSING_PLUGIN", plugin)
        return self.plugins[host, plugin](function, args)

    def message_create(self, name, priority, cls, uuid, body):
        self.messages.append((name, priority, cls, uuid, body))
        return "OpaqueRef:message"

    def session_login_with_password(self, *_):
        return self.session

    def session_get_this_host(self, session):
        return self.sessions.get(session, self.host_ref)

    def session_logout(self):
        return ""

    def dispatch(self, method, params):
        """The value of one call, after its form was checked."""
        if method not in SIGNATURES:
            raise Misuse("no such message: " + method)
        signature = SIGNATURES[method]
        if signature is not None:
            session, *params = params
            if session != self.session and session not in self.sessions:
                raise Refusal("SESSION_INVALID", "…")
            if len(params) != len(signature):
                raise Misuse(f"{method} takes {len(signature)} arguments, not {len(params)}")
            for value, kind in zip(params, signature):
                check_type(method, value, kind)
            params = [str(p.value) if isinstance(p, xmlrpc.client.DateTime) else p for p in params]
        own = getattr(self, method.replace(".", "_"), None)
        if own:
            return own(*params)
        name, message = method.split(".")
        table = self.table(name)
        if message == "get_all_records":
            return table
        if message == "get_all_records_where":
            return self.where(name, params[0])
        if message == "get_by_uuid":
            return self.by_uuid(table, params[0], name)
        if params[0] not in table:
            raise Refusal("HANDLE_INVALID", name, params[0])
        record = table[params[0]]
        if message == "get_record":
            return record
        verb, field = re.fullmatch(r"(get|set|add_to|remove_from)_(\w+)", message).groups()
        if verb == "get":
            return record[field]
        if verb == "set":
            record[field] = params[1]
        elif verb == "remove_from":
            record[field].pop(params[1], None)
        elif params[1] in record[field]:
            raise Refusal("MAP_DUPLICATE_KEY", name, field, params[0], params[1])
        else:
            record[field][params[1]] = params[2]
        return ""


def check_type(method, value, kind):
    good = {
        "s": lambda v: type(v) is str,
        "n": lambda v: type(v) is str and re.fullmatch(r"\d+", v),
        "b": lambda v: type(v) is bool,
        "m": lambda v: type(v) is dict and all(type(x) is str for kv in v.items() for x in kv),
        "d": lambda v: isinstance(v, xmlrpc.client.DateTime),
    }[kind](value)
    if not good:
        raise Misuse(f"{method}: {value!r} is no {kind}")


def check_grammar(element):
    """XML-RPC as xapi's reader wants it: no attributes, one child in a value, name before value."""
    if element.attrib:
        raise Misuse(f"<{element.tag}> has attributes")
    children = [child.tag for child in element]
    shapes = {"member": ["name", "value"], "data": ["value"] * len(children), "params": ["param"] * len(children),
              "param": ["value"], "array": ["data"], "struct": ["member"] * len(children), "fault": ["value"]}
    if element.tag in shapes and children != shapes[element.tag]:
        raise Misuse(f"<{element.tag}> holds {children}")
    if element.tag == "value" and len(children) > 1:
        raise Misuse("a value holds more than one element")
    if children and "".join([element.text or ""] + [child.tail or "" for child in element]).strip():
        raise Misuse(f"text between the elements of <{element.tag}>")
    for child in element:
        check_grammar(child)


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request, client_address):
        """Whoever was killed hangs up."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)

    def get_request(self):
        connection, _ = super().get_request()
        self.xapi.connections += 1
        return connection, ("local", 0)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1

    def log_message(self, *_):
        pass

    def do_POST(self):
        xapi = self.server.xapi
        try:
            if self.path not in ("/", "/RPC2") or self.headers["Content-Type"] != "text/xml" or not self.headers["Host"]:
                raise Misuse(f"request {self.path} {dict(self.headers)}")
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if len(body) > 300 << 10:
                raise Misuse("the request has more than 300 KiB")
            check_grammar(etree.fromstring(body))
            params, method = xmlrpc.client.loads(body)
            with xapi.lock:
                xapi.counts[method] = xapi.counts.get(method, 0) + 1
                how = xapi.behaviour(method, xapi.counts[method])
                xapi.journal.append((method, params[1:]))
            if how and how != "do and close":
                return self.misbehave(how)
            # A plug-in calls xapi as well.
            with contextlib.nullcontext() if method == "host.call_plugin" else xapi.lock:
                try:
                    answer = {"Status": "Success", "Value": xapi.dispatch(method, list(params))}
                except Refusal as refusal:
                    answer = {"Status": "Failure", "ErrorDescription": list(refusal.args)}
                document = xmlrpc.client.dumps((answer,), methodresponse=True).encode()
            if how == "do and close":
                self.close_connection = True
                return
            self.send(200, document)
        except Misuse as misuse:
            xapi.misuses.append(str(misuse))
            self.send(400, b"")
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def misbehave(self, how):
        self.close_connection = True
        if isinstance(how, list):
            answer = {"Status": "Failure", "ErrorDescription": how}
            self.send(200, xmlrpc.client.dumps((answer,), methodresponse=True).encode())
        elif how == "500":
            self.send(500, b"starting")
        elif how == "garbage":
            self.send(200, b"<html>no</html>")
        elif how == "half":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n<?xml version")
        elif how == "slow":
            time.sleep(0.3)
        elif how != "close":
            raise AssertionError(how)

    def send(self, status, document):
        self.send_response(status)
        self.send_header("Content-Length", str(len(document)))
        self.send_header("Connection", "close" if self.close_connection else "keep-alive")
        self.end_headers()
        self.wfile.write(document)
        self.wfile.flush()
