"""Calls of LVMSR and of the Python driver of XCP-ng that are killed, and that the other ends. Run by tests/guest/peers/lvhd.sh."""

import copy
import datetime
import os
import re
import shutil
import unittest
from pathlib import Path

import test_lvhd_peer as peer
from agent import Fault
from test_file import MiB
from test_lvhd_peer import DISKS, UUID, run

setUpModule = peer.setUpModule

# MiB of a disk that the group uses.
KEPT = 200
# Where the Python driver stops if it is told so (util.py): in a snapshot, an attachment, the merge of a disk.
POINTS = {
    "clone": [f"LVHDRT_clone_vdi_{point}" for point in (
        "after_create_journal", "after_shrink_parent", "after_lvcreate", "after_first_snap", "after_second_snap", "after_parent_hidden",
        "after_parent_ro", "before_remove_journal")],
    "inflate": [f"LVHDRT_inflate_{point}" for point in ("after_create_journal", "after_setSize", "after_zeroOut", "after_setSizePhys")],
    "merge": [f"LVHDRT_coaleaf_{point}" for point in (
        "before_coalesce", "after_coalesce", "one_renamed", "both_renamed", "after_vdirec", "before_remove_j")],
}
# A program first on PATH and named like a tool of LVM. It numbers the calls, notes how many lines each is given, and kills its caller
# when so many lines of the call in question are done. The caller may give lines bit by bit, and asks for the version to see that those
# before are done.
INTERPOSER = """#!/bin/sh
PATH=${{PATH#{dir}:}}
tool=${{0##*/}} lines=0
read -r n < {dir}/count
n=$((n + 1))
echo $n > {dir}/count
read -r k after < {dir}/kill
if [ "$*" != /dev/stdin ]; then
  echo $n 1 $tool $1 >> {dir}/calls
  [ $n = $k ] || exec $tool "$@"
  [ $after = 0 ] || $tool "$@"
  kill -KILL $PPID
  exit
fi
mkfifo {dir}/fifo.$$
cat < {dir}/fifo.$$ | $tool /dev/stdin &
exec 3> {dir}/fifo.$$
rm {dir}/fifo.$$
exec > /dev/null
ends() {{
  exec 3>&-
  wait $!
  status=$?
  echo $n $lines $tool /dev/stdin >> {dir}/calls
}}
trap '' PIPE
while read -r line; do
  case $line in '#'*) ;; *)
    if [ $n.$lines = $k.$after ]; then
      ends
      kill -KILL $PPID
      exit
    fi
    lines=$((lines + 1)) ;;
  esac
  echo "$line" >&3
done
ends
[ $n.$lines != $k.$after ] || kill -KILL $PPID
exit $status
"""
# Of the points at which a call is killed, a run takes a part, which depends on the day; with LONG all.
PARTS = 1 if os.environ.get("LONG") else 5
TODAY = int(os.environ.get("DAY") or datetime.date.today().timetuple().tm_yday) % PARTS


class Kills(peer.Host):
    def prepared(self, name, disk):
        """A group with a disk and its snapshot, how to have it again, and what the disks hold."""
        side = self.side(name, disk, allocation="thin")
        agent, names = side.agent, side.names
        agent.create_sr()
        agent.attach_sr()
        names["a"] = agent.create(16 * MiB, "a", sm_config={})
        side.write("a", 0, 2)
        names["s"] = agent.snapshot(names["a"])
        side.write("a", 1, 2)
        agent.scan()
        agent.call("sr_detach")
        digests = side.digests()
        kept = os.path.join(self.scratch, "kept")
        run("dd", f"if={disk}", f"of={kept}", "bs=1M", f"count={KEPT}", "conv=sparse", "status=none")
        records, sr = copy.deepcopy(self.xapi.vdis), copy.deepcopy(self.xapi.srs[agent.sr_ref])
        known = dict(names)

        def restore():
            self.reboot(side)
            run("dd", f"if={kept}", f"of={disk}", "bs=1M", "conv=notrunc,fsync", "status=none")
            self.xapi.vdis = copy.deepcopy(records)
            self.xapi.srs[agent.sr_ref] = copy.deepcopy(sr)
            names.clear()
            names.update(known)
        return side, restore, digests

    @staticmethod
    def reboot(side):
        """No volume is active, and no user is counted."""
        run("vgchange", "-an", side.group)
        shutil.rmtree(f"/run/sm/refcount/lvm-{side.agent.sr_uuid}", ignore_errors=True)

    @staticmethod
    def begin(side, what):
        """The call that is killed."""
        agent, names = side.agent, side.names
        if what == "clone":
            agent.snapshot(names["a"])
        elif what == "inflate":
            agent.call("vdi_attach", "true", vdi=names["a"])
            agent.call("vdi_activate", "true", vdi=names["a"])
        else:
            agent.delete(names.pop("s"))
            side.collect()

    @staticmethod
    def volumes(side):
        return sorted(run("lvs", "--noheadings", "-o", "lv_name,lv_size", side.group).split())

    def odd(self, side):
        """The volumes that are neither MGT nor an image."""
        return [name for name in self.volumes(side) if re.match("[A-Za-z]", name) and not re.fullmatch(f"MGT|VHD-{UUID}", name)]

    def ended(self, side, digests, by):
        """What was begun is ended by the next change of ours, or by a scan of Python; the disks are there, and all can be merged."""
        agent = side.agent
        side.by(by)
        agent.attach_sr()
        agent.scan()
        if by == "ours":
            agent.delete(agent.create(8 * MiB, sm_config={}))

        def kept():
            found = side.digests()
            return {name: found.get(name) for name in digests}
        self.assertEqual(kept(), digests)
        # Python knows nothing of volumes that were to become images; the next call of ours removes them.
        left = [name for name in self.odd(side) if by == "ours" or not name.startswith("NEW")]
        self.assertEqual(left, [], "journals and unfinished volumes")
        side.collect()
        agent.scan()
        self.assertEqual(kept(), digests)
        agent.call("sr_detach")

    def both_go_on(self, side, digests):
        """Each makes a snapshot and a merge of what the other ended."""
        agent, names = side.agent, side.names
        for by in ("python", "ours"):
            side.by(by)
            agent.attach_sr()
            agent.scan()
            snapshot = agent.snapshot(names["a"])
            agent.delete(snapshot)
            side.collect()
            agent.scan()
            found = side.digests()
            self.assertEqual({name: found.get(name) for name in digests}, digests, by)
            # Python leaves volumes that were to become images.
            self.assertEqual([name for name in self.odd(side) if by == "ours" or not name.startswith("NEW")], [], by)
            wrong = [line for line in side.state()["wrong"].splitlines() if by == "ours" or not line.startswith("NEW")]
            self.assertEqual(wrong, [], by)
            agent.call("sr_detach")

    def test_python_is_killed_and_ours_ends_it(self):
        side, restore, digests = self.prepared("python", DISKS[0])
        points = [(what, point) for what, of in POINTS.items() for point in of]
        for what, point in points[TODAY::PARTS]:
            with self.subTest(point):
                restore()
                side.by("python").agent.attach_sr()
                self.xapi.calls()
                self.xapi.fatal, fist = point, Path(f"/tmp/fist_{point}")
                fist.touch()
                try:
                    self.begin(side, what)
                except (AssertionError, Fault):
                    pass
                fist.unlink()
                self.assertTrue([call for call in self.xapi.calls() if point in str(call)], f"Python did not come to {point}: {self.log()[-2000:]}")
                print(f"Python, killed at {point}: {self.odd(side)}", flush=True)
                self.reboot(side)
                of_names = {name: digest for name, digest in digests.items() if name in side.names}
                self.ended(side, of_names, "ours")
                self.both_go_on(side, of_names)

    def test_ours_is_killed_and_python_ends_it(self):
        side, restore, digests = self.prepared("ours", DISKS[1])
        directory = Path(self.scratch, "bin")
        directory.mkdir()
        for tool in ("lvm", "lvchange", "lvcreate", "lvrename", "lvremove", "lvextend", "lvreduce"):
            (directory / tool).write_text(INTERPOSER.format(dir=directory), encoding="ascii")
            (directory / tool).chmod(0o755)
        env = self.drivers["ours"].env
        plain = env["PATH"]

        def interposed(what, point):
            """Whether the call was killed."""
            restore()
            side.by("ours").agent.attach_sr()
            for name, text in (("count", "0\n"), ("kill", point + "\n"), ("calls", "")):
                (directory / name).write_text(text, encoding="ascii")
            env["PATH"] = f"{directory}:{plain}"
            try:
                self.begin(side, what)
                if what == "inflate":
                    for command in ("vdi_deactivate", "vdi_detach"):
                        side.agent.call(command, vdi=side.names["a"])
                return False
            except (AssertionError, Fault):
                return True
            finally:
                env["PATH"] = plain
        for what in POINTS:
            self.assertFalse(interposed(what, "0 0"), what)
            points = []
            for call in (directory / "calls").read_text(encoding="ascii").splitlines():
                number, lines, *words = call.split()
                if "fullreport" not in words:
                    points += [f"{number} {k}" for k in range(int(lines) + 1)]
            for point in points[TODAY::PARTS]:
                with self.subTest(what, point=point):
                    self.assertTrue(interposed(what, point))
                    print(f"ours, {what}, killed at {point} of {points[-1]}: {self.odd(side)}", flush=True)
                    self.reboot(side)
                    of_names = {name: digest for name, digest in digests.items() if name in side.names}
                    self.ended(side, of_names, "python")
                    self.both_go_on(side, of_names)


if __name__ == "__main__":
    unittest.main()
