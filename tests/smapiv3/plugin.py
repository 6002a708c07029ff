"""Runs the executables of SMAPIv3 as xapi-storage-script does, and checks each answer member by member against the tables of the
interface, which are written down here once more."""

import json
import os
import subprocess
from pathlib import Path

PUT = Path(__file__).resolve().parents[2] / "support/smapiv3"
TIMEOUT = 120


class Fault(Exception):
    def __init__(self, document):
        super().__init__(str(document))
        self.code, self.params = document["code"], document["params"]

    @property
    def number(self):
        return int(self.code.removeprefix("SR_BACKEND_FAILURE_"))


def fail(why, value):
    raise AssertionError(f"{why}: {value!r}")


def text(value):
    type(value) is str or fail("not a string", value)


def number(value):
    type(value) is int and -(1 << 63) <= value < 1 << 63 or fail("not an integer of 64 bits", value)


def flag(value):
    type(value) is bool or fail("not a boolean", value)


def unit(value):
    value is None or fail("not null", value)


def texts(value):
    type(value) is dict or fail("not an object", value)
    for key, word in value.items():
        text(key), text(word)


def array(of):
    def check(value):
        type(value) is list or fail("not an array", value)
        for item in value:
            of(item)
    return check


def record(members, optional=()):
    """Exactly these members; unknown ones would be ignored, so they are mistakes of ours."""
    def check(value):
        type(value) is dict or fail("not an object", value)
        missing = {name for name in members if name not in optional} - set(value)
        not missing or fail(f"members {missing} are missing", value)
        set(value) <= set(members) or fail(f"members {set(value) - set(members)} are unknown", value)
        for name, it in value.items():
            members[name](it)
    return check


def variant(tags):
    """An array of two. Of a tag without a payload other forms are allowed, but this one is what every reader takes."""
    def check(value):
        type(value) is list and len(value) == 2 and value[0] in tags or fail(f"none of {set(tags)}", value)
        tags[value[0]](value[1])
    return check


def word_of(words):
    def check(value):
        value in words or fail(f"none of {words}", value)
    return check


HEALTH = variant({tag: text for tag in ("Healthy", "Recovering", "Unreachable", "Unavailable")})
SR_STAT = record({"sr": text, "name": text, "uuid": text, "description": text, "free_space": number, "total_space": number,
                  "datasources": array(text), "clustered": flag, "health": HEALTH}, {"uuid"})
PROBE_RESULT = record({"configuration": texts, "complete": flag, "sr": SR_STAT, "extra_info": texts}, {"sr"})
VOLUME = record({"key": text, "uuid": text, "name": text, "description": text, "read_write": flag, "sharable": flag,
                 "virtual_size": number, "physical_utilisation": number, "uri": array(text), "keys": texts,
                 "volume_type": variant({"CBT_Metadata": unit, "Data_and_CBT_Metadata": unit}), "cbt_enabled": flag},
                {"uuid", "volume_type", "cbt_enabled"})
QUERY = record({"plugin": text, "name": text, "description": text, "vendor": text, "copyright": text, "version": text,
                "required_api_version": text, "features": array(text), "configuration": texts,
                "required_cluster_stack": array(text)})
IMPLEMENTATION = variant({
    "XenDisk": record({"backend_type": word_of({"vbd", "vbd3", "qdisk", "9pfs"}), "params": text, "extra": texts}),
    "BlockDevice": record({"path": text}), "File": record({"path": text}), "Nbd": record({"uri": text})})
BACKEND = record({"implementations": array(IMPLEMENTATION)})
BLOCKS = record({"granularity": number, "bitmap": text})
ERROR = record({"code": text, "params": array(text),
                "backtrace": record({"error": text, "files": array(text), "lines": array(number)})})

ANSWERS = {
    "Plugin.Query": QUERY, "Plugin.diagnostics": text,
    "SR.probe": array(PROBE_RESULT), "SR.create": texts, "SR.attach": text, "SR.detach": unit, "SR.destroy": unit,
    "SR.stat": SR_STAT, "SR.set_name": unit, "SR.set_description": unit, "SR.ls": array(VOLUME),
    "Volume.create": VOLUME, "Volume.snapshot": VOLUME, "Volume.clone": VOLUME, "Volume.destroy": unit,
    "Volume.revert": unit, "Volume.set_name": unit, "Volume.set_description": unit, "Volume.set": unit, "Volume.unset": unit,
    "Volume.resize": unit, "Volume.stat": VOLUME, "Volume.enable_cbt": unit, "Volume.disable_cbt": unit,
    "Volume.data_destroy": unit, "Volume.list_changed_blocks": BLOCKS,
    "Datapath.attach": BACKEND, "Datapath.activate": unit, "Datapath.activate_readonly": unit,
    "Datapath.deactivate": unit, "Datapath.detach": unit,
}


def pairs(members):
    """No member twice."""
    names = [name for name, _ in members]
    len(names) == len(set(names)) or fail("a member is there twice", names)
    return dict(members)


def no_number(word):
    fail("a number that the decoder refuses", word)


def decode(document):
    """One JSON value and white space. Every number of the interface that these plug-ins answer is an integer."""
    return json.loads(document.decode(), object_pairs_hook=pairs, parse_float=no_number, parse_constant=no_number)


class Host:
    """A host with the plug-ins installed, below a directory of its own."""

    def __init__(self, scratch, executable, types=("file",), prefix=()):
        self.root = os.path.join(scratch, "xapi-storage-script")
        self.run_dir = os.path.join(scratch, "host")
        os.makedirs(self.run_dir, exist_ok=True)
        subprocess.run([PUT, "put", executable, self.root, *types], check=True)
        self.prefix = list(prefix)
        self.env = {"PATH": "/sbin:/usr/sbin:/bin:/usr/bin", "XCP_SM_RUN_DIR": self.run_dir}
        # tests/coverage: where the counts go.
        self.env.update((key, os.environ[key]) for key in ("LLVM_PROFILE_FILE",) if key in os.environ)

    def path(self, method, sr_type="file"):
        datapath = method.startswith("Datapath.")
        return os.path.join(self.root, "datapath/sm" if datapath else f"volume/org.xen.xapi.storage.sm-{sr_type}", method)

    def start(self, method, *words, sr_type="file", **more):
        return subprocess.Popen([*self.prefix, self.path(method, sr_type), *words], env=self.env, cwd="/",
                                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more)

    def raw(self, method, document, *words, sr_type="file"):
        """Exit status and stdout of a call. Both pipes are read to their ends, so a process that inherits one hangs us."""
        with self.start(method, *(words or ("--json",)), sr_type=sr_type) as call:
            out, err = call.communicate(document, timeout=TIMEOUT)
        call.returncode >= 0 or fail("killed by a signal", (call.returncode, out, err))
        return call.returncode, out, err

    def answer(self, method, status, out):
        if status == 0:
            value = decode(out)
            ANSWERS[method](value)
            return value
        value = decode(out)
        ERROR(value)
        raise Fault(value)

    def call(self, method, sr_type="file", **params):
        document = json.dumps({"dbg": "OpaqueRef:1\n00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", **params})
        status, out, err = self.raw(method, document.encode(), sr_type=sr_type)
        err == b"" or fail("stderr", err)
        return self.answer(method, status, out)

    def words(self, method, *words, sr_type="file"):
        """A call by a command line, as static-vdis makes it: an answer, or False for a failure."""
        status, out, err = self.raw(method, b"", "static-vdis", *words, sr_type=sr_type)
        if status != 0:
            out == b"" and err != b"" or fail("a failure has words on stderr only", (out, err))
            return False
        err == b"" or fail("stderr", err)
        return self.answer(method, status, out)
