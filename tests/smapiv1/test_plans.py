"""sm plan and apply on a host with xapi: whose SRs they see, and which calls of xe they print or run. xe is a stand-in here
(`xe` beside this file), and xapi is the double, which calls the driver as xapi does.
"""

import contextlib
import json
import os
import subprocess
import unittest
import uuid
from pathlib import Path

from driver import Fault
from test_file import BIN, Case, checksum
from xapi import SIGNATURES, Refusal, Xapi

LAYOUT = "6ba7b810-9dad-11d1-80b4-00c04fd430c8"
SIGNATURES.update(dict.fromkeys(("SR.create", "SR.introduce", "SR.forget", "SR.destroy", "PBD.create", "PBD.plug", "PBD.unplug",
                                 "PBD.destroy")), **{"PBD.get_by_uuid": "s", "PBD.get_record": "s"})


class Keeper(Xapi):
    """A xapi that makes SRs and connects them to hosts."""

    driver = None

    @contextlib.contextmanager
    def unlocked(self):
        """A driver calls xapi as well."""
        self.lock.release()
        try:
            yield
        finally:
            self.lock.acquire()

    def run(self, command, sr, config, *args):
        members = {"host_ref": self.host_ref, "command": command, "args": list(args), "session_ref": self.session,
                   "device_config": dict(config, SRmaster="true"), "sr_ref": sr, "sr_uuid": self.srs[sr]["uuid"],
                   "subtask_of": "OpaqueRef:task"}
        with self.unlocked():
            try:
                self.driver.call(command, members)
            except Fault as fault:
                raise Refusal(f"SR_BACKEND_FAILURE_{fault.code}", "", fault.text, "") from None

    def introduced(self, sr_uuid, label, sr_type):
        sr = self.add_sr(sr_uuid, sr_type)
        self.srs[sr]["name_label"] = label
        return sr

    def connected(self, sr, host, config):
        pbd = "OpaqueRef:pbd-" + str(uuid.uuid4())
        self.pbds[pbd] = {"uuid": str(uuid.uuid4()), "SR": sr, "host": host, "device_config": config, "currently_attached": False}
        return pbd

    def SR_create(self, session, host, config, size, label, description, sr_type, content, shared, sm_config):
        sr = self.introduced(str(uuid.uuid4()), label, sr_type)
        try:
            self.run("sr_create", sr, config, size)
        except Refusal:
            del self.srs[sr]
            raise
        self.PBD_plug(session, self.connected(sr, host, config))
        return sr

    def SR_introduce(self, session, sr_uuid, label, description, sr_type, content, shared, sm_config):
        return self.introduced(sr_uuid, label, sr_type)

    def PBD_create(self, session, record):
        return self.connected(record["SR"], record["host"], record["device_config"])

    def PBD_plug(self, session, pbd):
        self.run("sr_attach", self.pbds[pbd]["SR"], self.pbds[pbd]["device_config"])
        self.pbds[pbd]["currently_attached"] = True
        return ""

    def PBD_unplug(self, session, pbd):
        self.run("sr_detach", self.pbds[pbd]["SR"], self.pbds[pbd]["device_config"])
        self.pbds[pbd]["currently_attached"] = False
        return ""

    def PBD_destroy(self, session, pbd):
        if self.pbds.pop(pbd)["currently_attached"]:
            raise Refusal("OPERATION_NOT_ALLOWED", "PBD is plugged")
        return ""

    def SR_forget(self, session, sr):
        for pbd in [pbd for pbd, record in self.pbds.items() if record["SR"] == sr]:
            self.PBD_destroy(session, pbd)
        del self.srs[sr]
        return ""

    def SR_destroy(self, session, sr):
        config = next(record["device_config"] for record in self.pbds.values() if record["SR"] == sr)
        if any(record["currently_attached"] for record in self.pbds.values() if record["SR"] == sr):
            raise Refusal("SR_HAS_PBD", sr)
        self.run("sr_delete", sr, config)
        return self.SR_forget(session, sr)


class Plans(Case):
    def start_xapi(self):
        self.xapi = Keeper(os.path.join(self.host, "xapi"))

    def setUp(self):
        super().setUp()
        self.xapi.driver = self.driver
        self.xapi.srs.clear()
        self.places = [os.path.join(self.scratch, name) for name in ("it's a disk", "sr1", "sr2")]
        self.model_file = os.path.join(self.scratch, "r.model")
        self.env = dict(os.environ, XCP_SM_RUN_DIR=self.host, PATH=f"{os.path.dirname(__file__)}:{BIN}:{os.environ['PATH']}")

    def sm(self, *words):
        return subprocess.run(["sm", *words], env=self.env, capture_output=True, text=True, check=False)

    def done(self, *words):
        done = self.sm(*words)
        self.assertEqual((done.returncode, done.stderr), (0, ""), done)
        return done.stdout

    def refused(self, code, *words):
        done = self.sm(*words)
        self.assertTrue(done.stderr.startswith(code), done)
        return done.stderr

    def model(self, *lines):
        Path(self.model_file).write_text("\n".join(["layout: r", f"uuid: {LAYOUT}", *lines, ""]), encoding="utf-8")

    def line(self, n, more=""):
        return f'file: dev="{self.places[n]}" index={n} {more}'

    def apply(self, *more):
        return self.done("apply", "-m", self.model_file, "--run-xe", "--yes", *more)

    def steps(self):
        """The plan as pairs of action and object."""
        plan = json.loads(self.done("plan", "-m", self.model_file, "--format", "json"))
        return [(step["action"], step["object"]) for step in plan["steps"]]

    def called(self):
        """The calls of xe so far, which are then forgotten."""
        log = Path(self.host, "xe.log")
        calls = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.exists() else []
        log.unlink(missing_ok=True)
        return calls

    def verbs(self):
        return [call[0] for call in self.called()]

    def labels(self):
        return sorted(sr["name_label"] for sr in self.xapi.srs.values())

    def pbd(self, n):
        return next(pbd for pbd in self.xapi.pbds.values() if pbd["device_config"]["location"] == self.places[n])

    def test_printed_calls_are_lines_for_a_shell_and_nothing_is_done(self):
        self.model(self.line(0), self.line(1, "active=no"))
        said = self.done("apply", "-m", self.model_file, "--yes", "--format", "table")
        self.assertEqual((self.xapi.srs, self.verbs(), os.path.exists(self.places[0])), ({}, [], False))
        head, *lines = said.splitlines()
        self.assertEqual((head, len(lines)), ("next steps:", 2))
        for line in lines:
            subprocess.run(["sh", "-ec", line], env=self.env, check=True, stdout=subprocess.DEVNULL)
        create = ["sr-create", f"host-uuid={self.xapi.host_uuid}", "name-label=r-file-0", "type=file", "shared=false",
                  "content-type=user", f"device-config:location={self.places[0]}"]
        self.assertEqual(self.called()[0], create)
        self.assertEqual([self.pbd(n)["currently_attached"] for n in (0, 1)], [True, False])
        self.assertEqual(self.steps(), [])

    def test_a_run_leaves_the_srs_to_xapi_and_the_next_plan_is_empty(self):
        self.model(self.line(0), self.line(1))
        self.assertEqual(self.steps(), [("create", "file/0"), ("create", "file/1")])
        plan = self.done("plan", "-m", self.model_file, "--format", "table")
        self.assertIn(f"make an SR on {self.places[1]} as file/1", plan)
        self.apply()
        self.assertEqual((self.verbs(), self.labels()), (["sr-create"] * 2, ["r-file-0", "r-file-1"]))
        self.assertEqual((self.steps(), self.done("apply", "-m", self.model_file, "--run-xe", "--format", "table")),
                         ([], "nothing to do\n"))
        # Nothing of ours knows the SRs.
        for name in ("sr.d", "layouts", "registry"):
            self.assertFalse(os.path.exists(os.path.join(self.host, name)), name)
        self.assertEqual(self.verbs(), [])
        self.refused("EINVAL", "apply", "--resume")

    def test_a_directory_of_another_sr_is_never_taken(self):
        self.model(self.line(1))
        other = self.xapi.introduced(str(uuid.uuid4()), "somebody's", "file")
        # Nothing in the directory says so.
        self.xapi.connected(other, self.xapi.host_ref, {"location": self.places[1]})
        said = self.refused("ENOMATCH", "plan", "-m", self.model_file)
        self.assertIn(f"xapi has SR {self.xapi.srs[other]['uuid']} there", said)

    def test_what_changes_is_plugged_unplugged_and_forgotten(self):
        self.model(self.line(0), self.line(1))
        self.apply()
        self.called()
        pbd = self.pbd(0)["uuid"]
        self.model(self.line(0, "active=no"), self.line(1))
        self.assertEqual(self.steps(), [("tune", "file/0")])
        self.apply()
        self.assertEqual((self.called(), self.pbd(0)["currently_attached"]), ([["pbd-unplug", f"uuid={pbd}"]], False))
        self.model(self.line(0), self.line(1, "active=manual"))
        self.apply()
        self.assertEqual((self.called(), self.pbd(0)["currently_attached"]), ([["pbd-plug", f"uuid={pbd}"]], True))
        before = checksum(self.places[1])
        self.model(self.line(0))
        self.assertEqual(self.steps(), [("stop", "file/1"), ("wipe", "file/1"), ("drop", "file/1")])
        self.apply()
        self.assertEqual((self.verbs(), self.labels(), checksum(self.places[1])),
                         (["pbd-unplug", "sr-forget"], ["r-file-0"], before))
        self.assertEqual(self.steps(), [])

    def test_a_layout_is_removed_and_its_data_only_if_that_is_allowed(self):
        self.model(self.line(0), self.line(1))
        self.apply()
        self.called()
        before = checksum(self.places[0])
        said = self.done("layout", "remove", "r", "--yes", "--format", "table")
        self.assertIn("xe sr-forget uuid=", said)
        self.done("layout", "remove", "r", "--yes", "--run-xe")
        self.assertEqual((self.labels(), checksum(self.places[0])), ([], before))
        self.refused("EINVAL", "layout", "remove", "r", "--yes", "--run-xe")
        self.xapi.srs.clear()
        self.model(self.line(2))
        self.apply()
        self.called()
        self.done("layout", "remove", "r", "--yes", "--run-xe", "--allow", "wipe")
        self.assertEqual((self.verbs(), os.path.exists(os.path.join(self.places[2], ".sm-sr"))),
                         (["pbd-unplug", "sr-destroy"], False))

    def test_after_a_failure_the_same_call_goes_on(self):
        self.model(self.line(0), self.line(1, "active=no"))
        Path(self.host, "xe.fail").write_text("pbd-unplug", encoding="ascii")
        said = self.refused("EPARTIAL", "apply", "-m", self.model_file, "--run-xe", "--yes")
        again = f"env XCP_SM_RUN_DIR={self.host} sm apply -m {self.model_file} --run-xe goes on"
        self.assertIn("1 of 2 steps of layout r are done", said)
        self.assertTrue("Out of luck" in said and again in said, said)
        os.unlink(os.path.join(self.host, "xe.fail"))
        self.assertEqual(self.steps(), [("tune", "file/1")])
        self.called()
        self.apply()
        self.assertEqual((self.verbs(), self.steps()), (["pbd-unplug"], []))

    def test_hooks_run_around_the_calls(self):
        self.model(self.line(0))
        for phase, body in (("pre", "exit 1"), ("post", f"echo $SM_ACTIONS $SM_POST_RESULT > {self.scratch}/post")):
            hook = Path(self.host, "hooks", f"layout-apply-{phase}.d", "hook")
            hook.parent.mkdir(parents=True)
            hook.write_text(f"#!/bin/sh\n{body}\n", encoding="ascii")
            hook.chmod(0o755)
        self.refused("EHOOKDENY", "apply", "-m", self.model_file, "--run-xe", "--yes")
        self.assertEqual(self.verbs(), [])
        Path(self.host, "hooks", "layout-apply-pre.d", "hook").unlink()
        self.apply()
        self.assertEqual(Path(self.scratch, "post").read_text(encoding="ascii"), "create True\n")

    def test_an_sr_that_sm_made_is_introduced_with_its_uuid(self):
        aside = self.xapi.path + ".aside"
        os.rename(self.xapi.path, aside)
        self.model(self.line(0))
        self.done("apply", "-m", self.model_file, "--yes")
        self.done("layout", "remove", "r", "--yes")
        self.refused("EINVAL", "apply", "-m", self.model_file, "--run-xe", "--yes")
        os.rename(aside, self.xapi.path)
        self.assertEqual(self.steps(), [("adopt", "file/0")])
        Path(self.host, "xe.fail").write_text("pbd-create", encoding="ascii")
        self.refused("EPARTIAL", "apply", "-m", self.model_file, "--run-xe", "--yes")
        os.unlink(os.path.join(self.host, "xe.fail"))
        self.called()
        self.apply()
        sr = str(uuid.uuid5(uuid.UUID(LAYOUT), "file/0"))
        self.assertEqual((self.verbs(), [record["uuid"] for record in self.xapi.srs.values()], self.steps()),
                         (["pbd-create", "pbd-plug"], [sr], []))

    def test_a_plan_fits_the_database_that_it_was_made_of(self):
        plan = os.path.join(self.scratch, "plan.json")
        self.model(self.line(0))
        self.done("plan", "-m", self.model_file, "-o", plan)
        # It is no plan for sm itself.
        aside = self.xapi.path + ".aside"
        os.rename(self.xapi.path, aside)
        self.refused("ESTALEPLAN", "apply", plan, "--yes")
        os.rename(aside, self.xapi.path)
        self.done("apply", plan, "--yes", "--run-xe")
        self.refused("ESTALEPLAN", "apply", plan, "--yes", "--run-xe")
        self.assertEqual(self.verbs(), ["sr-create"])

    def test_two_srs_of_one_name_and_a_silent_xapi_are_refused(self):
        self.model(self.line(0))
        for n in (0, 1):
            sr = self.xapi.introduced(str(uuid.uuid4()), "r-file-0", "file")
            self.xapi.connected(sr, self.xapi.host_ref, {"location": self.places[n]})
        self.assertIn("xapi has two SRs that are called r-file-0", self.refused("EFROZEN", "plan", "-m", self.model_file))
        self.xapi.behaviour = lambda method, number: "500"
        self.assertIn("xapi does not answer", self.refused("ENODEV", "plan", "-m", self.model_file))
        listed = self.sm("devices", "--format", "table")
        self.assertEqual(listed.returncode, 0)
        self.assertIn("warning: SRs that xapi alone knows of are not shown as owners: xapi: ", listed.stderr)


if __name__ == "__main__":
    unittest.main()
