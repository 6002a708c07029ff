"""The plug-in of volumes. Run by `cargo test --test smapiv3`; alone: SM=target/debug/sm python3 -m unittest -v."""

import base64
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import unittest
import uuid
from pathlib import Path

from plugin import ANSWERS, Fault, Host, decode

SM = os.environ["SM"]
MiB = 1 << 20
# xapi's own list, ocaml/xapi/smint.ml.
KNOWN = set("""SR_PROBE SR_UPDATE SR_SUPPORTS_LOCAL_CACHING SR_METADATA SR_TRIM SR_MULTIPATH SR_STATS THIN_PROVISIONING
    LARGE_VDI VDI_READ_CACHING VDI_RESIZE_ONLINE VDI_MIRROR VDI_MIRROR_IN VDI_ACTIVATE_READONLY VDI_RESET_ON_BOOT
    VDI_CONFIG_CBT VDI_COMPOSE VDI_REVERT VDI_ATTACH_OFFLINE""".split())


class Case(unittest.TestCase):
    def setUp(self):
        self.scratch = tempfile.mkdtemp(prefix="smapiv3-")
        self.addCleanup(self.clean)
        self.host = Host(self.scratch, SM)
        self.location = os.path.join(self.scratch, "sr")
        self.uuid = str(uuid.uuid4())

    def clean(self):
        mounts = Path(self.scratch, "host/sr-mount")
        for place in mounts.iterdir() if mounts.is_dir() else ():
            if not place.is_symlink():
                subprocess.run(["umount", place], check=False, stderr=subprocess.DEVNULL)
        shutil.rmtree(self.scratch)

    def create(self, name="an SR", **config):
        configuration = {"location": self.location, **config}
        return self.host.call("SR.create", uuid=self.uuid, configuration=configuration, name=name, description="for tests")

    def attached(self, **config):
        self.config = self.create(**config)
        self.sr = self.host.call("SR.attach", configuration=self.config)

    def volume(self, method, key, **params):
        return self.host.call(f"Volume.{method}", sr=self.sr, key=key, **params)

    def new(self, size=10 * MiB, name="a disk", sharable=False):
        return self.host.call("Volume.create", sr=self.sr, name=name, description="", size=size, sharable=sharable)

    def listed(self):
        volumes = self.host.call("SR.ls", sr=self.sr)
        return {volume["key"]: volume for volume in volumes}

    def refused(self, number, method, **params):
        with self.assertRaises(Fault) as raised:
            self.host.call(method, **params)
        self.assertEqual(raised.exception.number, number, raised.exception)
        self.assertEqual(len(raised.exception.params), 3)
        return raised.exception.params[1]


class Plugins(Case):
    def test_what_the_plug_ins_say_of_themselves(self):
        for sr_type in ("file", "nfs", "ext", "smb", "xfs"):
            host = Host(self.scratch, SM, [sr_type])
            said = host.call("Plugin.Query", sr_type=sr_type)
            self.assertEqual((said["plugin"], said["required_api_version"]), (f"sm-{sr_type}", "5.0"))
            self.assertLessEqual(set(said["features"]), KNOWN)
            self.assertIn("sr_uuid", said["configuration"])
        status, out, _ = self.host.raw("Datapath.attach", b"")
        self.assertEqual(status, 1, out)
        with subprocess.Popen([f"{self.host.root}/datapath/sm/Plugin.Query", "--json"], env=self.host.env,
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE) as call:
            said = self.host.answer("Plugin.Query", 0, call.communicate(b'{"dbg":""}', timeout=60)[0])
        self.assertEqual((said["plugin"], said["configuration"]), ("sm", {}))
        self.assertIn("blktap", self.host.call("Plugin.diagnostics"))

    def test_an_executable_is_there_for_each_method_that_works_and_for_no_other(self):
        names = {path.name for path in Path(self.host.root).rglob("*.*") if path.is_symlink()}
        self.assertEqual(names, set(ANSWERS))
        self.assertEqual([path.name for path in Path(self.host.root, "datapath").iterdir()], ["sm"])
        self.assertEqual(sorted(os.listdir(self.host.root)), ["datapath", "volume"])

    def test_the_plug_ins_go_as_they_came_and_other_files_stay(self):
        other = Path(self.host.path("SR.other"))
        other.write_text("")
        put = Path(__file__).resolve().parents[2] / "support/smapiv3"
        subprocess.run([put, "put", SM, self.host.root, "file"], check=True)
        subprocess.run([put, "take-away", SM, self.host.root], check=True)
        left = [path for path in Path(self.host.root).rglob("*") if not path.is_dir()]
        self.assertEqual(left, [other])
        self.assertFalse(Path(self.host.root, "datapath/sm").exists())

    def test_a_directory_that_leads_to_a_plug_in_is_one(self):
        os.symlink("org.xen.xapi.storage.sm-file", f"{self.host.root}/volume/org.xen.xapi.storage.dummyv5")
        path = f"{self.host.root}/volume/org.xen.xapi.storage.dummyv5/Plugin.Query"
        done = subprocess.run([path, "-j"], input=b'{"dbg":""}', env=self.host.env, capture_output=True, check=True)
        self.assertEqual(decode(done.stdout)["plugin"], "sm-file")

    def test_a_traced_xapi_starts_the_executable_by_python(self):
        copy = os.path.join(self.scratch, "sm")
        shutil.copy(SM, copy)
        subprocess.run([Path(__file__).resolve().parents[2] / "support/observer-entry", copy], check=True)
        host = Host(os.path.join(self.scratch, "traced"), copy)
        observer = "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
        host.prefix = ["/usr/bin/python3", "-c", observer]
        self.assertEqual(host.call("Plugin.Query")["plugin"], "sm-file")


class Requests(Case):
    def test_what_is_no_request_is_an_error_object(self):
        self.attached()
        good = json.dumps({"dbg": "x", "sr": self.sr})
        for bad in ("", " ", "null", "[]", "{", good + good, good[:-1], good.replace('"dbg"', '"debug"'),
                    good.replace('"sr"', '"SR"'), '{"dbg":1,"sr":"x"}', '{"dbg":null,"sr":"x"}', "[" * 100_000):
            status, out, err = self.host.raw("SR.stat", bad.encode())
            self.assertEqual((status, err), (1, b""), bad[:80])
            with self.assertRaises(Fault) as raised:
                self.host.answer("SR.stat", status, out)
            self.assertEqual(raised.exception.number, 143)
        status, out, _ = self.host.raw("SR.stat", b"\xff" + good.encode())
        self.assertEqual((status, decode(out)["code"]), (1, "SR_BACKEND_FAILURE_143"))
        # As they come from other releases of xapi.
        status, out, _ = self.host.raw("SR.stat", f" \n{good[:-1]},\"more\":{{\"x\":[1.5,null]}}}}\n".encode())
        self.assertEqual((status, decode(out)["uuid"]), (0, self.uuid))

    def test_a_member_that_is_missing_or_of_another_type_is_named(self):
        self.attached()
        good = {"sr": self.sr, "name": "x", "description": "", "size": 1, "sharable": False}
        for name in good:
            self.assertIn(f"{name} is missing", self.refused(143, "Volume.create", **{**good, name: None})
                          .replace(f"{name} is not", f"{name} is missing"))
            document = json.dumps({"dbg": "", **{key: value for key, value in good.items() if key != name}})
            _, out, _ = self.host.raw("Volume.create", document.encode())
            self.assertIn(f"{name} is missing", decode(out)["params"][1])
        for size in (1.0, "1", 1 << 63, True):
            self.assertIn("size is not an integer", self.refused(143, "Volume.create", **{**good, "size": size}))
        self.refused(79, "Volume.create", **{**good, "size": -1})
        self.assertEqual(self.listed(), {})

    def test_an_sr_that_is_not_attached_and_one_that_does_not_exist(self):
        config = self.create()
        sr = f"sm://file/{self.uuid}"
        self.assertIn("SR.attach", self.refused(47, "SR.stat", sr=sr))
        self.assertIn("SR.attach", self.refused(47, "SR.ls", sr=sr))
        self.host.call("SR.detach", sr=sr)
        self.refused(47, "SR.attach", configuration={**config, "sr_uuid": str(uuid.uuid4())})
        self.assertFalse(Path(self.host.run_dir, "sm/smapiv3").is_dir() and os.listdir(f"{self.host.run_dir}/sm/smapiv3"))
        self.refused(115, "SR.attach", configuration={"location": self.location})
        for sr in ("", "x", "sm://file/x", f"sm://nfs/{self.uuid}", "sm://file/../../etc", f"sm://file/{self.uuid}/.."):
            self.refused(1, "SR.stat", sr=sr)
        # A mount that is missing is no empty SR.
        self.host.call("SR.attach", configuration=config)
        os.rename(self.location, self.location + ".away")
        os.mkdir(self.location)
        self.refused(47, "SR.ls", sr=f"sm://file/{self.uuid}")
        os.rmdir(self.location)
        os.rename(self.location + ".away", self.location)

    def test_a_volume_that_does_not_exist_and_what_is_no_key(self):
        self.attached()
        for key in (str(uuid.uuid4()), "../../etc/passwd", "", "--json", "x\0y"):
            for method, more in (("stat", {}), ("snapshot", {}), ("clone", {}), ("set", {"k": "a", "v": "b"}),
                                 ("resize", {"new_size": MiB}), ("set_name", {"new_name": "x"}), ("enable_cbt", {})):
                self.refused(46, f"Volume.{method}", sr=self.sr, key=key, **more)
        self.host.call("Volume.destroy", sr=self.sr, key=str(uuid.uuid4()))
        self.assertEqual(sorted(os.listdir(self.location)), [".sm-names", ".sm-sr"])

    def test_standard_input_is_read_to_its_end_whatever_it_has(self):
        for method in ("Plugin.Query", "SR.stat", "Volume.create"):
            status, out, _ = self.host.raw(method, b"[" * (8 * MiB))
            self.assertEqual((status, decode(out)["code"]), (1, "SR_BACKEND_FAILURE_143"))

    def test_a_secret_is_in_no_answer_and_in_no_message(self):
        host = Host(self.scratch, SM, ["smb"])
        with self.assertRaises(Fault) as raised:
            host.call("SR.create", sr_type="smb", uuid=self.uuid, name="", description="",
                      configuration={"server": "//127.0.0.1/x", "username": "u", "password": "hunter2"})
        self.assertNotIn("hunter2", str(raised.exception))

    def test_a_command_line_as_static_vdis_writes_it(self):
        self.attached()
        volume = self.new()
        self.assertEqual(self.host.words("Plugin.Query")["plugin"], "sm-file")
        config = itertools.chain.from_iterable(("--configuration", *pair) for pair in self.config.items())
        self.assertEqual(self.host.words("SR.attach", *config), self.sr)
        self.assertEqual(self.host.words("Volume.stat", self.sr, volume["key"]), self.listed()[volume["key"]])
        for method, words in (("Volume.stat", [self.sr]), ("Volume.stat", [self.sr, "x"]), ("SR.attach", ["--configuration", "x"]),
                              ("Volume.stat", [self.sr, volume["key"], "more"]), ("Plugin.Query", ["--json"])):
            if "--json" in words:
                status, out, _ = self.host.raw(method, b"{}", "static-vdis", "--json")
                self.assertEqual((status, decode(out)["code"]), (1, "SR_BACKEND_FAILURE_143"))
            else:
                self.assertIs(self.host.words(method, *words), False)


class Srs(Case):
    def test_the_life_of_an_sr(self):
        config = self.create()
        self.assertEqual(config, {"location": self.location, "sr_uuid": self.uuid})
        self.assertEqual(os.listdir(f"{self.host.run_dir}/sr-mount") if os.path.isdir(f"{self.host.run_dir}/sr-mount") else [], [])
        # Twice: the daemon may have died before it told that it was done.
        self.assertEqual(self.create(), config)
        sr = self.host.call("SR.attach", configuration=config)
        self.assertEqual(self.host.call("SR.attach", configuration=config), sr)
        stat = self.host.call("SR.stat", sr=sr)
        self.assertEqual((stat["sr"], stat["uuid"], stat["name"], stat["description"]), (sr, self.uuid, "an SR", "for tests"))
        self.assertEqual((stat["health"], stat["clustered"]), (["Healthy", ""], False))
        self.assertLess(0, stat["free_space"])
        self.assertLessEqual(stat["free_space"], stat["total_space"])
        self.host.call("SR.set_name", sr=sr, new_name="neuer \"Name\" \\ λ\n")
        self.host.call("SR.set_description", sr=sr, new_description="")
        self.host.call("SR.detach", sr=sr)
        self.host.call("SR.detach", sr=sr)
        self.refused(47, "SR.stat", sr=sr)
        self.host.call("SR.attach", configuration=config)
        stat = self.host.call("SR.stat", sr=sr)
        self.assertEqual((stat["name"], stat["description"]), ("neuer \"Name\" \\ λ\n", ""))
        self.sr = sr
        volume = self.new()
        self.refused(39, "SR.destroy", sr=sr)
        self.volume("destroy", volume["key"])
        self.host.call("SR.destroy", sr=sr)
        self.assertFalse(os.path.exists(self.location))
        self.refused(47, "SR.stat", sr=sr)
        self.host.call("SR.detach", sr=sr)

    def test_a_name_that_is_too_long_is_refused_before_anything_is_made(self):
        with self.assertRaises(Fault):
            self.create(name="x" * 5000)
        self.assertFalse(os.path.exists(self.location))
        self.attached()
        self.refused(1, "SR.set_name", sr=self.sr, new_name="x" * 5000)
        self.refused(1, "Volume.create", sr=self.sr, name="x" * 5000, description="", size=1, sharable=False)
        self.assertEqual(self.host.call("SR.stat", sr=self.sr)["name"], "an SR")

    def test_a_creation_that_fails_leaves_nothing(self):
        os.mkdir(self.location)
        Path(self.location, "theirs").write_text("x")
        with self.assertRaises(Fault) as raised:
            self.create()
        self.assertEqual(raised.exception.number, 42)
        self.assertEqual(os.listdir(self.location), ["theirs"])
        self.refused(94, "SR.create", uuid=self.uuid, configuration={}, name="", description="")
        self.refused(91, "SR.create", uuid=self.uuid, configuration={"location": "relative"}, name="", description="")

    def test_a_probe_finds_what_is_there_and_what_could_be(self):
        self.refused(19, "SR.probe", configuration={"location": self.location})
        os.mkdir(self.location)
        probed = self.host.call("SR.probe", configuration={"location": self.location})
        self.assertEqual(probed, [{"configuration": {"location": self.location}, "complete": True, "extra_info": {}}])
        config = self.create()
        (found,) = self.host.call("SR.probe", configuration={"location": self.location})
        self.assertEqual((found["configuration"], found["complete"], found["sr"]["uuid"]), (config, True, self.uuid))
        (again,) = self.host.call("SR.probe", configuration=config)
        self.assertEqual((again["configuration"], again["sr"]["uuid"]), (config, self.uuid))
        # Of an SR in a directory of the one that is looked at, the place is told.
        (below,) = self.host.call("SR.probe", configuration={"location": os.path.dirname(self.location)})
        self.assertEqual(below["configuration"], config)
        sr = self.host.call("SR.attach", configuration=below["configuration"])
        # An SR that is there and attached is named once more, and stays attached.
        self.assertEqual(self.create(), config)
        self.assertEqual(self.host.call("SR.stat", sr=sr)["uuid"], self.uuid)
        self.assertEqual(self.host.call("SR.probe", configuration={**config, "sr_uuid": str(uuid.uuid4())}), [])
        self.refused(94, "SR.probe", configuration={})


class Volumes(Case):
    def setUp(self):
        super().setUp()
        self.attached()

    def test_the_life_of_a_volume(self):
        for size in (0, 1, 4 * MiB + 1, 10 * MiB):
            volume = self.new(size, name="Größe \"1\"")
            self.assertLessEqual(size, volume["virtual_size"])
            self.assertEqual(volume["key"], volume["uuid"])
            self.assertEqual((volume["name"], volume["read_write"], volume["keys"]), ("Größe \"1\"", True, {}))
            self.assertEqual(volume["uri"], [f"sm://file/{self.uuid}/{volume['key']}"])
            self.assertEqual(self.volume("stat", volume["key"]), volume)
            self.assertEqual(self.listed()[volume["key"]], volume)
        key = volume["key"]
        self.volume("set_name", key, new_name="neu")
        self.volume("set_description", key, new_description="zwei\nZeilen")
        self.volume("resize", key, new_size=12 * MiB)
        now = self.volume("stat", key)
        self.assertEqual((now["name"], now["description"], now["virtual_size"]), ("neu", "zwei\nZeilen", 12 * MiB))
        self.refused(79, "Volume.resize", sr=self.sr, key=key, new_size=MiB)
        self.refused(79, "Volume.resize", sr=self.sr, key=key, new_size=-1)
        self.volume("destroy", key)
        self.volume("destroy", key)
        self.assertNotIn(key, self.listed())
        self.refused(46, "Volume.stat", sr=self.sr, key=key)

    def test_keys_are_kept_as_they_are_and_no_copy_has_them(self):
        key = self.new()["key"]
        kept = {"vdi-type": "user", "λ \"\\\n": "\u0001𝄞" * 100, "_sm_config_base_mirror": "", "": "x", "big": "b" * 8192}
        for k, v in kept.items():
            self.volume("set", key, k=k, v=v)
        self.assertEqual(self.volume("stat", key)["keys"], kept)
        self.assertEqual(self.listed()[key]["keys"], kept)
        self.volume("set_name", key, new_name="other")
        snapshot = self.volume("snapshot", key)
        clone = self.volume("clone", key)
        self.assertEqual((snapshot["name"], clone["name"]), ("other", "other"))
        self.assertLessEqual({"snapshot_of": key, "is_a_snapshot": "true"}.items(), snapshot["keys"].items())
        self.assertEqual((snapshot["read_write"], clone["read_write"], clone["keys"]), (False, True, {}))
        self.assertEqual(self.volume("stat", key)["keys"], kept)
        # As xapi's daemon does it: also of a volume that cannot be written to.
        for k, v in {"snapshot_time": "2026-11-28T07:00:00Z", "is_a_snapshot": "true", "snapshot_of": key, "vdi-type": "user"}.items():
            self.volume("set", snapshot["key"], k=k, v=v)
        self.assertEqual(self.listed()[snapshot["key"]]["keys"]["snapshot_time"], "2026-11-28T07:00:00Z")
        self.volume("unset", key, k="big")
        self.volume("unset", key, k="big")
        self.volume("unset", key, k="vdi-type")
        del kept["big"], kept["vdi-type"]
        self.assertEqual(self.volume("stat", key)["keys"], kept)
        self.refused(1, "Volume.set", sr=self.sr, key=key, k="k", v="v" * 200_000)
        self.assertEqual(self.volume("stat", key)["keys"], kept)
        # The room that a record has is not less than what is promised, whatever the characters.
        self.volume("set", key, k="room", v="\u0001" * 120_000)
        self.assertEqual(len(self.volume("stat", key)["keys"]["room"]), 120_000)
        self.volume("revert", key, snapshot=snapshot["key"])
        self.assertEqual(len(self.volume("stat", key)["keys"]), len(kept) + 1)
        self.volume("unset", key, k="room")

    def test_as_many_keys_as_there_is_room_for_are_read_again(self):
        key = self.new()["key"]
        room = 128 * 1024 // 17
        record = Path(self.location, f"{key}.params")
        # What thousands of calls would leave.
        keys = " ".join(f'("{number:x}" . "")' for number in range(room // 2))
        record.write_text(record.read_text().rstrip()[:-1] + f" (keys {keys}))\n")
        self.assertEqual(len(self.volume("stat", key)["keys"]), room // 2)
        self.volume("set_description", key, new_description="\u0001" * 65536)
        self.volume("set", key, k="more", v="\u0001" * 40_000)
        self.refused(1, "Volume.set", sr=self.sr, key=key, k="most", v="x" * 100_000)
        self.assertEqual(len(self.listed()[key]["keys"]), room // 2 + 1)
        self.assertEqual(self.volume("stat", key)["description"], "\u0001" * 65536)

    def test_snapshots_clones_and_what_goes_first(self):
        key = self.new()["key"]
        first = self.volume("snapshot", key)["key"]
        of_snapshot = self.volume("clone", first)["key"]
        self.volume("snapshot", of_snapshot)
        self.assertEqual(len(self.listed()), 4)
        for doomed in (first, key):
            self.volume("destroy", doomed)
        self.assertEqual(len(self.listed()), 2)
        self.assertEqual(self.volume("stat", of_snapshot)["virtual_size"], 10 * MiB)

    def test_the_clone_of_a_volume_that_forgets_goes_with_the_volume(self):
        key = self.new()["key"]
        clone = self.volume("clone", key)["key"]
        self.volume("set", key, k="clone-on-boot", v=clone)
        # The daemon destroys the same volume twice.
        self.volume("destroy", key)
        self.volume("destroy", key)
        self.assertEqual(self.listed(), {})
        key = self.new()["key"]
        for odd in (key, "../x", "", str(uuid.uuid4())):
            self.volume("set", key, k="clone-on-boot", v=odd)
            self.assertEqual(len(self.listed()), 1)
        self.volume("destroy", key)
        self.assertEqual(self.listed(), {})

    def test_a_revert_gives_the_size_back_and_keeps_the_rest(self):
        key = self.new()["key"]
        snapshot = self.volume("snapshot", key)["key"]
        self.volume("resize", key, new_size=20 * MiB)
        for _ in range(2):
            self.volume("revert", key, snapshot=snapshot)
            self.assertEqual(self.volume("stat", key)["virtual_size"], 10 * MiB)
        self.assertEqual(set(self.listed()), {key, snapshot})

    def test_a_volume_for_several_hosts_is_raw(self):
        volume = self.new(sharable=True)
        self.assertTrue(volume["sharable"])
        self.assertTrue(Path(self.location, f"{volume['key']}.raw").is_file())
        large = self.new(3 << 40)
        self.assertTrue(Path(self.location, f"{large['key']}.qcow2").is_file())

    def test_changed_blocks(self):
        key = self.new()["key"]
        self.refused(66, "Volume.enable_cbt", sr=self.sr, key=self.new(sharable=True)["key"])
        self.volume("enable_cbt", key)
        self.volume("enable_cbt", key)
        self.assertTrue(self.volume("stat", key)["cbt_enabled"])
        first = self.volume("snapshot", key)
        self.assertTrue(first["cbt_enabled"])
        self.assertEqual(self.volume("stat", first["key"]), first)
        self.assertFalse(self.volume("clone", key)["cbt_enabled"])
        blocks = self.volume("list_changed_blocks", first["key"], key2=key, offset=0, length=-1)
        self.assertEqual((blocks["granularity"], base64.b64decode(blocks["bitmap"])), (65536, bytes(20)))
        part = self.volume("list_changed_blocks", first["key"], key2=key, offset=65536 * 3, length=65536 * 9)
        self.assertEqual(base64.b64decode(part["bitmap"]), bytes(2))
        self.refused(1, "Volume.list_changed_blocks", sr=self.sr, key=key, key2=key, offset=1, length=-1)
        self.refused(66, "Volume.data_destroy", sr=self.sr, key=key)
        self.volume("data_destroy", first["key"])
        self.volume("data_destroy", first["key"])
        self.volume("set", first["key"], k="vdi-type", v="cbt_metadata")
        log = self.volume("stat", first["key"])
        self.assertEqual((log["volume_type"], log["keys"]["vdi-type"]), (["CBT_Metadata", None], "cbt_metadata"))
        self.assertEqual((log["name"], log["keys"]["snapshot_of"], log["cbt_enabled"]), ("a disk", key, True))
        self.refused(46, "Volume.set", sr=self.sr, key=first["key"], k="else", v="x")
        self.host.call("SR.detach", sr=self.sr)
        self.host.call("SR.attach", configuration=self.config)
        self.assertEqual(self.listed()[first["key"]], log)
        self.volume("list_changed_blocks", first["key"], key2=key, offset=0, length=-1)
        self.volume("disable_cbt", key)
        self.assertFalse(self.volume("stat", key)["cbt_enabled"])
        self.volume("destroy", first["key"])
        self.assertNotIn(first["key"], self.listed())
        self.assertEqual([name for name in os.listdir(self.location) if first["key"] in name], [])

    def test_an_image_that_cannot_be_read_stays_in_the_list(self):
        good, bad = self.new()["key"], self.new()["key"]
        Path(self.location, f"{bad}.vhd").write_bytes(b"x" * 4096)
        self.assertEqual(set(self.listed()), {good, bad})
        self.volume("destroy", bad)
        self.assertEqual(set(self.listed()), {good})

    def test_calls_at_the_same_time(self):
        key = self.new()["key"]
        failures = []

        def work(number):
            try:
                for turn in range(5):
                    self.volume("set", key, k=f"{number}.{turn}", v="x")
                    mine = self.new(MiB, name=f"{number}")["key"]
                    self.volume("snapshot", mine)
                    self.host.call("SR.set_name" if number % 2 else "SR.set_description", sr=self.sr,
                                   **{"new_name" if number % 2 else "new_description": str(number)})
                    self.volume("destroy", mine)
            except (Fault, AssertionError, subprocess.TimeoutExpired) as failure:
                failures.append(failure)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            self.assertIn(key, self.listed())
            time.sleep(0.05)
        for thread in threads:
            thread.join()
        self.assertEqual(failures, [])
        self.assertEqual(len(self.volume("stat", key)["keys"]), 40)
        self.assertEqual(len(self.listed()), 41)
        stat = self.host.call("SR.stat", sr=self.sr)
        self.assertTrue(stat["name"].isdigit() and stat["description"].isdigit(), stat)

    def test_a_call_that_is_killed_is_made_again(self):
        chance = random.Random(3)
        key = self.new()["key"]
        kept = {}
        for turn in range(60):
            method, more = chance.choice([("set", {"k": f"k{turn % 7}", "v": str(turn)}), ("snapshot", {}), ("clone", {}),
                                          ("set_name", {"new_name": str(turn)})])
            call = self.host.start(f"Volume.{method}", "--json")
            call.stdin.write(json.dumps({"dbg": "", "sr": self.sr, "key": key, **more}).encode())
            call.stdin.close()
            time.sleep(chance.random() * 0.012)
            call.send_signal(signal.SIGKILL)
            call.wait()
            call.stdout.close()
            call.stderr.close()
            answer = self.volume(method, key, **more)
            if method == "set":
                kept[more["k"]] = more["v"]
            if method == "set_name":
                self.assertEqual(self.volume("stat", key)["name"], str(turn))
            self.assertEqual(self.volume("stat", key)["keys"], kept)
            if answer:
                self.assertIn(answer["key"], self.listed())
            for extra in set(self.listed()) - {key}:
                self.volume("destroy", extra)
        self.assertEqual(set(self.listed()), {key})
        self.host.call("SR.detach", sr=self.sr)
        self.host.call("SR.attach", configuration=self.config)
        images = [name for name in os.listdir(self.location) if name.endswith(".vhd")]
        self.assertLessEqual(len(images), 2, images)


if __name__ == "__main__":
    unittest.main()
