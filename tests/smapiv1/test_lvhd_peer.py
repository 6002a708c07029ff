"""LVMSR beside the Python driver of XCP-ng on LVHD groups. Run by tests/guest/peers/lvhd.sh, which makes a host for both."""

import contextlib
import difflib
import json
import os
import re
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import time
import traceback
import unittest
import uuid
from pathlib import Path

import xapi as double
from agent import Agent, Driver, Fault
from test_file import BIN, MiB
from xapi import NULL, Xapi

DISKS = os.environ.get("LVM_DISKS", "").split()
PYTHON = "/opt/xensource/sm/LVMSR"
TAP_CTL = "/usr/sbin/tap-ctl"
SOCKET = "/var/lib/xcp/xapi"
COLLECTOR = "/opt/xensource/sm/cleanup.py"
DOM0 = "7e57ab1e-0000-4000-8000-0000000000d0"
LOOK = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../guest/lvhd-look.py")


def run(*words, check=True):
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise AssertionError(f"{words}: {done.stdout}{done.stderr}")
    return done.stdout


BLOCK = 2 * MiB
UUID = "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
LOG = []


def setUpModule():
    """The system's log, and the lock of the device mapper."""
    log = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    if os.path.exists("/dev/log"):
        os.unlink("/dev/log")
    log.bind("/dev/log")

    def read():
        while True:
            line = log.recv(1 << 16).decode(errors="replace")
            if "fairlock[" not in line:
                LOG.append(line)
    threading.Thread(target=read, daemon=True).start()
    fairlock = subprocess.Popen([os.path.join(os.environ["PEER"], "bin/fairlock"), "/run/fairlock/devicemapper"])
    unittest.addModuleCleanup(fairlock.wait)
    unittest.addModuleCleanup(fairlock.kill)


def timed(answer):
    """An answer of the double, with the time that it takes noted: it is Python too, and no part of a driver."""
    def answered(handler):
        begun = time.monotonic()
        try:
            answer(handler)
        finally:
            handler.server.xapi.busy += time.monotonic() - begun
    return answered


double.Handler.do_POST = timed(double.Handler.do_POST)


class PeersXapi(Xapi):
    """The double as the Python driver knows xapi: more messages, and the short form of VDI.db_introduce."""

    busy = 0.0
    # A key of SR.other_config: the Python driver, which sets it where it may be told to end, is killed then.
    fatal = None

    def VDI_db_introduce(self, *args):
        # xapi takes an empty text for a reference to nothing.
        reference = super().VDI_db_introduce(*(arg if n not in (14, 17) or arg else NULL for n, arg in enumerate(args)))
        self.vdis[reference].update(VBDs=[], on_boot="persist", allow_caching=False)
        return reference

    def SR_get_VDIs(self, sr):
        return list(self.of(sr))

    def task_create(self, *_):
        return "OpaqueRef:task"

    def SM_get_driver_filename(self, _):
        return PYTHON

    def host_metrics_get_record(self, _):
        return {"live": True}

    def VDI_forget(self, vdi):
        return self.VDI_db_forget(vdi)

    def where(self, table, expression):
        wanted = dict(re.findall(r'field "(\w+)" = "([^"]*)"', expression))
        return {r: v for r, v in self.table(table).items() if all(str(v[k]).lower() == w.lower() for k, w in wanted.items())}

    def dispatch(self, method, params):
        if method == "SR.add_to_other_config" and self.fatal in params:
            for process in Path("/proc").glob("[0-9]*"):
                if f"{os.path.dirname(PYTHON)}/".encode() in (process / "cmdline").read_bytes():
                    os.kill(int(process.name), signal.SIGKILL)
        if method == "VDI.db_introduce" and len(params) == 12:
            params = [*params, True, "0", "0", NULL, False, double.xmlrpc.client.DateTime("19700101T00:00:00Z"), NULL, False]
        if method == "SR.set_virtual_allocation":
            # Python sums up volumes at a scan, and takes away the sizes of disks at vdi_delete: it may come to less than nothing.
            params = [*params[:2], params[2].removeprefix("-")]
        if method in double.SIGNATURES:
            return super().dispatch(method, params)
        session, *params = params
        own = getattr(self, method.replace(".", "_"), None)
        if own:
            return own(*params)
        if method.startswith("Async."):
            return "OpaqueRef:task"
        if method.startswith("task."):
            return "success" if method == "task.get_status" else ""
        double.SIGNATURES[method] = None
        try:
            return super().dispatch(method, params)
        finally:
            del double.SIGNATURES[method]


class Python(Driver):
    """The Python driver. It looks for tap-ctl at a place of its own; ours serves a disk by itself where there is none."""

    def raw(self, *args):
        with tap_ctl():
            return super().raw(*args)


@contextlib.contextmanager
def tap_ctl():
    """A host on which no tapdisk runs."""
    with open(TAP_CTL, "w", encoding="ascii") as file:
        file.write("#!/bin/sh\nexit 0\n")
    os.chmod(TAP_CTL, 0o755)
    try:
        yield
    finally:
        os.unlink(TAP_CTL)


class Side:
    """A group and the driver that serves it just now."""

    def __init__(self, case, name, disk, config):
        self.case, self.name, self.disk = case, name, disk
        self.agent = Agent(case.xapi, None, dict(config, device=disk), sr_type="lvm")
        self.by(name)
        self.group = "VG_XenStorage-" + self.agent.sr_uuid
        case.xapi.pbds[f"OpaqueRef:pbd-{self.agent.sr_uuid}"] = {
            "uuid": str(uuid.uuid4()), "SR": self.agent.sr_ref, "host": case.xapi.host_ref, "device_config": self.agent.device_config,
            "currently_attached": True}
        self.names = {}

    def by(self, name):
        """The driver that is called from now on."""
        self.driver_name = name
        self.agent.driver = self.case.drivers[name]
        return self

    def collect(self):
        if self.driver_name == "python":
            words = [COLLECTOR, "-g", "-u", self.agent.sr_uuid]
        else:
            words = [self.case.sm, "sr_collect", "--from-xapi", self.agent.sr_uuid]
        with tap_ctl() if self.driver_name == "python" else contextlib.nullcontext():
            done = subprocess.run(words, env=self.agent.driver.env, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}{self.case.log()}"

    def write(self, name, block, blocks):
        """Writes blocks of 2 MiB to a disk: through the device where there is one, else as tapdisk would."""
        vdi, agent = self.names[name], self.agent
        data = [bytes([65 + block + n]) * BLOCK for n in range(blocks)]
        link = agent.call("vdi_attach", "true", vdi=vdi)["params"]
        if self.driver_name == "python":
            # There is no tapdisk. What comes before it is done.
            try:
                agent.call("vdi_activate", "true", vdi=vdi)
                raise AssertionError("there is a tapdisk")
            except Fault:
                pass
            self.write_image(f"/dev/{self.group}/{self.image(name)}", block, data)
        else:
            agent.call("vdi_activate", "true", vdi=vdi)
            with open(os.path.realpath(link), "r+b") as device:
                device.seek(block * BLOCK)
                device.write(b"".join(data))
                os.fsync(device.fileno())
        agent.call("vdi_deactivate", vdi=vdi)
        agent.call("vdi_detach", vdi=vdi)

    def image(self, name):
        """The volume of a disk."""
        volumes = run("lvs", "--noheadings", "-o", "lv_name", self.group).split()
        return next(volume for volume in volumes if volume.endswith("-" + self.case.xapi.vdis[self.names[name]]["uuid"]))

    @staticmethod
    def write_image(path, block, data):
        """Puts blocks into an image as tapdisk does."""
        if "/QCOW2-" in path:
            for n, bytes_ in enumerate(data, block):
                run("qemu-io", "-f", "qcow2", "-c", f"write -P {bytes_[0]} {n * BLOCK} {BLOCK}", path)
            return
        with open(path, "r+b") as device:
            if "/VHD-" in path:
                write_blocks(device, block, data)
            else:
                device.seek(block * BLOCK)
                device.write(b"".join(data))
            os.fsync(device.fileno())

    def state(self):
        """The group and what xapi knows of it, by names of our own instead of UUIDs and times."""
        rows = run("lvs", "--noheadings", "--separator", ":", "--units", "m", "--nosuffix", "-o", "lv_name,lv_size,lv_attr,lv_tags",
                   self.group, check=False).split()
        if not rows:
            return {"group": "gone", "VDIs": self.told()["VDIs"]}
        volumes = [row.split(":") for row in rows]
        active = {name for name, _, attr, _ in volumes if attr[4] == "a"}
        run("vgchange", "-ay", self.group)
        images, parents = {}, {}
        for name, size, attr, tags in volumes:
            image = {"MiB": float(size), "permission": attr[1], "tags": tags, "active": name in active}
            if name.startswith("VHD-"):
                image.update(vhd(f"/dev/{self.group}/{name}"))
                checked = subprocess.run(["vhd-util", "check", "-i", "-n", f"/dev/{self.group}/{name}"], capture_output=True, text=True, check=False)
                image["check"] = "" if checked.returncode == 0 else checked.stdout + checked.stderr
            if name.startswith("QCOW2-"):
                image.update(qcow2(f"/dev/{self.group}/{name}"))
            if image.get("parent"):
                parents[name.partition("-")[2]] = image["parent"].replace("--", "-")[-36:]
            images[name] = image
        look = subprocess.run(["python3", "-B", LOOK, self.group], capture_output=True, text=True, check=False)
        with open(f"/dev/{self.group}/MGT", "rb") if "MGT" in images else open("/dev/null", "rb") as device:
            mgt = device.read(1 << 16)
        length = int(mgt[5:15] or 0)
        sectors = [mgt[at:at + 512].replace(b"\0", b"").decode().strip() for at in range(0, length, 512)]
        run("lvchange", "-an", *(f"{self.group}/{name}" for name in images.keys() - active), check=False)
        counts = {}
        for file in Path(f"/run/sm/refcount/lvm-{self.agent.sr_uuid}").glob("*"):
            counts[file.name] = file.read_text(encoding="ascii")
        known = {self.case.xapi.vdis[ref]["uuid"]: name for name, ref in self.names.items()}
        while len(more := {p: None for c, p in parents.items() if c in known and p not in known}):
            for parent in more:
                children = [known.get(c, "?") for c, p in parents.items() if p == parent]
                if "?" not in children:
                    known[parent] = f"({'+'.join(sorted(children))})"
            if not any(p in known for p in more):
                break
        text = json.dumps({"volumes": images, "look": look.stdout.splitlines(), "wrong": look.stderr, "MGT": sectors, "counts": counts,
                           "xapi": self.told(known)})
        text = text.replace("--", "-").replace(self.agent.sr_uuid, "SR").replace(self.agent.sr_ref, "the SR")
        for ref, record in self.case.xapi.of(self.agent.sr_ref).items():
            text = text.replace(ref, "ref of " + known.get(record["uuid"], "?"))
        text = re.sub(UUID, lambda found: known.get(found[0], "?"), text)
        return chosen(json.loads(text))

    def digests(self):
        """What each disk holds, and that of disks that have no name, by lvhd-look.py."""
        before = {row.split(":")[0] for row in run("lvs", "--noheadings", "--separator", ":", "-o", "lv_name,lv_active", self.group).split()
                  if row.endswith(":active")}
        look = subprocess.run(["python3", "-B", LOOK, self.group], capture_output=True, text=True, check=False)
        names = run("lvs", "--noheadings", "-o", "lv_name", self.group).split()
        run("lvchange", "-an", *(f"{self.group}/{name}" for name in names if name not in before), check=False)
        known = {self.case.xapi.vdis[ref]["uuid"]: name for name, ref in self.names.items() if ref in self.case.xapi.vdis}
        rows = [line.split() for line in look.stdout.splitlines()]
        return {known.get(row[0], row[0]): row[1] for row in rows if row[4] == "0"}

    def told(self, known=()):
        sr = {k: v for k, v in self.case.xapi.srs[self.agent.sr_ref].items() if k not in ("uuid", "PBDs", "VDIs")}
        vdis = {known[v["uuid"]] if v["uuid"] in known else "?" + v["uuid"]: v for v in self.case.xapi.of(self.agent.sr_ref).values()}
        return {"SR": sr, "VDIs": vdis}


def chosen(state):
    """The state without what differs by choice, and why."""
    # The Python driver has MGT active from sr_attach to sr_detach; ours never activates it.
    state["volumes"].get("MGT", {}).pop("active", None)
    # The time is that of the host at the snapshot; vdi_update changes it to xapi's in a group of Python's. So it notes the pool
    # `OpaqueRef:NULL`, and where the record is.
    records = [re.sub("<snapshot_time>[^<]*|<offset>[^<]*</offset>|OpaqueRef:NULL", "", sector) for sector in state["MGT"]]
    state["MGT"] = records
    state["look"].sort()
    sr = state["xapi"]["SR"]
    # Python's scan sums up volumes. It notes the serial number of the device.
    del sr["virtual_allocation"]
    sr["sm_config"].pop("devserial", None)
    for vdi in state["xapi"]["VDIs"].values():
        # Python's collector notes which blocks are there; ours looks.
        vdi["sm_config"].pop("vhd-blocks", None)
        # A snapshot of ours stays as it is.
        if vdi["is_a_snapshot"]:
            del vdi["read_only"], vdi["snapshot_time"]
    return state


def write_blocks(device, block, data):
    """Blocks of a VHD, as tapdisk gives them a place: after what is there, the data at a page."""
    device.seek(512 + 16)
    table_at, entries = struct.unpack(">Q4xI", device.read(16))
    device.seek(table_at)
    table = list(struct.unpack(f">{entries}I", device.read(4 * entries)))
    free = max([(table_at + 4 * entries + 511) // 512 + 1 + 4 * 32 * 2] + [entry + 1 + BLOCK // 512 for entry in table if entry != 0xffffffff])
    for n, bytes_ in enumerate(data, block):
        if table[n] == 0xffffffff:
            table[n] = (free + 1 + 7) // 8 * 8 - 1
            free = table[n] + 1 + BLOCK // 512
        device.seek(512 * table[n])
        device.write(b"\xff" * 512 + bytes_)
    device.seek(table_at)
    device.write(struct.pack(f">{entries}I", *table))


def plant(group, many):
    """Empty disks of 8 MiB, as the Python driver makes them, and their records."""
    names = [str(uuid.uuid4()) for _ in range(many)]
    lines = "#!lvm\n" + "".join(f"lvcreate -qq -y -an -Zn -Wn -l 2 -n VHD-{name} {group}\n" for name in names)
    with tempfile.NamedTemporaryFile("w") as script:
        script.write(lines)
        script.flush()
        run("lvm", script.name)
    run("vgchange", "-ay", group)
    image = f"/dev/{group}/VHD-{names[0]}"
    run("vhd-util", "create", "-n", image, "-s", "8", "-S", str(2 << 20))
    with open(image, "rb") as device:
        data = device.read(8 * MiB)
    for name in names[1:]:
        with open(f"/dev/{group}/VHD-{name}", "r+b") as device:
            for at in range(0, len(data), 1 << 16):
                if any(data[at:at + 512]) or any(data[at:at + (1 << 16)]):
                    device.seek(at)
                    device.write(data[at:at + (1 << 16)])
    with open(f"/dev/{group}/MGT", "r+b") as device:
        text = device.read(2048)
        records = b"".join(
            f"<vdi><name_label>disk {n}</name_label><name_description></name_description>".encode().ljust(512)
            + (f"<uuid>{name}</uuid><is_a_snapshot>0</is_a_snapshot><snapshot_of></snapshot_of><snapshot_time></snapshot_time><type>user</type>"
               "<vdi_type>vhd</vdi_type><read_only>0</read_only><managed>1</managed><metadata_of_pool></metadata_of_pool><deleted>0</deleted></vdi>"
               ).encode().ljust(512) for n, name in enumerate(names))
        device.seek(0)
        device.write(f"XSSM:{2048 + len(records):<10}:1:2".encode().ljust(512) + text[512:] + records)
        os.fsync(device.fileno())
    run("vgchange", "-an", group)


def qcow2(path):
    """What a qcow2 says of itself."""
    said = json.loads(run("qemu-img", "info", "--output=json", path))
    data = said["format-specific"]["data"]
    return {"virtual": said["virtual-size"], "cluster": said["cluster-size"], "parent": said.get("backing-filename", ""),
            "parent's format": said.get("backing-filename-format", ""), "compat": data["compat"], "refcount": data["refcount-bits"]}


def vhd(path):
    """What a VHD says of itself, without its times and identities."""
    with open(path, "rb") as device:
        def at(offset, length):
            device.seek(offset)
            return device.read(length)
        footer, head = at(0, 512), at(512, 1024)
        facts = struct.unpack(">8sIIQI4sI4sQQ4sI", footer[:64])
        table_at, head_version, entries, block = struct.unpack(">QIII", head[16:36])
        said = head[0x40:0x240].decode("utf-16-be", "replace").rstrip("\0")
        locators = []
        for slot in range(8):
            code, space, length, where = struct.unpack(">4sII4xQ", head[0x240 + 24 * slot:0x258 + 24 * slot])
            if code.strip(b"\0"):
                coded = "latin1" if code == b"MacX" else "utf-16-le"
                locators.append([code.decode("latin1"), space, length, where, at(where, length).decode(coded, "replace")])
        batmap_at = (table_at + 4 * entries + 511) // 512 * 512
        table = struct.unpack(f">{entries}I", at(table_at, 4 * entries))
        batmap = at(batmap_at, 512)
        map_at, map_sectors, map_version, _sum, marker = struct.unpack(">QIIIB", batmap[8:29])
        # Without the time.
        facts = [fact.hex() if isinstance(fact, bytes) else fact for fact in facts[:4] + facts[5:]]
        return {"footer": facts, "saved": footer[0x54], "hidden": footer[0x55], "header": [table_at, head_version, entries, block],
                "parent": said, "locators": locators,
                "blocks": {n: entry for n, entry in enumerate(table) if entry != 0xffffffff},
                "batmap": [batmap[:8].decode("latin1"), map_at, map_sectors, map_version, marker]}


@unittest.skipUnless(DISKS, "tests/guest/peers/lvhd.sh makes the host")
class Host(unittest.TestCase):
    """A host with both drivers and a double of xapi."""

    maxDiff = None

    def setUp(self):
        self.scratch = tempfile.mkdtemp(prefix="peer-")
        self.xapi = PeersXapi(os.path.join(self.scratch, "xapi"))
        self.addCleanup(self.xapi.close)
        if os.path.lexists(SOCKET):
            os.unlink(SOCKET)
        os.symlink(self.xapi.path, SOCKET)
        with open("/etc/xensource-inventory", "w", encoding="ascii") as file:
            file.write(f"INSTALLATION_UUID='{self.xapi.host_uuid}'\nCONTROL_DOMAIN_UUID='{DOM0}'\nPRIMARY_DISK='/dev/none'\n")
        self.xapi.vms["OpaqueRef:dom0"] = {"uuid": DOM0, "resident_on": self.xapi.host_ref}
        host = self.xapi.hosts[self.xapi.host_ref]
        host.update(enabled=True, address="127.0.0.1", hostname="one", metrics="OpaqueRef:metrics")
        self.xapi.capabilities = ["VDI_CONFIG_CBT"]
        self.sm = os.path.abspath(os.path.join(BIN, "sm"))
        ours = os.path.join(self.scratch, "LVMSR")
        os.symlink(self.sm, ours)
        self.xapi.driver_filenames["lvm"] = ours
        self.drivers = {"python": Python(PYTHON, self.scratch), "ours": Driver(ours, self.scratch)}
        for driver in self.drivers.values():
            del driver.env["XCP_SM_RUN_DIR"]
            driver.env["DM_DISABLE_UDEV"] = "1"

    def log(self):
        """What the Python driver logged of late."""
        return "".join(line + "\n" for line in LOG[-60:])

    def side(self, name, disk, **config):
        run("vgchange", "-an", check=False)
        for group in run("vgs", "--noheadings", "-o", "vg_name", disk, check=False).split():
            run("vgremove", "-ff", "-y", group)
        run("wipefs", "-qa", disk)
        # Python leaves in a new raw disk what was there.
        run("dd", "if=/dev/zero", f"of={disk}", "bs=1M", "count=400", "conv=notrunc", "status=none")
        return Side(self, name, disk, config)

    def compare(self, what, told):
        """What Python's side and ours are like after a step: the lines that differ."""
        python, ours = (json.dumps(state, indent=1, sort_keys=True).splitlines() for state in told)
        lines = list(difflib.unified_diff(python, ours, "python", "ours", lineterm="", n=2))
        if lines:
            print(f"--- after {what}\n" + "\n".join(lines), flush=True)
        return lines

    def differ(self, story, accept=lambda what, name, state: None, **config):
        """Both go through a story. `accept` takes from a state what may differ there, and asserts that it is just that."""
        told, wrong = {}, 0
        for name, disk in zip(("python", "ours"), DISKS):
            side = self.side(name, disk, **config)
            told[name] = []
            begun = time.time()
            try:
                for what in story(side):
                    took = time.time() - begun
                    state = side.state()
                    accept(what, name, state)
                    told[name].append((what, state))
                    print(f"{name}: {what}: {took:.1f} s", flush=True)
                    if name == "ours" and len(told["python"]) >= len(told[name]):
                        wrong += len(self.compare(what, (told["python"][len(told[name]) - 1][1], told[name][-1][1])))
                    begun = time.time()
            except Exception as error:
                print(self.log()[-5000:], self.xapi.misuses)
                print(f"{name}: {type(error).__name__}: {error}")
                traceback.print_exc()
        self.assertEqual(len(told["python"]), len(told["ours"]))
        self.assertEqual(wrong, 0)

    def allow(self, state, name, volume, sizes):
        """Python leaves a volume larger, and ours makes it smaller: the MiB are just these, and those of ours from now on."""
        image, size, wanted = volume.partition("-")[2], sizes[name], sizes["ours"]
        of, record, sr = state["volumes"][volume], state["xapi"]["VDIs"][image], state["xapi"]["SR"]
        (at,) = [n for n, line in enumerate(state["look"]) if line.startswith(image + " ")]
        words = state["look"][at].split(" ")
        self.assertEqual((of["MiB"], record["physical_utilisation"], words[5]), (size, str(size * MiB), str(size)))
        of["MiB"], record["physical_utilisation"], words[5] = wanted, str(wanted * MiB), str(wanted)
        state["look"][at] = " ".join(words)
        sr["physical_utilisation"] = str(int(sr["physical_utilisation"]) - (size - wanted) * MiB)

    def hand_over(self, side, driver, records):
        """The other becomes the master, as at a change of the master, and finds all as it was."""
        was, digests = side.state(), side.digests()
        side.agent.call("sr_detach")
        side.by(driver)
        side.agent.attach_sr()
        side.agent.scan()
        self.assertEqual(self.kept(side.state()), self.kept(was), records)
        self.assertEqual(side.digests(), digests)
        return digests

    def made(self, side):
        """The first disks are made."""

    def kept(self, state):
        """What xapi knows of disks, whoever is the master."""
        return state["xapi"]["VDIs"]

    def crossed(self, first, second, disk, **config):
        """One makes, the other goes on; then the first finds all well."""
        side = self.side(first, disk, **config)
        agent, names = side.agent, side.names
        agent.create_sr()
        agent.attach_sr()
        names["a"] = agent.create(16 * MiB, "of the first", sm_config={})
        names["b"] = agent.create(8 * MiB, "b", sm_config={})
        side.write("a", 0, 2)
        self.made(side)
        names["s"] = agent.snapshot(names["a"])
        side.write("a", 2, 1)
        names["t"] = agent.snapshot(names["a"])
        names["d"] = agent.copy("vdi_clone", names["s"])
        agent.scan()
        self.hand_over(side, second, "records after the change of hands")
        names["u"] = agent.snapshot(names["a"])
        agent.delete(names.pop("s"))
        agent.resize(names["a"], 24 * MiB)
        side.write("d", 4, 1)
        names["e"] = agent.create(12 * MiB, "of the second", sm_config={})
        agent.delete(names.pop("t"))
        side.collect()
        agent.scan()
        self.assertEqual(side.state()["wrong"], "")
        digests = self.hand_over(side, first, "records after it came back")
        agent.delete(names.pop("u"))
        side.collect()
        agent.scan()
        self.assertEqual(side.digests(), {name: digest for name, digest in digests.items() if name != "u"})
        for name in list(names):
            agent.delete(names.pop(name))
        side.collect()
        agent.scan()
        self.assertEqual(run("lvs", "--noheadings", "-o", "lv_name", side.group).split(), ["MGT"])


class Peers(Host):
    def of_disks(self, side):
        """Calls that make and change disks; after each, its name."""
        agent, names = side.agent, side.names
        # Ours makes MGT now, Python at sr_attach.
        agent.create_sr()
        agent.attach_sr()
        yield "sr_attach"
        agent.scan()
        yield "sr_scan of nothing"
        names["a"] = agent.create(16 * MiB, "a <&> é", "the first", sm_config={})
        yield "vdi_create"
        names["b"] = agent.create(5 * MiB + 1, "b", sm_config={})
        names["c"] = agent.create(12 * MiB, "c" * 300, "d" * 300, sm_config={}, vdi_type="system")
        yield "vdi_create of an odd size, with long names"
        side.write("a", 0, 3)
        # Until then, xapi has the size of the volume before it was attached from ours.
        agent.scan()
        yield "the first data"
        names["s"] = agent.snapshot(names["a"])
        yield "vdi_snapshot"
        side.write("a", 1, 1)
        names["t"] = agent.snapshot(names["a"])
        yield "a second vdi_snapshot"
        names["d"] = agent.copy("vdi_clone", names["s"])
        # Python counts a volume that is gone when the call ends.
        agent.scan()
        yield "vdi_clone of a snapshot"
        names["e"] = agent.copy("vdi_clone", names["b"])
        yield "vdi_clone of an empty disk"
        side.write("d", 5, 1)
        agent.resize(names["a"], 32 * MiB)
        agent.resize(names["d"], 20 * MiB + 5)
        yield "vdi_resize"
        self.xapi.vdis[names["t"]].update(name_label="the second", name_description="of a")
        agent.call("vdi_update", vdi=names["t"])
        yield "vdi_update"
        agent.scan()
        yield "sr_scan"

    def of_merges(self, side):
        """Calls that delete and merge, and the life of the SR."""
        agent, names = side.agent, side.names
        agent.create_sr()
        agent.attach_sr()
        names["a"] = agent.create(16 * MiB, "a", "the first", sm_config={})
        side.write("a", 0, 3)
        names["s"] = agent.snapshot(names["a"])
        side.write("a", 1, 1)
        names["t"] = agent.snapshot(names["a"])
        names["d"] = agent.copy("vdi_clone", names["s"])
        side.write("d", 5, 1)
        agent.scan()
        yield "a tree"
        agent.delete(names.pop("s"))
        agent.scan()
        yield "vdi_delete of a snapshot"
        agent.scan()
        side.collect()
        agent.scan()
        yield "its collection"
        agent.delete(names.pop("d"))
        side.collect()
        agent.scan()
        yield "vdi_delete of the clone, and its collection"
        agent.delete(names.pop("t"))
        side.collect()
        agent.scan()
        yield "the merge of the disk"
        record = self.xapi.vdis.pop(names["a"])
        agent.scan()
        names["a"] = self.xapi.by_uuid(self.xapi.vdis, record["uuid"], "VDI")
        yield "sr_scan when xapi forgot a disk"
        self.xapi.srs[agent.sr_ref].update(name_label="the SR", name_description="of all")
        agent.call("sr_update")
        yield "sr_update"
        agent.call("sr_detach")
        yield "sr_detach"
        agent.attach_sr()
        agent.scan()
        yield "sr_attach once more"
        for name in list(names):
            agent.delete(names.pop(name))
        side.collect()
        agent.scan()
        yield "vdi_delete of all"
        agent.call("sr_detach")
        agent.call("sr_delete")
        yield "sr_delete"

    def test_disks_thin(self):
        self.differ(self.of_disks, allocation="thin")

    def test_disks_thick(self):
        self.differ(self.of_disks, allocation="thick")

    def test_merges_thin(self):
        merged = ("the merge of the disk", "sr_scan when xapi forgot a disk", "sr_update", "sr_detach", "sr_attach once more")

        def accept(what, name, state):
            """Python leaves a disk that was merged while it was detached the room that the merge took; ours takes it back."""
            if what in merged:
                self.allow(state, name, "VHD-a", {"python": 24, "ours": 16})
        self.differ(self.of_merges, accept, allocation="thin")

    def test_merges_thick(self):
        self.differ(self.of_merges, allocation="thick")

    def test_python_makes_ours_goes_on(self):
        self.crossed("python", "ours", DISKS[0], allocation="thin")

    def test_ours_makes_python_goes_on(self):
        self.crossed("ours", "python", DISKS[1], allocation="thin")

    def test_how_long_it_takes(self):
        """A snapshot, and a scan of many disks, by each on the same group: the median of three, and the ratio."""
        many = int(os.environ.get("MANY", "500"))
        side = self.side("ours", DISKS[0])
        agent = side.agent
        agent.create_sr()
        agent.attach_sr()
        plant(side.group, many)
        agent.scan()
        self.assertEqual(len(self.xapi.of(agent.sr_ref)), many)
        agent.call("sr_detach")
        took = {}

        def measure(what, call, after=lambda: None):
            measured = []
            for _ in range(3):
                begun, busy = time.monotonic(), self.xapi.busy
                call()
                all_of_it = time.monotonic() - begun
                measured.append((all_of_it, all_of_it - (self.xapi.busy - busy)))
                after()
            took.setdefault(what, {})[side.driver_name] = sorted(measured)[1]
        for name in ("ours", "python"):
            side.by(name)
            agent.attach_sr()
            measure("sr_scan", lambda: agent.call("sr_scan"))
            agent.call("sr_detach")
        side = self.side("ours", DISKS[0], allocation="thin")
        agent = side.agent
        agent.create_sr()
        agent.attach_sr()
        disk = side.names["a"] = agent.create(16 * MiB, "a", sm_config={})
        agent.call("sr_detach")
        for name in ("ours", "python"):
            side.by(name)
            agent.attach_sr()
            side.write("a", 0, 1)
            measure("vdi_snapshot", lambda: agent.copy("vdi_snapshot", disk), lambda: side.write("a", 0, 1))
            agent.call("sr_detach")
        for what, of in took.items():
            for n, with_ in enumerate(("with", "without")):
                python, ours = of["python"][n], of["ours"][n]
                print(f"{what} {with_} the double of xapi: Python {python:.2f} s, ours {ours:.2f} s, {python / ours:.1f} times", flush=True)


if __name__ == "__main__":
    unittest.main()
